"""`scripts/demo` as somebody runs it after cloning: a short day, and one that is ended at once."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.engine

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
_WITHIN_S = 900


def demo(folder: Path, *options: str) -> subprocess.Popen[str]:
    """The command itself, without what sets up the environment. Its temporary files are in `folder`."""
    paths = [str(SCRIPTS), str(SCRIPTS / "bench"), os.environ.get("PYTHONPATH", "")]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "TMPDIR": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-m", "_demo", "--no-browser", "--no-hold", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environ,
        start_new_session=True,
    )


def left_of(session: int) -> list[str]:
    """What still runs in the session that the demo was started in."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(str(process.info))
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def test_a_short_day_keeps_its_promises_and_leaves_nothing_behind(tmp_path: Path) -> None:
    report, folder = tmp_path / "report.json", tmp_path / "temporary"
    folder.mkdir()
    running = demo(folder, "--seconds", "28", "--json", str(report))
    said, _ = running.communicate(timeout=_WITHIN_S)
    assert running.returncode == 0, said
    assert left_of(running.pid) == []
    assert list(folder.glob("spillway-*")) == []
    told: dict[str, Any] = json.loads(report.read_text())
    assert all(bar["met"] for bar in told["bars"])
    day = told["demo"]
    chapters = {chapter["name"]: chapter for chapter in day["chapters"]}
    assert list(chapters) == ["calm", "burst", "engine killed", "outage", "budget spent"]
    assert chapters["burst"]["answered_by"]["cloud"] > 0
    assert day["overflow"]
    assert sum(chapter["reasons"].get("content_rule", 0) for chapter in chapters.values()) > 0
    (away,) = day["engine_away"]
    assert away["to_s"] < day["lasted_s"]
    assert away["refused"] == 0
    bill = sum(account["billed_nano_usd"] for account in day["books"]["accounts"])
    assert bill == day["spent_nano_usd"] > 0
    assert "Overflow open from" in said
    assert "Why?" in said


def said_until(running: subprocess.Popen[str], part: str) -> None:
    """Reads what it prints up to a line with `part`."""
    assert running.stdout is not None
    said = []
    for line in running.stdout:
        said.append(line)
        if part in line:
            return
    pytest.fail(f"it ended without {part!r}: {''.join(said)}")


def test_ctrl_c_ends_it_at_once_with_a_report_and_leaves_nothing_behind(tmp_path: Path) -> None:
    running = demo(tmp_path)
    said_until(running, "dashboard:")
    running.send_signal(signal.SIGINT)
    said, _ = running.communicate(timeout=_WITHIN_S)
    assert running.returncode == 130, said
    assert "met: requests that hung" in said
    assert left_of(running.pid) == []
    assert list(tmp_path.glob("spillway-*")) == []


def test_ctrl_c_ends_it_while_the_node_starts(tmp_path: Path) -> None:
    running = demo(tmp_path)
    said_until(running, "starting the node")
    running.send_signal(signal.SIGINT)
    said, _ = running.communicate(timeout=_WITHIN_S)
    assert (running.returncode, said.strip()) == (130, "Ended before there was a node.")
    assert left_of(running.pid) == []
    assert list(tmp_path.glob("spillway-*")) == []


@pytest.mark.campaign
def test_node_that_dies_in_the_middle_of_the_day_is_told_after_the_report_so_far(tmp_path: Path) -> None:
    running = demo(tmp_path)
    said_until(running, "A calm morning")
    (node,) = (each for each in psutil.Process(running.pid).children() if "serve" in each.cmdline())
    node.kill()
    said, _ = running.communicate(timeout=_WITHIN_S)
    assert running.returncode == 1, said
    report, _, last = said.partition("The day broke off: the node has ended:")
    assert "| calm " in report
    assert "MISSED: the ledger beside the clouds' own bills: not measured" in report
    assert last
    assert left_of(running.pid) == []
    assert list(tmp_path.glob("spillway-*")) == []
