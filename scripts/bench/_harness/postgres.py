"""A PostgreSQL server of one's own, on loopback, in a folder that goes away with it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


def binaries() -> Path | None:
    """Where the server's programs are, newest version first; None where there are none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    if found:
        return found[0].parent
    named = shutil.which("initdb")
    return Path(named).resolve().parent if named else None


class Server:
    """A running server. `url` is its database, `stop()` and `start()` take it away and bring it back."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._made = False
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._where = ("-h", "127.0.0.1", "-p", str(self._port), "-U", "spillway")
        self.url = f"postgresql://spillway@127.0.0.1:{self._port}/spillway"
        self._run("initdb", "-D", str(folder / "data"), "-U", "spillway", "--auth=trust", "--no-sync")

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = f"-c listen_addresses=127.0.0.1 -c port={self._port} -c unix_socket_directories={self._folder}"
        self._control("-l", str(self._folder / "log"), "-o", options, "start")
        if not self._made:
            self._made = True
            self._run("createdb", *self._where, "spillway")

    def stop(self) -> None:
        """Stop it at once."""
        self._control("-m", "immediate", "stop")

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """It keeps its connections and does nothing, until the end of the block."""
        first = psutil.Process(int((self._folder / "data" / "postmaster.pid").read_text().split()[0]))
        stopped = [first, *first.children(recursive=True)]
        for each in stopped:
            each.suspend()
        try:
            yield
        finally:
            for each in stopped:
                each.resume()

    def empty(self) -> None:
        """Forget everything that was stored."""
        self._run("dropdb", *self._where, "-f", "spillway")
        self._run("createdb", *self._where, "spillway")

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-w", *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        # The server does not run as root.
        who = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        subprocess.run(
            [*who, str(self._programs / program), *arguments], check=True, stdout=subprocess.DEVNULL, cwd="/"
        )


@contextmanager
def server(programs: Path) -> Iterator[Server]:
    """A server that runs until the end of the block."""
    folder = Path(tempfile.mkdtemp(prefix="spillway-postgres-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        running = Server(programs, folder)
        running.start()
        try:
            yield running
        finally:
            running.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
