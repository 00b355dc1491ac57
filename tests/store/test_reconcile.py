"""A provider's statement beside our rows: every item and every call once, and nothing written that is only guessed."""

import csv
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from node import cli
from node.emulator import Switch
from node.errors import SettingsError
from node.store.database import Database
from node.store.reconcile import Difference, Reconciliation, Sureness, our_calls, reconcile, write
from node.store.reconcile_text import differences_csv, differences_text, has_differences
from node.store.schema import calls, spend
from node.store.statement import Field, Item, read_statement
from tests.serve.node_process import emulated, running
from tests.store.rows import AT_US, cloud_row, ledger

SECOND_US = 1_000_000


def item(line: int = 2, **changes: Any) -> Item:
    values: dict[str, Any] = {
        "line": line,
        "id": None,
        "at_us": AT_US + SECOND_US,
        "model": "gpt-4.1",
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "nano_usd": 130,
    }
    return Item(**values | changes)


def compare(folder: Path, rows: list[dict[str, Any]], items: list[Item], **how: Any) -> Reconciliation:
    with ledger(folder, *rows) as database, database.reading() as connection:
        period = {"since_us": AT_US - 1, "until_us": AT_US + 10**12} | how
        return reconcile(items, our_calls(connection, "holysheep", None, None), **period)


def test_call_is_found_by_its_tokens_or_by_our_id(tmp_path: Path) -> None:
    rows = [cloud_row(), cloud_row(request_id="r2", prompt_tokens=7)]
    found = compare(tmp_path, rows, [item(), item(3, id="r2", prompt_tokens=None, model=None, at_us=None)])
    assert [(match.ours.id, match.sureness) for match in found.matches] == [
        (rows[0]["id"], Sureness.SURE),
        ("r2.1", Sureness.ID),
    ]
    assert not has_differences(found)
    assert differences_text(found).splitlines()[-2:] == [
        "differences: none",
        "billed 0.00000026 $, ours 0.00000026 $, difference 0.0 $",
    ]


def test_every_kind_of_difference_is_told(tmp_path: Path) -> None:
    rows = [
        cloud_row(),
        cloud_row(prompt_tokens=5, charged_nano_usd=50),
        cloud_row(prompt_tokens=6),
        cloud_row(state="orphaned", prompt_tokens=None, completion_tokens=None, charged_nano_usd=900),
        cloud_row(backend="openai", prompt_tokens=8),
    ]
    items = [
        item(2),
        item(3, prompt_tokens=5, nano_usd=51),
        item(4, model="o9", nano_usd=7),
        item(5, prompt_tokens=70, completion_tokens=9, nano_usd=400),
    ]
    found = compare(tmp_path, rows, items)
    told = list(csv.DictReader(differences_csv(found).splitlines()))
    assert [(each["difference"], each["line"], each["billed_usd"], each["ours_usd"]) for each in told] == [
        ("other amount", "3", "0.000000051", "0.00000005"),
        ("orphan, billed", "5", "0.0000004", "0.0000009"),
        ("billed, not ours", "4", "0.000000007", ""),
        ("ours, not billed", "", "", "0.00000013"),
    ]
    assert found.billed_nano_usd - found.charged_nano_usd == (130 + 51 + 7 + 400) - (130 + 50 + 130 + 900)


def test_equal_calls_are_told_apart_by_time_and_said_to_be_only_likely(tmp_path: Path) -> None:
    rows = [cloud_row(at_us=AT_US + 60 * n * SECOND_US, ended_us=AT_US + (60 * n + 1) * SECOND_US) for n in range(3)]
    items = [item(n + 2, at_us=AT_US + (60 * n + 1) * SECOND_US) for n in (2, 0, 1)]
    found = compare(tmp_path, rows, items)
    assert [(match.item.line, match.ours.id) for match in found.matches] == [(n + 2, rows[n]["id"]) for n in range(3)]
    assert {match.sureness for match in found.matches} == {Sureness.LIKELY}


def test_item_of_another_hour_or_a_longer_model_name(tmp_path: Path) -> None:
    dated = item(model="gpt-4.1-2025-04-14")
    late = item(3, at_us=AT_US + 3600 * SECOND_US)
    found = compare(tmp_path, [cloud_row()], [dated, late])
    assert [match.item for match in found.matches] == [dated]
    assert found.unknown == (late,)
    assert compare(tmp_path / "2", [cloud_row()], [item(model="gpt-4.15")]).matches == ()


