"""Supervising a scripted engine, in virtual seconds."""

import asyncio
import random
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import pytest

from node.backend import Call, Kind
from node.catalogue import LocalModel
from node.errors import EngineDied, EngineUnavailable, RequestQuarantined, SettingsError, SpillwayError
from node.local.processes import EngineProcess
from node.local.supervision import Rules
from node.local.supervisor import Supervisor, Surroundings
from node.local.work import Work
from node.routing.values import EngineLoad, EngineState
from tests.dispatch.virtual_time import in_virtual_time, now_s

MODEL = LocalModel(source="demo", revision=None, context_tokens=4096, capabilities=frozenset())
START_S = 20.0
STATES_SEEN = list[tuple[float, EngineState]]


class ScriptedEngine:
    """Starts in 20 s or fails, makes a step whenever it is asked how many it has made, and dies when told to."""

    def __init__(self, number: int, fails: SpillwayError | None, on_state: Callable[[EngineState], None]) -> None:
        self.number = number
        self.processes = frozenset({EngineProcess(number, number)})
        self.state = EngineState.STARTING
        self.has_work = False
        self.hangs = False
        self.killed = self.stopped = False
        self.grace_s: float | None = None
        self.probes = 0
        self.work = Work(now_s)
        self._fails = fails
        self._on_state = on_state
        self._steps = 0

    @property
    def steps(self) -> int:
        if self.has_work and not self.hangs:
            self._steps += 1
        return self._steps

    async def start(self) -> None:
        await asyncio.sleep(START_S)
        if self._fails is not None:
            raise self._fails
        self._enter(EngineState.READY)

    def died(self) -> None:
        self._enter(EngineState.DOWN)

    async def kill(self) -> None:
        self.killed = True

    async def stop(self, grace_s: float) -> None:
        self.stopped, self.grace_s = True, grace_s
        self._enter(EngineState.DOWN)

    async def probe(self) -> None:
        self.probes += 1
        self.has_work = True
        await asyncio.sleep(1e6)

    def load(self, in_flight: int) -> EngineLoad:
        return EngineLoad(state=self.state, capabilities=frozenset(), context_tokens=4096, max_sequences=8)

    def serving(self) -> Any:
        raise EngineDied("dead")

    def _enter(self, state: EngineState) -> None:
        self.state = state
        self._on_state(state)


@dataclass
class House:
    """A supervisor of scripted engines. `fails` says how the start of the n-th goes; `lacking` what memory it lacks."""

    rules: Rules = field(default_factory=Rules)
    fails: Callable[[int], SpillwayError | None] = lambda number: None
    lacking: list[str] = field(default_factory=list)
    disk_is_full: bool = False
    engines: list[ScriptedEngine] = field(default_factory=list)
    notes: list[frozenset[EngineProcess]] = field(default_factory=list)
    seen: STATES_SEEN = field(default_factory=list)

    def __post_init__(self) -> None:
        self.supervisor = Supervisor(
            "demo",
            MODEL,
            self.rules,
            Surroundings(
                build=self._build,
                memory=self._memory,
                note=self._note,
                on_change=lambda: self.seen.append((round(now_s() - 1000.0), self.supervisor.state)),
                clock=now_s,
                patience_s=lambda: 60.0,
                rng=random.Random(4),
            ),
        )
        self.task = asyncio.create_task(self.supervisor.run())

    @property
    def engine(self) -> ScriptedEngine:
        return self.engines[-1]

    @property
    def shown(self) -> EngineState:
        return self.supervisor.load(0).state

    async def until(self, state: EngineState) -> None:
        while self.supervisor.state is not state:  # noqa: ASYNC110 - virtual seconds cost nothing
            await asyncio.sleep(0.05)

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.supervisor.stop(4.0)
        assert all(engine.stopped for engine in self.engines)
        assert self.notes[-1] == frozenset()

    def _build(self, on_state: Callable[[EngineState], None]) -> Any:
        number = len(self.engines) + 1
        self.engines.append(ScriptedEngine(number, self.fails(number), on_state))
        return self.engines[-1]

    async def _memory(self) -> None:
        if self.lacking:
            raise EngineUnavailable(self.lacking.pop())

    async def _note(self, processes: frozenset[EngineProcess]) -> None:
        self.notes.append(processes)
        if self.disk_is_full:
            raise OSError("no space left on device")


def call(text: str = "hello") -> Call:
    return Call(
        request_id="r",
        kind=Kind.COMPLETION,
        model="demo",
        body={"prompt": text},
        stream=True,
        include_usage=False,
        max_output_tokens=4,
        created_s=0,
        tenant="t",
    )


async def ask(house: House, text: str = "hello") -> None:
    async with aclosing(house.supervisor.backend().open(call(text))) as chunks:
        async for _ in chunks:
            pass


