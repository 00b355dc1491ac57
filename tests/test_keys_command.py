"""`spillway keys`: what is printed where, and that each mistake is one line that says what would be right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from node import cli


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "spillway.yaml"
    file.write_text(
        f"store: {{folder: {tmp_path / 'data'}}}\nkeys: [{{name: fixed, sha256: '{'0' * 64}', priority: 2}}]\n"
    )
    return file


def keys(config: Path, line: str) -> int:
    return cli.main(["keys", *line.split(), "--config", str(config)])


def test_key_alone_is_on_standard_output_and_is_never_shown_again(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keys(config, "create app --budget-day 2.50 --model demo --tokens-per-minute 9 --ttft-budget-ms 800") == 0
    said = capsys.readouterr()
    key = said.out.strip()
    assert key.startswith("sk-spw-")
    assert "only time the key is shown" in said.err
    assert key not in said.err
    for form in ("list", "list --json"):
        assert keys(config, form) == 0
        assert key not in capsys.readouterr().out
    assert keys(config, "list --json") == 0
    app, fixed = json.loads(capsys.readouterr().out)
    assert (app["name"], app["state"], app["models"], app["ttft_budget_ms"]) == ("app", "good", ["demo"], 800)
    assert app["budget_usd"] == {"hour": None, "day": 2.5, "month": None}
    assert key.startswith(app["id"])
    assert (fixed["name"], fixed["state"], fixed["priority"]) == ("fixed", "settings", 2)


def test_table_tells_good_keys_from_those_that_have_ended(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("create a", "create b", "rotate a", "revoke b", "list"):
        assert keys(config, line) == 0
    table = capsys.readouterr().out.splitlines()[3:]
    assert [row.split()[2] for row in table] == ["STATE", "replaced", "good", "revoked", "settings"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("create taken", "'taken' has a key already"),
        ("create fixed", "'fixed' is in the settings already"),
        ("create anonymous", "is who calls without one"),
        ("create a/b", "is no name for a key"),
        ("create a --model nosuch", "--model: there is no 'nosuch' in the catalogue; it has demo"),
        ("create a --budget-day ten", "--budget-day: expected dollars, such as 2.50, got 'ten'"),
        ("create a --budget-hour -1", "--budget-hour: expected dollars"),
        ("create a --requests-per-minute 0", "--requests-per-minute: expected a whole number of at least 1"),
        ("create a --priority 101", "--priority: expected a whole number from -100 to 100"),
        ("create a --residency moon", "--residency: expected premises or any, got 'moon'"),
        ("rotate nobody", "there is no key named 'nobody'"),
        ("rotate taken --grace 5", "--grace: expected a time such as 30m, 24h or 7d"),
        ("revoke nobody", "there is no key named 'nobody'"),
    ],
)
def test_mistake_is_one_line_and_changes_nothing(
    config: Path, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    keys(config, "create taken")
    keys(config, "list --json")
    before = capsys.readouterr().out.partition("\n")[2]
    assert keys(config, line) == 1
    wrong = capsys.readouterr()
    assert wrong.out == ""
    assert wrong.err.startswith("spillway: ")
    assert wrong.err.count("\n") == 1
    assert said in wrong.err
    keys(config, "list --json")
    assert capsys.readouterr().out == before


@pytest.mark.parametrize(
    ("line", "warned"),
    [
        ("create app", None),
        ("create clinic --residency premises", "key clinic: it is pinned to the premises, where nothing serves it"),
        ("create other --model qwen3-8b", "key other: not served here: qwen3-8b (models: demo)"),
        ("create app --model demo", None),
    ],
)
def test_key_that_promises_what_the_node_cannot_do_is_made_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, warned: str | None
) -> None:
    file = tmp_path / "spillway.yaml"
    file.write_text(
        f"store: {{folder: {tmp_path / 'data'}}}\ncloud_only: true\nproviders: {{holysheep: {{}}}}\nmodels: [demo]\n"
    )
    assert keys(file, line) == 0
    said = capsys.readouterr()
    assert said.out.startswith("sk-spw-")
    warnings = [each for each in said.err.splitlines() if each.startswith("warning: ")]
    assert len(warnings) == (warned is not None)
    assert warned is None or warnings[0].startswith(f"warning: {warned}")


def test_pin_is_no_cause_for_a_warning_where_an_engine_serves(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert keys(config, "create clinic --residency premises") == 0
    assert "warning" not in capsys.readouterr().err