def test_call_that_began_outside_the_statement_is_not_missed_in_it(tmp_path: Path) -> None:
    early = cloud_row(at_us=AT_US - 5 * SECOND_US, prompt_tokens=9)
    assert compare(tmp_path, [early], [], since_us=AT_US).unbilled == ()
    assert len(compare(tmp_path / "2", [early], [], since_us=AT_US - 6 * SECOND_US).unbilled) == 1


def orphan(caller: str, **changes: Any) -> dict[str, Any]:
    lost = {"state": "orphaned", "prompt_tokens": None, "completion_tokens": None, "charged_nano_usd": 900}
    return cloud_row(caller=caller, ending=None, cloud_nano_usd=None, **lost | changes)


def kept(database: Database) -> list[tuple[Any, ...]]:
    with database.reading() as connection:
        columns = (calls.c.state, calls.c.charged_nano_usd, calls.c.billed_nano_usd, calls.c.prompt_tokens)
        return [tuple(row) for row in connection.execute(select(*columns).order_by(calls.c.id))]


def test_orphans_are_settled_at_what_was_billed_and_the_budget_gets_the_rest_back(tmp_path: Path) -> None:
    with ledger(tmp_path, orphan("alice"), cloud_row(charged_nano_usd=140)) as database:
        for _ in range(2):  # the second time there is nothing left to do
            with database.reading() as connection:
                ours = our_calls(connection, "holysheep", None, None)
            items = [item(), item(3, prompt_tokens=80, completion_tokens=5, nano_usd=300)]
            found = reconcile(items, ours, since_us=AT_US, until_us=None)
            with database.writing() as connection:
                write(connection, found)
            assert sorted(kept(database)) == [("settled", 140, 130, 100), ("settled", 300, 300, 80)]
        with database.reading() as connection:
            assert connection.scalar(select(spend.c.nano_usd)) == 440


def test_orphans_of_several_callers_are_guessed_at_and_left_alone(tmp_path: Path) -> None:
    with ledger(tmp_path, orphan("alice"), orphan("bob")) as database:
        with database.reading() as connection:
            ours = our_calls(connection, "holysheep", None, None)
        found = reconcile([item(nano_usd=300)], ours, since_us=AT_US, until_us=None)
        assert [match.sureness for match in found.matches] == [Sureness.GUESS]
        with database.writing() as connection:
            assert write(connection, found) == (0, 0)
        assert kept(database) == [("orphaned", 900, None, None)] * 2


def test_item_that_costs_more_than_was_reserved_is_no_orphan_of_ours(tmp_path: Path) -> None:
    found = compare(tmp_path, [orphan("alice")], [item(nano_usd=901), item(3, prompt_tokens=5000, nano_usd=1)])
    assert found.matches == ()
    assert "2 billed, not ours, 1 orphan, not billed" in differences_text(found)


def test_id_that_is_billed_twice_is_a_duplicate_and_settles_no_orphan(tmp_path: Path) -> None:
    rows = [cloud_row(), orphan("alice")]
    found = compare(tmp_path, rows, [item(2, id="theirs"), item(3, id="theirs")])
    assert [(match.item.line, match.ours.id) for match in found.matches] == [(2, rows[0]["id"])]
    assert [each.line for each in found.duplicates] == [3]
    assert "1 billed again, not ours, 1 orphan, not billed" in differences_text(found)
    assert found.billed_nano_usd == 260


def test_row_with_our_id_is_never_laid_to_another_requests_orphan(tmp_path: Path) -> None:
    rows = [cloud_row(request_id="r3"), orphan("alice")]
    found = compare(tmp_path, rows, [item(2, id="r3"), item(3, id="r3.1")])
    assert [(match.item.line, match.ours.id) for match in found.matches] == [(2, "r3.1")]
    assert [each.line for each in found.unknown] == [3]


def test_request_id_stands_once_for_each_attempt(tmp_path: Path) -> None:
    rows = [cloud_row(request_id="r4"), cloud_row(request_id="r4", id="r4.2", prompt_tokens=9)]
    found = compare(tmp_path, rows, [item(2, id="r4", prompt_tokens=9), item(3, id="r4"), item(4, id="r4")])
    assert [(match.item.line, match.ours.id) for match in found.matches] == [(2, "r4.2"), (3, "r4.1")]
    assert [each.line for each in found.duplicates] == [4]


@pytest.mark.parametrize(("seconds", "found"), [(-119, Sureness.LIKELY), (-121, None)])
def test_row_from_before_the_call_began_is_not_its_bill(tmp_path: Path, seconds: int, found: Sureness | None) -> None:
    early = compare(tmp_path, [orphan("alice")], [item(at_us=AT_US + seconds * SECOND_US)])
    assert [match.sureness for match in early.matches] == ([] if found is None else [found])


