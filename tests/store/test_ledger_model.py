"""The ledger beside a model of it: two nodes on one SQLite file that admit, end, are killed and start again.

The model is what the rules say (rows, what they count for, limits over calendar windows), and nothing of how the ledger
does it. After every step the file must say the same, row by row.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from sqlalchemy import select, text

from node.audit.chain import verify
from node.dispatch.accounts import Settlement
from node.dispatch.outcome import Ending
from node.money import NO_BUDGET, Budget, Usage
from node.store.database import Database, place_of
from node.store.moments import HOUR_US, moment_of, us_of
from node.store.schema import calls, spend
from tests.store.entries import entry
from tests.store.ledger_process import Admit, End, LedgerProcess, Note, forker

# A second before an hour, a day and a month are over.
BEGIN_US = us_of(datetime(2026, 2, 28, 23, 59, 59, tzinfo=UTC))
pytestmark = pytest.mark.usefixtures("forked")

CALLERS = ("alice", "bob")
NODES = ("here", "there")
Budgets = dict[str | None, Budget]
"""By caller; None: the node's own."""


# The model --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One attempt. `life` is the life of the node that wrote it."""

    caller: str
    life: int
    at_us: int
    reserved: int
    charged: int
    state: str = "dispatched"
    ended_us: int | None = None
    estimated: bool = False


def limits(budget: Budget, now_us: int) -> Iterator[tuple[int, int]]:
    """When each limited window began, and its limit."""
    hour = moment_of(now_us).replace(minute=0, second=0, microsecond=0)
    day = hour.replace(hour=0)
    begun = (hour, budget.hour_nano_usd), (day, budget.day_nano_usd), (day.replace(day=1), budget.month_nano_usd)
    return ((us_of(since), limit) for since, limit in begun if limit is not None)


@dataclass
class Model:
    """All there is to know. `now_us` is the latest that each life has seen: its clock never goes back."""

    rows: dict[str, Row] = field(default_factory=dict)
    now_us: dict[int, int] = field(default_factory=dict)
    let_out: int = 0
    refused: int = 0

    def start(self, life: int, living: set[int], wall_us: int) -> None:
        for key, row in self.rows.items():
            if row.state == "dispatched" and row.life not in living:
                self.rows[key] = replace(row, state="orphaned", ended_us=wall_us)
        self.now_us[life] = max([wall_us, *(row.at_us for row in self.rows.values())])

    def spent(self, caller: str | None, since_us: int) -> int:
        counted = (row for row in self.rows.values() if caller in (None, row.caller) and row.at_us >= since_us)
        return sum(row.charged for row in counted)

    def over(self, key: str, budgets: Budgets, now_us: int, more: int = 0) -> bool:
        return any(
            self.spent(caller, since_us) + more > limit
            for caller in (key, None)
            for since_us, limit in limits(budgets[caller], now_us)
        )

    def admit(self, life: int, name: str, key: str, cost: int, budgets: Budgets, wall_us: int) -> str | None:
        now_us = self.now_us[life] = max(self.now_us[life], wall_us)
        if self.over(key, budgets, now_us, cost):
            self.refused += 1
            return "BudgetSpent"
        self.let_out += 1
        self.rows[name] = Row(key, life, now_us, cost, cost)
        return None

    def end(self, name: str, state: str, charged: int, estimated: bool, wall_us: int) -> None:
        row = self.rows[name]
        self.now_us[row.life] = max(self.now_us[row.life], wall_us)
        if row.state == "dispatched":
            self.rows[name] = replace(row, state=state, charged=charged, estimated=estimated, ended_us=wall_us)


# The machine ------------------------------------------------------------------------------------------------------

callers = st.sampled_from(CALLERS)
nodes = st.sampled_from(NODES)
costs = st.integers(0, 6)
rooms = st.none() | st.sampled_from([4, 8, 12, 20])
budgets = st.builds(Budget, hour_nano_usd=rooms, day_nano_usd=rooms, month_nano_usd=rooms)
jumps = st.sampled_from(
    [
        *(timedelta(seconds=1), timedelta(minutes=31), timedelta(hours=1), timedelta(days=1), timedelta(days=29)),
        *(-timedelta(minutes=31), -timedelta(hours=1), -timedelta(days=1), -timedelta(days=40)),
    ]
)


