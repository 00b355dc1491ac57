import json
from pathlib import Path

import pytest
from _harness.report import Bar, Machine, finish, number, table

MACHINE = Machine(cpu=None, cores=2, memory_bytes=2**30, kernel="6.1", python="3.11", load_average_1min=0.0)
FAST = Bar("fast", 12.0, 10, "x", at_least=True)
SLOW = Bar("added p50", 1.5, 1.2, "ms", at_least=False)
UNKNOWN = Bar("unmeasured", None, 0, "x", at_least=True)


def test_check_exits_1_and_names_the_bar_that_was_missed(capsys: pytest.CaptureFixture[str]) -> None:
    status = finish([FAST, SLOW], check=True, json_path=None, machine=MACHINE, figures={})
    assert status == 1
    assert capsys.readouterr().err == "missed: added p50\n"


def test_without_check_a_missed_bar_is_told_but_does_not_fail(capsys: pytest.CaptureFixture[str]) -> None:
    assert finish([SLOW], check=False, json_path=None, machine=MACHINE, figures={}) == 0
    assert "MISSED: added p50: 1.5 ms (bar: ≤ 1.2 ms)" in capsys.readouterr().out


def test_what_was_not_measured_does_not_meet_its_bar() -> None:
    assert not UNKNOWN.met
    assert finish([UNKNOWN], check=True, json_path=None, machine=MACHINE, figures={}) == 1


def test_a_bar_is_met_at_exactly_its_limit() -> None:
    assert Bar("at least", 10.0, 10, "x", at_least=True).met
    assert Bar("at most", 1.2, 1.2, "ms", at_least=False).met


def test_json_file_holds_machine_figures_and_bars(tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    assert finish([FAST], check=True, json_path=target, machine=MACHINE, figures={"bench": "overhead"}) == 0
    written = json.loads(target.read_text())
    assert written["machine"]["cores"] == 2
    assert written["bench"] == "overhead"
    assert written["bars"] == [
        {"name": "fast", "measured": 12.0, "limit": 10, "unit": "x", "at_least": True, "met": True}
    ]


def test_table_is_markdown_with_aligned_columns() -> None:
    assert table(["arm", "req/s"], [["node", "1,234"], ["a", number(None)]]) == (
        "| arm  | req/s |\n|------|------:|\n| node | 1,234 |\n| a    |     - |"
    )
