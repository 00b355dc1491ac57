"""The audit chain: what is appended holds, whatever is done to it afterwards is noticed, and it can be handed out."""

import csv
import hashlib
import io
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node import cli
from node.audit.chain import Choice, Verdict, verify, write_csv, write_jsonl
from node.store.audit import GENESIS, AuditRow, Head, append, head
from node.store.database import FILE, Database, StoreUnavailable, place_of
from node.store.schema import AuditEvent


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(place_of(tmp_path, None))
    opened.open()
    yield opened
    opened.close()


def row(number: int, event: AuditEvent = AuditEvent.LET_OUT) -> AuditRow:
    out = event is AuditEvent.LET_OUT
    return AuditRow(
        at_us=1_800_000_000_000_000 + number * 60_000_000,
        node="here",
        event=event,
        request_id=f"request-{number}",
        caller="alice" if number % 2 else "bob",
        residency="any" if out else "premises",
        rule="predicted_late" if out else "no_premises_capacity",
        provider=("holysheep", "openai")[number % 3 == 0] if out else None,
        model="größer/7b" if out else None,
        prompt_bytes=100 + number,
        reserved_nano_usd=12_345 if out else None,
    )


def filled(database: Database, count: int) -> Head:
    for number in range(1, count + 1):
        with database.committing() as transaction:
            append(transaction, [row(number, AuditEvent.REFUSED if number % 5 == 0 else AuditEvent.LET_OUT)])
    with database.reading() as connection:
        return head(connection)


def verdict(database: Database, expect: Head | None = None) -> Verdict:
    with database.reading() as connection:
        return verify(connection, expect)


def tampered(folder: Path, statement: str) -> None:
    """As somebody with the file would who first takes the triggers away."""
    connection = sqlite3.connect(folder / FILE)
    connection.executescript(f"DROP TRIGGER audit_stays; DROP TRIGGER audit_keeps; {statement};")
    connection.close()


def test_rows_appended_one_by_one_or_together_make_the_same_chain(database: Database, tmp_path: Path) -> None:
    one_by_one = filled(database, 20)
    other = Database(place_of(tmp_path / "other", None))
    other.open()
    with other.committing() as transaction:
        rows = [row(number, AuditEvent.REFUSED if number % 5 == 0 else AuditEvent.LET_OUT) for number in range(1, 21)]
        append(transaction, rows)
        append(transaction, [])
    assert verdict(other).head == one_by_one
    other.close()
    assert verdict(database) == Verdict(20, one_by_one, {"let_out": 16, "refused": 4})


def test_anybody_can_work_out_the_hash_from_what_is_documented(database: Database) -> None:
    filled(database, 2)
    with database.reading() as connection:
        text = io.StringIO()
        write_jsonl(connection, Choice(), text)
    before = GENESIS
    for line in text.getvalue().splitlines():
        _at, *fields, said = json.loads(line).values()
        form = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
        before = hashlib.sha256((before + form).encode()).hexdigest()
        assert before == said


