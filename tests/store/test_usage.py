"""What was used and spent: exact, by every part, and nothing counted twice."""

import csv
import io
import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from _harness.postgres import binaries, server

from node import cli
from node.errors import InvalidRequest
from node.store.database import Database, StoreUnavailable, place_of
from node.store.moments import DAY_US, HOUR_US, since_us, until_us
from node.store.usage import Amounts, Part, Question, Report, read_usage
from node.store.usage_text import as_csv, as_document, as_table
from tests.store.rows import AT_US, cloud_row, ledger, put, row


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """One with a mixed history of three days."""
    folder = tmp_path_factory.mktemp("ledger")
    if request.param == "sqlite":
        with ledger(folder, *HISTORY) as opened:
            yield opened
        return
    if (programs := binaries()) is None:
        pytest.skip("no PostgreSQL server is installed here")
    with server(programs) as running, ledger(folder, *HISTORY, url=running.url) as opened:
        yield opened


def history() -> list[dict[str, Any]]:
    rng = random.Random(3)
    rows: list[dict[str, Any]] = []
    for number in range(400):
        at = {"at_us": AT_US + rng.randrange(3 * DAY_US), "caller": rng.choice("ab"), "model": rng.choice(["m", "k"])}
        used = {"prompt_tokens": rng.randrange(5000), "completion_tokens": rng.randrange(900)}
        priced = {"cloud_nano_usd": rng.randrange(10**12), "list_nano_usd": rng.randrange(10**12)}
        first = rng.choice([row, cloud_row])(**at, **used, **priced, cached_tokens=rng.randrange(9))
        rows.append(first)
        if number % 10 == 0:
            first |= {"ending": "failed", "charged_nano_usd": 0, "state": "released"}
            again = {"request_id": first["request_id"], "id": first["request_id"] + ".2", "parent_id": first["id"]}
            rows.append(cloud_row(**at, **used, **priced, **again, charged_nano_usd=rng.randrange(10**12)))
        if number % 37 == 0:
            first |= {"ending": None, "state": "dispatched", "charged_nano_usd": 700}
        if number % 41 == 0:
            first |= {"ending": None, "state": "orphaned", "charged_nano_usd": 900}
    return rows


HISTORY = history()


def report(database: Database, **asked: Any) -> Report:
    with database.reading() as connection:
        return read_usage(connection, Question(**asked))


def total_of(rows: list[dict[str, Any]]) -> Amounts:
    """The same, added up the slow way."""
    total = Amounts()
    for each in rows:
        done, here = each["ending"] == "done", each["backend"] in ("local", "cache")
        work = each["ending"] in ("done", "client_closed")
        tokens = (each["prompt_tokens"] or 0) + (each["completion_tokens"] or 0)
        is_open, orphaned = each["state"] == "dispatched", each["state"] == "orphaned"
        total += Amounts(
            requests=each["parent_id"] is None,
            attempts=1,
            answered=done,
            answered_here=done and here,
            prompt_tokens=each["prompt_tokens"] or 0,
            completion_tokens=each["completion_tokens"] or 0,
            cached_tokens=each["cached_tokens"] or 0,
            work_tokens=tokens if work else 0,
            work_tokens_here=tokens if work and here else 0,
            spent_nano_usd=each["charged_nano_usd"] if each["state"] == "settled" else 0,
            cloud_nano_usd=each["cloud_nano_usd"] or 0,
            list_nano_usd=each["list_nano_usd"] or 0,
            unpriced=done and each["cloud_nano_usd"] is None,
            estimated=each["estimated"],
            open=is_open,
            open_nano_usd=each["charged_nano_usd"] if is_open else 0,
            orphaned=orphaned,
            orphaned_nano_usd=each["charged_nano_usd"] if orphaned else 0,
        )
    return total


