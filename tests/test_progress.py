"""What a person sees of something slow, and what a program that reads the output does not."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import pytest

from node.progress import Progress
from tests.docs.pages import REPO

_WITHIN_S = 30


@contextmanager
def terminal() -> Iterator[tuple[TextIO, list[bytes]]]:
    """A pseudo-terminal to write to, and all that it has got once the block is over."""
    ours, theirs = pty.openpty()
    seen: list[bytes] = []

    def read() -> None:
        with suppress(OSError):  # the other end is closed
            while data := os.read(ours, 65536):
                seen.append(data)

    reading = threading.Thread(target=read)
    reading.start()
    try:
        with os.fdopen(theirs, "w", encoding="utf-8") as stream:
            yield stream, seen
    finally:
        reading.join()
        os.close(ours)


def asked_twice(done: int) -> tuple[threading.Event, Callable[[], int]]:
    """An event for the second time that somebody asks how many are done, and what they ask."""
    asked, left = threading.Event(), iter(range(2))

    def measure() -> int:
        if next(left, None) is None:
            asked.set()
        return done

    return asked, measure


def on_a_terminal(what: str, *, total: int | None = None, unit: str = "rows") -> str:
    """What a terminal gets to see of a `Progress` that is drawn a few times."""
    asked, measure = asked_twice(450_000)
    with (
        terminal() as (stream, seen),
        Progress(what, total=total, unit=unit, stream=stream, measure=measure, shown_after_s=0.0),
    ):
        assert asked.wait(_WITHIN_S)
    return b"".join(seen).decode()


def test_terminal_shows_share_count_rate_and_time_left_on_one_line_that_goes_away() -> None:
    seen = on_a_terminal("copying", total=1_000_000)
    lines = [line for line in seen.split("\r\x1b[K") if line]
    assert re.fullmatch(r"copying: \[#+\.+\] 45%, 450k rows of 1M rows, \S+ rows/s, .* left", lines[0]), lines[0]
    assert "\n" not in seen
    assert seen.endswith("\r\x1b[K")


def test_count_without_a_known_end_and_bytes_are_shown_as_such() -> None:
    assert "reading: 450k requests in " in on_a_terminal("reading", unit="requests")
    assert "backing up: 450 kB in " in on_a_terminal("backing up", unit="B")


def test_elsewhere_there_is_a_line_now_and_then_and_none_for_what_is_over_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = io.StringIO()
    asked, measure = asked_twice(450)
    with Progress("copying", total=1000, stream=log, measure=measure, say_every_s=0.001):
        assert asked.wait(_WITHIN_S)
    assert log.getvalue().startswith("copying: 45%, 450 rows of 1k rows, ")
    assert "\r" not in log.getvalue()
    quick = io.StringIO()
    with Progress("copying", stream=quick) as progress:
        progress.advance(1)
    assert quick.getvalue() == ""
    assert capsys.readouterr().out == ""


def test_file_that_is_measured_and_goes_away_ends_what_is_shown_and_nothing_else(tmp_path: Path) -> None:
    copy, log = tmp_path / "copy", io.StringIO()
    copy.write_bytes(b"half of it")
    asked = threading.Event()

    def measure() -> int:
        try:
            return copy.stat().st_size
        finally:
            copy.unlink(missing_ok=True)
            if "copying" in log.getvalue():
                asked.set()

    failed: list[threading.ExceptHookArgs] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", failed.append)
        with Progress("copying", unit="B", stream=log, measure=measure, say_every_s=0.001):
            assert asked.wait(_WITHIN_S)
    assert failed == []
    assert log.getvalue().count("copying") == 1


def test_simulation_shows_on_a_terminal_how_far_it_is_and_its_output_is_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "node.cli", "simulate", "poisson", "--seconds", "2000", "--policy", "overflow"]
    how: dict[str, Any] = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(REPO)}, "check": True}
    with terminal() as (stream, seen):
        shown = subprocess.run([*command, "--json", "a"], stdout=subprocess.PIPE, stderr=stream, **how)
    plain = subprocess.run([*command, "--json", "b"], capture_output=True, **how)
    assert "policy 1 of 1: overflow" in b"".join(seen).decode()
    assert plain.stdout == shown.stdout
    assert b"policy 1 of 1" not in plain.stdout
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
