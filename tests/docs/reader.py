"""Somebody who reads a page and does what it says, command by command, in a folder of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.docs.not_run import ELSEWHERE, ENDLESS, MAY_DIFFER, NOT_RUN, SHOWN
from tests.docs.pages import REPO, Block, blocks

_WITHIN_S = 120
_MOMENT_S = 2
_WRAPPER = f"""#!/bin/sh
PYTHONPATH={REPO}${{PYTHONPATH:+:$PYTHONPATH}} exec {sys.executable} -m node.cli "$@"
"""
_NUMBER = re.compile(r"-?\$?\d+([.,:]\d+)*(e-?\d+)?( ?%)?")
_NAME = re.compile(r"\b[0-9a-f]{16,}\b")


def key_of(table: Mapping[tuple[str, str], str], page: str, text: str) -> tuple[str, str] | None:
    """The entry of one of the tables in `not_run` that `text` on `page` is, None if it is not there."""
    return next((key for key in table if key[0] == page and text.startswith(key[1])), None)


class Reader:
    """Does what `page` says. `instead` has what stands in the page and, in its place, what there is here: a port.

    `home` is the home folder of the one who reads, and where the commands run. `before` has what is to be done before
    the first block with a command that begins so: what the page says in words.
    """

    def __init__(
        self,
        page: str,
        home: Path,
        *,
        instead: Mapping[str, str],
        environ: Mapping[str, str],
        before: Mapping[str, Callable[[], object]] = MappingProxyType({}),
    ) -> None:
        self.page = page
        self.home = home
        self._instead = instead
        self._before = before
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SPILLWAY_", "HOLYSHEEP"))}
        self._environ = {
            **kept,
            "HOME": str(home),
            "PATH": f"{home / '.venv' / 'bin'}:{Path(sys.executable).parent}:{kept['PATH']}",
            "PYTHONPATH": str(REPO),
            **environ,
        }
        self._environ.pop("XDG_DATA_HOME", None)
        self._last: str | None = None
        wrapper = home / ".venv" / "bin" / "spillway"
        wrapper.parent.mkdir(parents=True, exist_ok=True)
        wrapper.write_text(_WRAPPER)
        wrapper.chmod(0o755)

    def follow(self) -> None:
        """Do all of it. Raises `AssertionError` naming the block."""
        before = dict(self._before)
        for block in blocks(self.page):
            for begins in [each for each in before if any(line.startswith(each) for line in block.commands)]:
                before.pop(begins)()
            match block.kind, block.role:
                case "sh", role:
                    command = ["bash", "-euo", "pipefail", "-c", self._script(block)]
                    self._last = self._run(block, command, fails=role == "fails")
                case "python", _:
                    self._last = self._run(block, [sys.executable, "-c", self._here(block.text)])
                case _, "output":
                    assert self._last is not None, f"{block}: nothing was run before it"
                    check_output(block, self._here(self._shown(block)), self._last)
                case "yaml", _:
                    pass  # tests/docs/test_pages.py reads all of a page's together
                case "json", _:
                    json.loads(block.text)
                case "text", "":
                    assert key_of(SHOWN, self.page, block.text), f"{block}: output of nothing: list it in SHOWN"
                case _:
                    assert key_of(ELSEWHERE, self.page, block.text), f"{block}: nothing runs a block of {block.kind!r}"

    def _here(self, text: str) -> str:
        for shown, real in self._instead.items():
            text = text.replace(shown, real)
        return text

    def _shown(self, block: Block) -> str:
        lines = block.text.splitlines()
        return "\n".join("…" if key_of(MAY_DIFFER, self.page, line) else line for line in lines)

    def _script(self, block: Block) -> str:
        commands = []
        for command in block.commands:
            if key_of(NOT_RUN, self.page, command):
                continue
            if key_of(ENDLESS, self.page, command):
                command = f"{{ timeout {_MOMENT_S} {command} || true; }} 2>&- | grep -m1 '^event'"
            commands.append(self._here(command))
        return "\n".join(commands)

    def _run(self, block: Block, command: list[str], *, fails: bool = False) -> str:
        done = subprocess.run(
            command,
            cwd=self.home,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_WITHIN_S,
            check=False,
        )
        assert (done.returncode != 0) == fails, (
            f"{block}: exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        )
        return done.stderr if fails else done.stdout


def check_output(block: Block, shown: str, real: str) -> None:
    """Whether a command printed what the page shows, but for figures and ids; `…` stands for anything, alone on a line
    for any lines."""
    if shown.startswith("HTTP/"):
        _check_answer(block, shown, real)
        return
    pattern = "".join(
        "(?:.*\n)*" if line == "…" else re.escape(line).replace("…", ".*") + "\n" for line in _plain(shown).splitlines()
    )
    assert re.fullmatch(pattern, _plain(real) + "\n"), (
        f"{block}: shows\n{_plain(shown)}\nand what is printed is\n{_plain(real)}"
    )


def _plain(text: str) -> str:
    text = _NUMBER.sub("0", _NAME.sub("ID", text))
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())


def _check_answer(block: Block, shown: str, real: str) -> None:
    """An HTTP answer: the status, the headers that are shown, and the form of the body, if it is."""
    (shown_head, shown_body), (head, body) = (_parts(text.strip()) for text in (shown, real))
    assert shown_head[0] == head[0], str(block)
    headers = dict(line.split(": ", 1) for line in head[1:])
    for line in shown_head[1:]:
        name, value = line.split(": ", 1)
        assert name in headers, f"{block}: no header {name}"
        assert _plain(value) == _plain(headers[name]), f"{block}: {name}: {headers[name]}"
    if not shown_body:
        return
    assert _form(json.loads(shown_body.replace("\n", ""))) == _form(json.loads(body)), f"{block}: {body}"


def _parts(text: str) -> tuple[list[str], str]:
    head, _, body = text.replace("\r", "").partition("\n\n")
    return head.splitlines(), body


def _form(value: Any) -> Any:
    """What is left of a document when its values are taken out."""
    match value:
        case dict():
            return {key: _form(each) for key, each in value.items()}
        case list():
            return [_form(each) for each in value]
        case bool() | None:
            return value
    return type(value).__name__ if isinstance(value, str) else "number"
