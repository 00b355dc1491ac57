"""Row 73: whatever the wall clock does, no duration notices."""

import ast
import time
from pathlib import Path

import pytest

import node
from tests.dispatch.doubles import House, ScriptedBackend, ScriptedEngine, named, read
from tests.dispatch.virtual_time import in_virtual_time, now_s

ROOT = Path(node.__file__).parent

# What the wall clock is for: the date in an answer, a `Retry-After` that is a date, when a key was made or ends, the
# order of request ids, where a trace begins, and the emulator's made-up bill.
DATES = {
    "api/features.py",
    "app.py",
    "cloud/gate.py",
    "calibrate.py",
    "configured_providers.py",
    "store/ledger.py",
    "request_id.py",
    "traces/export.py",
    "wall_clock.py",
}


def test_row_73_only_dates_are_taken_from_the_wall_clock() -> None:
    found = set()
    for path in ROOT.rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        for each in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name | ast.Attribute):
                owner = each.value.id if isinstance(each.value, ast.Name) else each.value.attr
                if (owner, each.attr) in {("time", "time"), ("time", "time_ns"), ("datetime", "now")}:
                    found.add(name)
    assert {name for name in found if not name.startswith("emulator/")} <= DATES


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0, 1.0, -1.0], ids=["summer", "winter", "leap", "step"])
def test_row_73_waiting_and_timing_are_the_same_when_the_clock_jumps(
    monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    @in_virtual_time
    async def story() -> None:
        home = House(ScriptedEngine(slots=1), [ScriptedBackend("cloud")])
        first = await home.answer(named("a"))
        wall_s = time.time()
        monkeypatch.setattr(time, "time", lambda: wall_s + jump_s)
        second = await home.answer(named("b"))  # waits for the slot until its last safe moment
        assert now_s() == 1001.5
        await read(second)
        await read(first)
        assert [outcome.queue_s for outcome in home.outcomes] == [1.5, 0.0]
        assert [outcome.total_s for outcome in home.outcomes] == [1.5, 1.5]

    story()