ABOUT: dict[Part, Callable[[dict[str, Any]], str]] = {
    Part.KEY: lambda each: each["caller"],
    Part.MODEL: lambda each: each["model"],
    Part.BACKEND: lambda each: each["backend"],
    Part.DAY: lambda each: ("2026-11-29", "2026-11-30", "2026-12-01")[(each["at_us"] - AT_US) // DAY_US],
}


@pytest.mark.parametrize("by", [by for size in range(5) for by in itertools.combinations(Part, size)])
def test_every_combination_adds_up_to_what_the_rows_say(database: Database, by: tuple[Part, ...]) -> None:
    found = report(database, by=by)
    assert found.total == total_of(HISTORY)
    if not by:
        assert found.lines == ()
        return
    expected: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for each in HISTORY:
        expected.setdefault(tuple(ABOUT[part](each) for part in by), []).append(each)
    assert {line.about: line.amounts for line in found.lines} == {
        about: total_of(rows) for about, rows in expected.items()
    }
    assert [line.about for line in found.lines] == sorted(expected)


@pytest.mark.parametrize(
    ("since", "until"), [(0, DAY_US), (5 * HOUR_US + 7, 5 * HOUR_US + 7), (DAY_US + 1, 3 * DAY_US)]
)
def test_period_begins_with_its_first_moment_and_ends_before_its_last(
    database: Database, since: int, until: int
) -> None:
    found = report(database, since_us=AT_US + since, until_us=AT_US + until, caller="a")
    within = [e for e in HISTORY if since <= e["at_us"] - AT_US < until and e["caller"] == "a"]
    assert found.total == total_of(within)


def test_retry_is_one_request_and_one_piece_of_work(tmp_path: Path) -> None:
    lost = {"charged_nano_usd": 0, "cloud_nano_usd": None, "prompt_tokens": None, "completion_tokens": None}
    failed = cloud_row(ending="failed", state="released", **lost)
    again = cloud_row(request_id=failed["request_id"], id=failed["request_id"] + ".2", parent_id=failed["id"])
    with ledger(tmp_path, failed, again) as database:
        total = report(database).total
    assert (total.requests, total.attempts, total.answered) == (1, 2, 1)
    assert (total.spent_nano_usd, total.cloud_nano_usd, total.saved_nano_usd) == (130, 130, 0)


def test_what_is_out_and_what_is_lost_stand_apart_from_what_was_spent(tmp_path: Path) -> None:
    out = cloud_row(state="dispatched", ending=None, charged_nano_usd=900)
    lost = cloud_row(state="orphaned", ending=None, charged_nano_usd=800)
    with ledger(tmp_path, cloud_row(), out, lost) as database:
        found = report(database)
    assert found.total.spent_nano_usd == 130
    assert (found.total.open, found.total.open_nano_usd) == (1, 900)
    assert (found.total.orphaned, found.total.orphaned_nano_usd) == (1, 800)
    text = as_table(found)
    assert "open: 1 calls are out, at worst 0.0000009 $ more" in text
    assert "orphaned: 1 calls were out when a node died" in text


def test_share_kept_here_counts_engine_and_cache(tmp_path: Path) -> None:
    with ledger(tmp_path, row(), row(backend="cache"), cloud_row(prompt_tokens=500, completion_tokens=100)) as database:
        total = report(database).total
    assert total.share_here_of_requests == 2 / 3
    assert total.share_here_of_tokens == 240 / 840
    assert Amounts().share_here_of_requests is None


def test_document_is_exact_to_the_last_nano_dollar(tmp_path: Path) -> None:
    with ledger(tmp_path, cloud_row(charged_nano_usd=9_007_199_254_740_993, cloud_nano_usd=None)) as database:
        written = msgspec.json.encode(as_document(report(database, by=(Part.BACKEND,))))
    document = json.loads(written, parse_float=str)
    assert document["total"]["spent_usd"] == "9007199.254740993"
    assert document["lines"][0]["backend"] == "holysheep"
    assert document["total"]["unpriced"] == 1


def test_csv_has_a_row_for_each_line_and_no_formulas(tmp_path: Path) -> None:
    with ledger(tmp_path, row(caller="=cmd"), cloud_row(caller="bob")) as database:
        rows = list(csv.DictReader(io.StringIO(as_csv(report(database, by=(Part.KEY, Part.DAY))))))
        alone = list(csv.DictReader(io.StringIO(as_csv(report(database)))))
    assert [(each["key"], each["day"], each["spent_usd"]) for each in rows] == [
        ("'=cmd", "2026-11-29", "0.0"),
        ("bob", "2026-11-29", "0.00000013"),
    ]
    assert [each["requests"] for each in alone] == ["2"]


def test_table_lines_up_its_points_and_ends_in_the_total(tmp_path: Path) -> None:
    with ledger(tmp_path, row(), cloud_row(charged_nano_usd=12_500_000_000_000, cloud_nano_usd=10**9)) as database:
        lines = as_table(report(database, by=(Part.BACKEND,))).splitlines()
    assert lines[0].split()[:2] == ["backend", "requests"]
    assert "12,500.00" in lines[1]
    assert lines[-1].startswith("total")
    assert "-12,498.99999987" in lines[-1]
    assert len({line.rindex(".") for line in (lines[1], lines[2], lines[-1])}) == 1


def test_nothing_in_a_period_is_said_so(tmp_path: Path) -> None:
    with ledger(tmp_path, row()) as database:
        found = report(database, since_us=AT_US + 1, by=(Part.KEY,))
    assert as_table(found) == "no calls in this period"
    assert as_document(found)["lines"] == []


def test_moments_are_days_times_and_how_long_ago() -> None:
    assert since_us("2026-11-29", 0) == AT_US
    assert until_us("2026-11-29", 0) == AT_US + DAY_US
    assert until_us("2026-11-29T12:00", 0) == AT_US + 12 * HOUR_US
    assert since_us("2026-11-29T01:00+01:00", 0) == AT_US
    assert since_us("24h", AT_US) == AT_US - DAY_US
    assert since_us("2w", AT_US) == AT_US - 14 * DAY_US
    for text in ("yesterday", "", "2026-13-01", "1793923200", "9y"):
        with pytest.raises(InvalidRequest, match="since: expected a day"):
            since_us(text, 0)


def test_reader_beside_a_node_waits_for_nobody_and_makes_nothing(tmp_path: Path) -> None:
    empty = Database(place_of(tmp_path / "none", None))
    with pytest.raises(StoreUnavailable, match="there is no ledger in"):
        empty.open_beside()
    assert not (tmp_path / "none").exists()
    with ledger(tmp_path, row()) as node, node.writing() as connection:
        connection.exec_driver_sql("UPDATE calls SET caller = caller WHERE 0")  # somebody is in the middle of a write
        beside = Database(place_of(tmp_path, None))
        beside.open_beside()
        assert report(beside).total.requests == 1
        beside.engine.dispose()


def command(capsys: pytest.CaptureFixture[str], config: Path, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["usage", "--config", str(config), *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_command_reads_the_ledger_that_the_settings_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "spillway.yaml"
    config.write_text(f"store: {{folder: {tmp_path / 'data'}}}\n")
    code, _, error = command(capsys, config)
    assert (code, error) == (1, f"spillway: there is no ledger in {tmp_path / 'data'} yet\n")
    with ledger(tmp_path / "data", row(), cloud_row(caller="bob")) as database:
        code, out, _ = command(capsys, config, "--by", "key", "day", "--json")
        assert code == 0
        assert [line["key"] for line in json.loads(out)["lines"]] == ["alice", "bob"]
        put(database, row())  # and the node goes on writing
        code, out, _ = command(capsys, config, "--key", "bob", "--since", "2026-11-29", "--until", "2026-11-29")
        assert (code, out.splitlines()[1].split()[:2]) == (0, ["total", "1"])
    code, _, error = command(capsys, config, "--since", "2026-11-30", "--until", "2026-11-29")
    assert (code, error) == (1, "spillway: --since 2026-11-30: is not before --until 2026-11-29\n")


def test_ledger_that_was_there_and_is_gone_is_said_so_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ledger(tmp_path / "data", row()) as database:
        pass
    assert database.place.file is not None
    database.place.file.unlink()
    config = tmp_path / "spillway.yaml"
    config.write_text(f"store: {{folder: {tmp_path / 'data'}}}\n")
    code, _, error = command(capsys, config)
    assert code == 1
    assert "is gone, and what was spent with it. Put it back from a backup (spillway ledger restore BACKUP)" in error
    assert not database.place.file.exists()


def test_unknown_part_is_answered_with_the_names_that_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["usage", "--by", "foo"])
    said = capsys.readouterr().err
    assert "Part." not in said
    assert all(part.value in said.splitlines()[-1] for part in Part)
