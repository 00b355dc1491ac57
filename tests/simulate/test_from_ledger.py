"""The node's own history as a trace: who came when, how long it was, and what was pinned."""

import json
from pathlib import Path

import pytest

from node import cli
from node.simulate.formats.ledger import read_ledger
from node.simulate.values import TraceRequest
from tests.store.rows import AT_US, cloud_row, ledger, row

SECOND_US = 1_000_000


def test_requests_are_in_the_order_in_which_they_came_not_in_which_they_began(tmp_path: Path) -> None:
    # The second came 3 s after the first and waited 5 s; the third went out at once, after 4 s.
    first = row(at_us=AT_US, ended_us=AT_US + SECOND_US, total_us=SECOND_US, queue_us=0)
    waited = row(at_us=AT_US + 8 * SECOND_US, ended_us=AT_US + 9 * SECOND_US, total_us=6 * SECOND_US, caller="bob")
    out = cloud_row(at_us=AT_US + 4 * SECOND_US, ended_us=AT_US + 6 * SECOND_US, total_us=2 * SECOND_US)
    with ledger(tmp_path, waited, out, first) as database, database.reading() as connection:
        found = read_ledger(connection, None, None, 100)
    assert [(each.arrival_s, each.client) for each in found.requests] == [(0.0, "alice"), (3.0, "bob"), (4.0, "alice")]


def test_each_request_is_there_once_with_what_is_known_of_it(tmp_path: Path) -> None:
    failed = cloud_row(ending="failed", state="released", prompt_tokens=None, completion_tokens=None)
    again = cloud_row(request_id=failed["request_id"], id=failed["request_id"] + ".2", parent_id=failed["id"],
                      prompt_tokens=300, completion_tokens=7)  # fmt: skip
    lost = row(ending="client_closed", prompt_tokens=50, completion_tokens=5)
    copy = cloud_row(request_id=lost["request_id"], id=lost["request_id"] + ".2", prompt_tokens=50, completion_tokens=9)
    kept = row(backend="cache")
    pinned = row(may_leave=False, cached_tokens=64, ttft_budget_us=500_000, total_us=500_000)
    with ledger(tmp_path, failed, again, lost, copy, kept, pinned) as database, database.reading() as connection:
        found = read_ledger(connection, AT_US - SECOND_US, AT_US + SECOND_US, 100)
    assert sorted(each.output_tokens for each in found.requests) == [7, 9, 20]
    assert [found.requests[index] for index in found.pinned] == [TraceRequest(0.4, 100, 20, 64, "alice")]
    assert (found.ttft_budget_s, found.budgets) == (2.0, 2)


def test_only_what_arrived_in_the_time_is_taken(tmp_path: Path) -> None:
    rows = [row(at_us=AT_US + n * SECOND_US, ended_us=AT_US + n * SECOND_US, total_us=0) for n in range(5)]
    with ledger(tmp_path, *rows) as database, database.reading() as connection:
        found = read_ledger(connection, AT_US + SECOND_US, AT_US + 3 * SECOND_US, 100)
    assert [each.arrival_s for each in found.requests] == [0.0, 1.0]


def test_command_replays_the_ledger_of_the_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, figures = tmp_path / "spillway.yaml", tmp_path / "figures.json"
    config.write_text(f"store: {{folder: {tmp_path / 'data'}}}\n")
    ledger_of = ["simulate", "--from-ledger", "--config", str(config), "--policy", "local", "--json", str(figures)]
    assert cli.main(ledger_of) == 1
    assert "there is no ledger in" in capsys.readouterr().err
    rows = [row(at_us=AT_US + n * SECOND_US, ended_us=AT_US + n * SECOND_US, may_leave=n % 4 > 0) for n in range(20)]
    with ledger(tmp_path / "data", *rows):
        assert cli.main(ledger_of) == 0
        capsys.readouterr()
        promise = json.loads(figures.read_bytes())["promise"]
        assert (promise["ttft_budget_s"], promise["pinned"]) == (2.0, 5)
        assert cli.main([*ledger_of, "--since", "2026-12-24"]) == 1
        assert capsys.readouterr().err == "spillway: the ledger: no requests in this part of it\n"
        assert cli.main([*ledger_of, "--seconds", "5"]) == 1
        assert "take --since and --until" in capsys.readouterr().err
    assert cli.main(["simulate", "--policy", "local"]) == 1
    assert capsys.readouterr().err == "spillway: give a TRACE or --from-ledger\n"