class Ledgers(RuleBasedStateMachine):
    """`unsure` are those that have ended and may not be written yet, as they were before: a kill may lose their end."""

    forker: ClassVar[Path]

    @initialize(of_key=budgets, of_node=budgets)
    def begin(self, of_key: Budget, of_node: Budget) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.model = Model()
        self.budgets: Budgets = {"alice": of_key, "bob": NO_BUDGET, None: of_node}
        self.wall_us = BEGIN_US
        self.running: dict[str, tuple[int, LedgerProcess]] = {}
        self.lives = 0
        self.names = 0
        self.unsure: dict[str, Row | None] = {}
        self.over: dict[str, Any] = {}
        self.reader = Database(place_of(Path(self.folder.name), None))
        self.start("here")

    @rule(name=nodes)
    def start(self, name: str) -> None:
        if name in self.running:
            return
        self.wait_for_the_unsure()
        living = {life for life, _ in self.running.values()}
        self.lives += 1
        self.running[name] = self.lives, LedgerProcess(self.forker, Path(self.folder.name), self.wall_us)
        self.reader.open_beside()
        self.find_out(living)
        self.model.start(self.lives, living, self.wall_us)
        self.compare()

    @rule(name=nodes, asked=st.lists(st.tuples(callers, costs), min_size=1, max_size=6))
    def admit(self, name: str, asked: list[tuple[str, int]]) -> None:
        life, process = self.of(name)
        self.wait_for_the_unsure(but_of=life)  # they make room, once they are written; its own are written with this
        expected = []
        entries = []
        for caller, cost in asked:
            self.names += 1
            new = entry(self.names, caller=caller, nano_usd=cost)
            entries.append((new, self.budgets[caller]))
            expected.append(self.model.admit(life, new.id, caller, cost, self.budgets, self.wall_us))
        told = process.order(Admit(entries, self.budgets[None]), self.wall_us)
        assert told == expected
        self.unsure.clear()
        self.compare()
        for (caller, _), refusal in zip(asked, told, strict=True):
            assert refusal is not None or not self.model.over(caller, self.budgets, self.model.now_us[life])

    @precondition(lambda self: self.model.rows)
    @rule(which=st.integers(0), cost=costs, estimated=st.booleans(), released=st.booleans())
    def end(self, which: int, cost: int, estimated: bool, released: bool) -> None:
        """Also one that has ended already, or been orphaned: then nothing changes."""
        name = list(self.model.rows)[which % len(self.model.rows)]
        before = self.model.rows[name]
        running = [process for life, process in self.running.values() if life == before.life]
        if not running:
            running = [process for _, process in self.running.values()]
            if before.state == "dispatched":
                return  # of a dead node, and nobody has found out yet
        usage = None if released else Usage(3, cost, estimated=estimated)  # cut off: what was delivered is counted here
        ending = Ending.CLIENT_CLOSED if estimated else Ending.DONE
        settlement = Settlement(charged_nano_usd=cost, ending=ending, usage=usage)
        running[0].order(End(name, settlement, released), self.wall_us)
        state, cost, estimated = ("released", 0, False) if released else ("settled", cost, estimated)
        self.model.end(name, state, cost, estimated, self.wall_us)
        if before.state == "dispatched":
            self.unsure[name] = before
        self.compare()

    @rule(name=nodes, caller=callers)
    def note(self, name: str, caller: str) -> None:
        life, process = self.of(name)
        self.names += 1
        new = entry(self.names, caller=caller, nano_usd=0)
        process.order(Note(new, Settlement(charged_nano_usd=0, ending=Ending.DONE)), self.wall_us)
        self.model.rows[new.id] = Row(caller, life, self.wall_us, 0, 0, "settled", self.wall_us)
        self.model.now_us[life] = max(self.model.now_us[life], self.wall_us)
        self.unsure[new.id] = None

    @rule(name=nodes)
    def kill(self, name: str) -> None:
        if name in self.running:
            self.reader.close()  # or it would keep what a node that starts has to recover
            self.running.pop(name)[1].kill()
            self.one_is_left(name)

    @rule(name=nodes)
    def stop(self, name: str) -> None:
        if name in self.running:
            life, process = self.running.pop(name)
            self.reader.close()
            process.close()
            for each in [each for each in self.unsure if self.model.rows[each].life == life]:
                del self.unsure[each]
            self.one_is_left(name)

    def one_is_left(self, name: str) -> None:
        if not self.running:
            self.start(name)
        self.reader.open_beside()
        self.find_out({life for life, _ in self.running.values()})
        self.compare()

    @rule(by=jumps)
    def clock_moves(self, by: timedelta) -> None:
        self.wait_for_the_unsure()
        self.wall_us += by // timedelta(microseconds=1)

    @rule(whose=st.sampled_from([*CALLERS, None]), budget=budgets)
    def budget_changes(self, whose: str | None, budget: Budget) -> None:
        self.budgets[whose] = budget

    # What the file says -------------------------------------------------------------------------------------------

    def of(self, name: str) -> tuple[int, LedgerProcess]:
        return self.running.get(name) or next(iter(self.running.values()))

    def written(self) -> dict[str, Any]:
        with self.reader.reading() as connection:
            return {row.id: row for row in connection.execute(select(calls))}

    def wait_for_the_unsure(self, but_of: int | None = None) -> None:
        """Until what has ended at the running nodes, `but_of` left out, is written."""
        lives = {life for life, _ in self.running.values()} - {but_of}
        waiting = {name for name in self.unsure if self.model.rows[name].life in lives}
        give_up_s = time.monotonic() + 20
        while waiting:
            rows = self.written()
            for name in [name for name in waiting if name in rows and rows[name].state != "dispatched"]:
                waiting.discard(name)
                del self.unsure[name]
            assert time.monotonic() < give_up_s, waiting
            time.sleep(0.02)

    def find_out(self, living: set[int]) -> None:
        """What became of those that had just ended when their node was killed."""
        rows = self.written()
        for name in [name for name in self.unsure if self.model.rows[name].life not in living]:
            before = self.unsure.pop(name)
            if name not in rows and before is None:
                del self.model.rows[name]
            elif rows[name].state != self.model.rows[name].state and before is not None:
                self.model.rows[name] = before

    def compare(self) -> None:
        with self.reader.reading() as connection:
            rows = {row.id: row for row in connection.execute(select(calls)) if row.id not in self.unsure}
            kept = {(row.caller, row.hour): row.nano_usd for row in connection.execute(select(spend)) if row.nano_usd}
            verdict = verify(connection)
        expected = {name: row for name, row in self.model.rows.items() if name not in self.unsure}
        assert {name: facts(row) for name, row in rows.items()} == {
            name: of_model(row) for name, row in expected.items()
        }
        assert verdict.why is None
        events = verdict.events.get("let_out", 0), verdict.events.get("refused", 0)
        assert events == (self.model.let_out, self.model.refused)
        if not self.unsure:
            summed: dict[tuple[str, int], int] = {}
            for row in rows.values():
                key = row.caller, row.at_us // HOUR_US
                summed[key] = summed.get(key, 0) + row.charged_nano_usd
            assert kept == {key: nano_usd for key, nano_usd in summed.items() if nano_usd}
        for name, row in self.over.items():
            assert rows[name] == row  # nothing of a row ever changes once it has ended
        self.over = {name: row for name, row in rows.items() if row.state != "dispatched"}

    def teardown(self) -> None:
        if not hasattr(self, "folder"):
            return
        self.reader.close()
        for _, process in self.running.values():
            process.kill()
        self.reader.open()
        with self.reader.reading() as connection:
            assert connection.scalar(text("PRAGMA integrity_check")) == "ok"
        self.reader.close()
        self.folder.cleanup()


def facts(row: Any) -> tuple[Any, ...]:
    money = row.reserved_nano_usd, row.charged_nano_usd
    return row.caller, row.at_us, row.hour, *money, row.state, row.ended_us, bool(row.estimated)


def of_model(row: Row) -> tuple[Any, ...]:
    money = row.reserved, row.charged
    return row.caller, row.at_us, row.at_us // HOUR_US, *money, row.state, row.ended_us, row.estimated


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with forker(tmp_path_factory.mktemp("forker")) as Ledgers.forker:
        yield


TestLedger = Ledgers.TestCase
TestLedger.settings = settings(max_examples=30, stateful_step_count=25, suppress_health_check=[HealthCheck.too_slow])