def test_rows_of_a_transaction_that_fails_are_not_in_the_chain(database: Database) -> None:
    kept = filled(database, 3)

    def fails() -> None:
        with database.committing() as transaction:
            append(transaction, [row(4)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert verdict(database).head == kept


def test_rows_cannot_be_changed_or_deleted_through_the_database(database: Database) -> None:
    filled(database, 2)
    for statement in ("UPDATE audit SET caller = 'eve' WHERE seq = 1", "DELETE FROM audit WHERE seq = 2"):
        with pytest.raises(StoreUnavailable, match="only appended to"), database.writing() as connection:
            connection.exec_driver_sql(statement)
    assert verdict(database).why is None


@pytest.mark.parametrize("column", [name for name in AuditRow.__dataclass_fields__ if name not in ("event",)])
def test_a_changed_field_breaks_the_chain_where_it_is(database: Database, tmp_path: Path, column: str) -> None:
    filled(database, 9)
    tampered(tmp_path, f"UPDATE audit SET {column} = 7 WHERE seq = 4")
    found = verdict(database)
    assert (found.broken_at, found.rows) == (4, 3)
    assert "one of them was changed" in (found.why or "")


@pytest.mark.parametrize(
    ("statement", "broken_at", "why"),
    [
        ("DELETE FROM audit WHERE seq = 4", 4, "row 4 is missing"),
        ("DELETE FROM audit WHERE seq = 1", 1, "row 1 is missing"),
        ("UPDATE audit SET event = 'refused' WHERE seq = 4", 4, "changed"),
        ("UPDATE audit SET event = 'nothing' WHERE seq = 4", 4, "no event"),
        ("UPDATE audit SET hash = '0' WHERE seq = 9", 9, "changed"),
        ("INSERT INTO audit SELECT 0, at_us, node, event, request_id, caller, residency, rule, provider, model, "
         "prompt_bytes, reserved_nano_usd, hash FROM audit WHERE seq = 1", 1, "row 1 is missing: row 0 follows"),
    ],
)  # fmt: skip
def test_rows_taken_out_put_in_or_exchanged_are_noticed(
    database: Database, tmp_path: Path, statement: str, broken_at: int, why: str
) -> None:
    filled(database, 9)
    tampered(tmp_path, statement)
    found = verdict(database)
    assert found.broken_at == broken_at
    assert why in (found.why or "")


def test_a_cut_off_end_is_noticed_with_a_head_that_was_kept(database: Database, tmp_path: Path) -> None:
    early, late = filled(database, 5), filled(database, 4)
    assert verdict(database, early).why is None
    assert verdict(database, late).why is None
    tampered(tmp_path, "DELETE FROM audit WHERE seq > 5")
    assert verdict(database).why is None  # nothing in the chain itself can tell
    assert verdict(database, early).why is None
    found = verdict(database, late)
    assert found.broken_at == 6
    assert "the end is cut off" in (found.why or "")
    with database.committing() as transaction:  # grown again to where it was
        append(transaction, [row(number) for number in range(10, 15)])
    assert "written anew" in (verdict(database, late).why or "")


def test_export_gives_the_rows_of_a_key_a_provider_and_a_time(database: Database) -> None:
    filled(database, 12)

    def exported(choice: Choice) -> list[dict[str, str]]:
        text = io.StringIO()
        with database.reading() as connection:
            count = write_csv(connection, choice, text)
        rows = list(csv.DictReader(io.StringIO(text.getvalue())))
        assert len(rows) == count
        return rows

    assert [each["seq"] for each in exported(Choice())] == [str(number) for number in range(1, 13)]
    assert {each["caller"] for each in exported(Choice(caller="alice"))} == {"alice"}
    assert [each["seq"] for each in exported(Choice(provider="openai"))] == ["3", "6", "9", "12"]
    assert [each["seq"] for each in exported(Choice(event=AuditEvent.REFUSED))] == ["5", "10"]
    fourth = row(4).at_us
    some = exported(Choice(since_us=fourth, until_us=fourth + 120_000_000))
    assert [(each["seq"], each["at"]) for each in some] == [
        ("4", "2027-01-15T08:04:00.000000+00:00"),
        ("5", "2027-01-15T08:05:00.000000+00:00"),
    ]


@pytest.fixture
def command(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    settings = tmp_path / "spillway.yaml"
    settings.write_text(f"store: {{folder: {tmp_path}}}")
    monkeypatch.setenv("SPILLWAY_CONFIG", str(settings))

    def run(*arguments: str) -> tuple[int, str]:
        code = cli.main(["audit", *arguments])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def test_command_verifies_and_says_what_to_keep(
    command: Callable[..., tuple[int, str]], database: Database, tmp_path: Path
) -> None:
    assert command("verify") == (0, f"whole: 0 rows (no rows yet)\nhead: 0:{GENESIS}\n")
    kept = filled(database, 5)
    assert command("verify") == (0, f"whole: 5 rows (4 let_out, 1 refused)\nhead: {kept}\n")
    assert command("verify", "--expect", str(kept))[0] == 0
    tampered(tmp_path, "DELETE FROM audit WHERE seq = 5")
    code, said = command("verify", "--expect", str(kept))
    assert code == 1
    assert said.startswith("BROKEN at row 5: the end is cut off")


def test_command_exports_to_a_file(command: Callable[..., tuple[int, str]], database: Database, tmp_path: Path) -> None:
    filled(database, 3)
    file = tmp_path / "rows.jsonl"
    assert command("export", "--format", "jsonl", "--since", "2027-01-15T08:02", "-o", str(file)) == (
        0,
        f"2 rows in {file}\n",
    )
    assert [json.loads(line)["request_id"] for line in file.read_text().splitlines()] == ["request-2", "request-3"]
    code, said = command("export", "--key", "bob")
    assert (code, said.count("\n")) == (0, 2)


def test_export_includes_the_day_it_ends_with_and_takes_how_long_ago(
    command: Callable[..., tuple[int, str]], database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(database, 3)  # on 2027-01-15
    assert command("export", "--since", "2027-01-15", "--until", "2027-01-15")[1].count("\n") == 4
    assert command("export", "--until", "2027-01-14")[1].count("\n") == 1
    assert command("export", "--since", "9999w", "--until", "2027-01-15")[1].count("\n") == 4
    assert cli.main(["audit", "export", "--since", "soon"]) == 1
    assert "since: expected a day (2026-11-29)" in capsys.readouterr().err


def test_chain_that_was_there_and_is_gone_is_not_taken_for_one_that_never_was(
    command: Callable[..., tuple[int, str]], database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    file = database.place.file
    assert file is not None
    file.unlink()
    assert cli.main(["audit", "verify"]) == 2, "1 is for a broken chain"
    assert "is gone, and what was spent with it" in capsys.readouterr().err


def test_command_says_so_where_nothing_was_ever_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPILLWAY_DATA", str(tmp_path / "nowhere"))
    assert cli.main(["audit", "verify"]) == 2, "1 is for a broken chain"
    assert "no node has recorded anything there yet" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()