@in_virtual_time
async def test_an_engine_that_dies_is_replaced_by_another() -> None:
    house = House()
    await house.until(EngineState.READY)
    first = house.engine
    assert house.notes == [first.processes]
    first.died()
    shown = [house.shown]
    await house.until(EngineState.DOWN)
    shown.append(house.shown)
    # Not given a request even in the moment before its death is acted on; then what cannot leave waits for the next.
    assert shown == [EngineState.SUSPECT, EngineState.STARTING]
    await house.until(EngineState.READY)
    assert first.stopped
    assert house.engine.number == 2
    assert [state for _, state in house.seen] == [
        EngineState.READY,
        EngineState.DOWN,
        EngineState.STARTING,
        EngineState.READY,
    ]
    assert house.seen[-1][0] - house.seen[0][0] <= START_S + 5.0
    assert house.supervisor.load(0).max_sequences == 1, "its slots come back one after the other"
    await asyncio.sleep(5.1)
    assert house.supervisor.load(0).max_sequences == 8
    await house.end()


@in_virtual_time
async def test_row_61_hang_is_suspected_probed_killed_and_replaced() -> None:
    house = House(Rules(fresh_s=0.0))
    await house.until(EngineState.READY)
    hung = house.engine
    hung.hangs = hung.has_work = True
    await house.until(EngineState.SUSPECT)
    assert house.seen[-1][0] - house.seen[0][0] <= 12
    assert house.shown is EngineState.SUSPECT
    await house.until(EngineState.DOWN)
    assert house.seen[-1][0] - house.seen[0][0] <= 60 + 5
    await house.until(EngineState.READY)
    assert (hung.probes, hung.killed, hung.stopped) == (1, True, True)
    assert house.supervisor.document()["hangs"] == 1
    assert "made no step for 6" in house.supervisor.document()["why"]
    await house.end()


@in_virtual_time
async def test_engine_that_is_left_by_its_callers_under_suspicion_is_asked_for_a_token() -> None:
    house = House(Rules(fresh_s=0.0))
    await house.until(EngineState.READY)
    house.engine.hangs = house.engine.has_work = True
    await house.until(EngineState.SUSPECT)
    house.engine.hangs = False  # and the probe is work enough for a step
    await house.until(EngineState.READY)
    assert (len(house.engines), house.engine.probes) == (1, 1)
    assert house.supervisor.supervision.deaths == 0
    await house.end()


@in_virtual_time
async def test_row_62_crash_loop_ends_in_cloud_only_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    house = House(fails=lambda number: EngineUnavailable(f"failure {number}"))
    await house.task
    assert len(house.engines) == 6
    document = house.supervisor.document()
    assert (document["state"], document["given_up"], document["deaths"]) == ("down", True, 6)
    assert document["why"] == "failure 6"
    assert house.shown is EngineState.DOWN, "so that what cannot leave is refused at once"
    assert house.supervisor.retry_after_s() == 60.0
    assert "GIVEN UP" in caplog.text
    await house.end()


@in_virtual_time
async def test_settings_that_are_wrong_are_not_tried_again() -> None:
    house = House(fails=lambda number: SettingsError("no such argument"))
    await house.task
    assert len(house.engines) == 1
    assert house.supervisor.document()["given_up"]
    await house.end()


@in_virtual_time
async def test_settings_that_have_worked_before_are_tried_again() -> None:
    house = House(fails=lambda number: SettingsError("no memory left for the KV cache") if number == 2 else None)
    await house.until(EngineState.READY)
    house.engine.died()
    await house.until(EngineState.DOWN)
    await house.until(EngineState.READY)
    assert house.engine.number == 3
    await house.end()


@in_virtual_time
async def test_row_63_too_little_memory_is_an_error_that_names_it_and_another_try_later() -> None:
    house = House(lacking=["GPU 0 has 3.0 of 80.0 GiB free"])
    await house.until(EngineState.DOWN)
    assert house.supervisor.document()["why"] == "GPU 0 has 3.0 of 80.0 GiB free"
    assert house.engine.state is EngineState.DOWN, "it was never begun"
    await house.until(EngineState.READY)
    await house.end()


@in_virtual_time
async def test_row_66_request_that_runs_at_two_deaths_is_quarantined() -> None:
    house = House()
    for _ in range(2):
        await house.until(EngineState.READY)
        with pytest.raises(EngineDied) as died:
            await ask(house, "poison")
        assert died.value.retry_after_s == pytest.approx(START_S)
        await asyncio.sleep(0.1)
    await house.until(EngineState.READY)
    with pytest.raises(RequestQuarantined):
        await ask(house, "poison")
    assert house.supervisor.state is EngineState.READY
    assert house.supervisor.document()["requests_under_suspicion"] == 1
    await house.end()


@in_virtual_time
async def test_stopping_ends_a_start_and_a_pause_alike() -> None:
    house = House()
    await asyncio.sleep(1.0)
    await house.end()
    assert house.engine.grace_s == 4.0
    house = House(fails=lambda number: EngineUnavailable("never"), rules=Rules(first_pause_s=1e4, longest_pause_s=1e4))
    await house.until(EngineState.DOWN)
    await house.end()


@in_virtual_time
async def test_processes_that_cannot_be_noted_keep_no_engine_from_serving(caplog: pytest.LogCaptureFixture) -> None:
    house = House(disk_is_full=True)
    await house.until(EngineState.READY)
    assert "no space left on device" in caplog.text
    await house.end()