def test_row_with_far_too_short_a_prompt_is_guessed_at_only_where_no_better_one_is_there(tmp_path: Path) -> None:
    long = orphan("alice", prompt_bytes=40_000)
    short = item(2, prompt_tokens=100)
    assert [match.sureness for match in compare(tmp_path, [long], [short]).matches] == [Sureness.GUESS]
    better = item(3, prompt_tokens=9_000, at_us=AT_US + 2 * SECOND_US)
    found = compare(tmp_path / "2", [long], [short, better])
    assert [(match.item.line, match.sureness) for match in found.matches] == [(3, Sureness.LIKELY)]


def test_any_shuffled_statement_of_our_own_rows_agrees(tmp_path: Path) -> None:
    rng = random.Random(5)
    rows = [
        cloud_row(
            at_us=(at := AT_US + rng.randrange(86_400) * SECOND_US),
            ended_us=at + rng.randrange(9 * SECOND_US),
            prompt_tokens=(prompt := rng.randrange(1, 6)),
            charged_nano_usd=prompt * 800,
            reserved_nano_usd=10**6,
        )
        for _ in range(400)
    ]
    items = [item(n, at_us=each["ended_us"], prompt_tokens=each["prompt_tokens"], nano_usd=each["charged_nano_usd"])
             for n, each in enumerate(rows)]  # fmt: skip
    rng.shuffle(items)
    found = compare(tmp_path, rows, items)
    assert not has_differences(found)
    assert len(found.matches) == 400


Write = Callable[[str], Path]


@pytest.fixture
def statement(tmp_path: Path) -> Write:
    def written(text: str) -> Path:
        path = tmp_path / "statement.csv"
        path.write_text(text)
        return path

    return written


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("id,created,model,prompt_tokens,completion_tokens,cost_usd\nx,1795910401,gpt-4.1,100,20,0.00000013\n", {}),
        ("Request ID,Time,Model,Input Tokens,Output Tokens,Cost\nx,2026-11-29T00:00:01Z,gpt-4.1,100,20,$1.3E-7", {}),
        ("id,at_s,model,prompt_tokens,completion_tokens,cost_nano_usd\nx,1795910401.0,gpt-4.1,100,20,130", {}),
        ("Nr,wann,model,in,aus,Betrag\nx,1795910401000,gpt-4.1,100,20,1.3E-7",
         {Field.ID: "Nr", Field.TIME: "wann", Field.INPUT: "in", Field.OUTPUT: "aus", Field.AMOUNT: "Betrag"}),
    ],
)  # fmt: skip
def test_statement_is_read_whatever_its_columns_are_called(
    statement: Write, text: str, columns: dict[Field, str]
) -> None:
    assert read_statement(statement(text), columns) == [item(id="x")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty: a header row was expected"),
        ("id,model\n", "no column is known to hold the amount; name it with --column amount=NAME"),
        ("model,cost_usd\n", "neither an id nor model and tokens are there"),
        ("id,cost_usd\nx,much\n", "line 2: not an amount: 'much'"),
        ("id,cost_usd\nx,-1\n", "line 2: not an amount that a call can cost: '-1'"),
        ("id,cost_usd\nx,NaN\n", "line 2: not an amount"),
        ("id,cost_usd\nx\n", "line 2: 1 columns where the header has 2"),
        ("id,cost_usd,time\nx,1,soon\n", "line 2: not a time: 'soon'; taken are a day (2026-11-29), ISO 8601"),
        ("id,cost_usd,date\nx,1,20261129\n", "line 2: not a time: '20261129'; taken are a day"),
        ("id,cost_usd,date\nx,1,29.11.2026\n", "line 2: not a time: '29.11.2026'; taken are a day"),
        ("id,cost_usd,currency\nx,1,CNY\n", "line 2: not in dollars; convert it first"),
        ("id,cost_usd,num_model_requests\nx,1,7\n", "line 2: sums up several calls"),
    ],
)
def test_statement_that_cannot_be_read_is_refused_by_line(statement: Write, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=r"statement\.csv") as refused:
        read_statement(statement(text), {})
    assert said in refused.value.message


def test_day_alone_stands_for_any_time_of_it(tmp_path: Path, statement: Write) -> None:
    hour = 3600 * SECOND_US
    rows = [
        cloud_row(at_us=AT_US + 23 * hour, ended_us=AT_US + 23 * hour + SECOND_US),
        cloud_row(at_us=AT_US + 26 * hour, ended_us=AT_US + 26 * hour + SECOND_US),
    ]
    text = "date,model,prompt_tokens,completion_tokens,cost_nano_usd\n2026-11-29,gpt-4.1,100,20,130\n"
    found = compare(tmp_path, rows, read_statement(statement(text), {}))
    assert [(match.ours.id, match.sureness) for match in found.matches] == [(rows[0]["id"], Sureness.SURE)]


