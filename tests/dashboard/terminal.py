"""The real command under a pseudo-terminal, and what a person would see there."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from types import MappingProxyType

import pyte

from tests.serve.node_process import until

_NOTHING: Mapping[str, str] = MappingProxyType({})


class Terminal:
    """A terminal of `width` times `height` in which `spillway` runs with `arguments`."""

    def __init__(
        self, *arguments: str, width: int = 80, height: int = 24, environ: Mapping[str, str] = _NOTHING
    ) -> None:
        self.screen = pyte.Screen(width, height)
        self._stream = pyte.ByteStream(self.screen)
        self.written = b""
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.before = termios.tcgetattr(slave)
        self._slave = slave
        self.process = subprocess.Popen(
            [sys.executable, "-m", "node.cli", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "xterm-256color", **environ},
            start_new_session=True,
        )
        os.set_blocking(self.master, False)
        asyncio.get_running_loop().add_reader(self.master, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self.master, 65536)
        except BlockingIOError:
            return
        self.written += data
        self._stream.feed(data)

    def text(self) -> str:
        """What is on the screen."""
        return "\n".join(line.rstrip() for line in self.screen.display)

    async def shows(self, *texts: str) -> None:
        """Wait until all of `texts` are on the screen."""
        try:
            await until(lambda: all(text in self.text() for text in texts), 20)
        except AssertionError as error:
            raise AssertionError(f"{texts} not in:\n{self.text()}") from error

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self.master, keys.encode())

    def leave(self, how: str | signal.Signals) -> None:
        """By keys or by a signal."""
        if isinstance(how, signal.Signals):
            self.process.send_signal(how)
        else:
            self.type(how)

    async def ended(self) -> int:
        """Its exit code."""
        code: int = await asyncio.to_thread(self.process.wait, 20)
        return code

    def settings(self) -> list[object]:
        """How the terminal itself is set (echo, lines, …)."""
        return termios.tcgetattr(self._slave)

    def close(self) -> None:
        """Leave nothing behind."""
        asyncio.get_running_loop().remove_reader(self.master)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self._slave)