def settings_of(folder: Path) -> Path:
    """A settings file for the ledger in `folder / "data"`."""
    config = folder / "spillway.yaml"
    config.write_text(f"store: {{folder: {folder / 'data'}}}\n")
    return config


def test_command_looks_at_all_of_a_day_that_stands_alone(
    tmp_path: Path, statement: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    at_us = AT_US + 22 * 3600 * SECOND_US
    with ledger(tmp_path / "data", cloud_row(at_us=at_us, ended_us=at_us)):
        pass
    config = settings_of(tmp_path)
    bill = statement("date,model,prompt_tokens,completion_tokens,cost_nano_usd\n2026-11-29,gpt-4.1,100,20,130\n")
    line = ["usage", "--config", str(config), "reconcile", str(bill), "--provider", "holysheep"]
    assert cli.main(line) == 0
    assert "calls found: 1 (1 by model, tokens and time, no other possible)" in capsys.readouterr().out


def test_exit_code_tells_differences_from_what_could_not_be_compared(
    tmp_path: Path, statement: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    with ledger(tmp_path / "data", cloud_row()):
        pass
    config = settings_of(tmp_path)
    bill = "date,model,prompt_tokens,completion_tokens,cost_nano_usd\n2026-11-29,gpt-4.1,100,20,{}\n"

    def code(text: str, *more: str, provider: str = "holysheep", before: tuple[str, ...] = ()) -> int:
        path = str(statement(text))
        return cli.main(["usage", "--config", str(config), *before, "reconcile", path, "--provider", provider, *more])

    assert code(bill.format(130)) == 0
    assert code(bill.format(131)) == 1
    assert code("no,columns\n1,2\n") == 2
    assert code(bill.format(130), provider="nobody") == 2
    assert code(bill.format(130), "--slack-s", "-1") == 2
    capsys.readouterr()
    assert code(bill.format(130), before=("--key", "app")) == 2
    assert capsys.readouterr().err == "spillway: --key: not for `reconcile`\n"


def test_period_and_form_may_be_given_before_the_word_reconcile_too(
    tmp_path: Path, statement: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    with ledger(tmp_path / "data", cloud_row()):
        pass
    config = settings_of(tmp_path)
    bill = str(statement("date,model,prompt_tokens,completion_tokens,cost_nano_usd\n2026-11-29,gpt-4.1,100,20,131\n"))
    line = ["reconcile", bill, "--provider", "holysheep"]
    usage = ["usage", "--config", str(config)]
    assert cli.main([*usage, *line, "--csv", "--since", "2026-11-01"]) == 1
    after = capsys.readouterr().out
    assert cli.main([*usage, "--csv", "--since", "2026-11-01", *line]) == 1
    assert capsys.readouterr().out == after
    assert cli.main([*usage, "--since", "2026-11-30", "--until", "2026-12-01", *line]) == 2, "no calls in that time"


async def test_emulators_own_bill_agrees_with_the_ledger_and_tells_what_was_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = f"store: {{folder: {tmp_path / 'data'}}}"
    async with emulated() as cloud, running(cloud, tmp_path, more) as node:
        for number in range(6):
            assert (await node.chat(text="word " * (number // 2))).status_code == 200
        cloud.switches.arm(Switch.RESET_MID_STREAM)
        assert "upstream_truncated" in (await node.chat(stream=True, max_tokens=50)).text
        node.process.terminate()
        assert await node.ended() == 0
        bill = list(cloud.bill.records)
    path = tmp_path / "bill.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "at_s", "model", "prompt_tokens", "completion_tokens", "cost_nano_usd"],
                                extrasaction="ignore")  # fmt: skip
        writer.writeheader()
        writer.writerows(bill)
    arguments = ["usage", "--config", str(node.config), "reconcile", str(path), "--provider", "holysheep", "--csv"]
    cli.main([*arguments, "--write"])
    told = Counter(each["difference"] for each in csv.DictReader(capsys.readouterr().out.splitlines()))
    assert set(told) <= {Difference.AMOUNT}, "every call on the bill is ours, and only the cut one may differ"
    assert told.total() <= 1
    with ledger(tmp_path / "data") as database:
        billed = [row[2] for row in kept(database) if row[0] != "released"]
    assert sum(billed) == sum(record["cost_nano_usd"] for record in bill)
