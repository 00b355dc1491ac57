"""The lane as a shell around the admission: whatever is decided reaches whoever waits, and the engine's steps count."""

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from node.routing.policy import Policy
from node.routing.profile import StepModel
from node.routing.values import Decision, Features, Reason, Snapshot, Target
from tests.dispatch.doubles import House, ScriptedBackend, ScriptedEngine, named
from tests.dispatch.virtual_time import in_virtual_time, now_s, settle

PROMPTS_COST = StepModel(base_s=0.01, per_decode_s=0.0, per_prefill_token_s=0.001)
QUICK = StepModel(base_s=0.01, per_decode_s=0.0, per_prefill_token_s=0.0)


@dataclass
class ScriptedPolicy(Policy):
    """Sends the first to the engine and keeps the others waiting, unless told what to say to whom."""

    says: dict[str, Decision] = field(default_factory=dict)

    def decide(self, features: Features, snapshot: Snapshot, now_s: float) -> Decision:
        """What was scripted for the request, in the cloud that is there."""
        told = self.says.get(features.request_id)
        if told is not None:
            return replace(told, cloud=snapshot.cloud[0])
        assert snapshot.engine is not None
        if snapshot.engine.in_flight == 0:
            return Decision(target=Target.LOCAL, reason=Reason.WITHIN_BUDGET)
        cloud, leave_at_s = snapshot.cloud[0], features.arrived_s + 1.5
        return Decision(target=Target.WAIT, reason=Reason.NO_SLOT, cloud=cloud, leave_at_s=leave_at_s, worth=1.0)


def house(engine: ScriptedEngine, policy: ScriptedPolicy | None = None) -> House:
    return House(engine, [ScriptedBackend("cloud")], policy=policy)


async def later(home: House, request: Features) -> asyncio.Task[Decision]:
    placing = asyncio.create_task(home.lane.place(request))
    await settle()
    return placing


@in_virtual_time
async def test_waiter_whose_place_is_taken_is_sent_to_the_cloud_at_once() -> None:
    policy = ScriptedPolicy()
    home = house(ScriptedEngine(slots=1), policy)
    await home.lane.place(named("a"))
    cheap = await later(home, named("cheap"))
    policy.says["dear"] = Decision(
        target=Target.WAIT, reason=Reason.NO_SLOT, leave_at_s=1001.5, worth=2.0, displaces="cheap"
    )
    dear = await later(home, named("dear"))
    decision = await cheap
    assert (decision.target, decision.reason) == (Target.CLOUD, Reason.DISPLACED)
    assert decision.cloud is not None
    assert (now_s(), home.lane.depth, dear.done()) == (1000.0, 1, False)
    dear.cancel()
    await settle()
    assert home.lane.depth == 0


@in_virtual_time
async def test_one_displaced_in_the_tick_it_leaves_is_simply_gone() -> None:
    policy = ScriptedPolicy()
    home = house(ScriptedEngine(slots=1), policy)
    await home.lane.place(named("a"))
    leaving = await later(home, named("leaving"))
    policy.says["b"] = Decision(target=Target.LOCAL, reason=Reason.WITHIN_BUDGET, displaces="leaving")
    leaving.cancel()
    assert (await home.lane.place(named("b"))).target is Target.LOCAL
    await settle()
    assert leaving.cancelled()
    assert (home.lane.depth, home.lane.in_flight) == (0, 2)


@in_virtual_time
async def test_kept_waiter_stays_past_its_last_moment_until_a_slot_opens() -> None:
    policy = ScriptedPolicy()
    home = house(ScriptedEngine(slots=1), policy)
    await home.lane.place(named("a"))
    waiting = await later(home, named("kept"))
    policy.says["kept"] = Decision(target=Target.WAIT, reason=Reason.NO_SLOT)
    await asyncio.sleep(1.9)  # its last safe moment was after 1.5 s
    assert not waiting.done()
    del policy.says["kept"]
    home.lane.release(named("a"))
    assert (await waiting).target is Target.LOCAL
    assert now_s() == pytest.approx(1001.9)


@in_virtual_time
async def test_one_whose_turn_is_predicted_in_time_does_not_leave_at_its_last_moment() -> None:
    home = house(ScriptedEngine(slots=1, step=QUICK, sequences_per_s=20.0))
    await home.lane.place(named("a"))
    waiting = await later(home, named("b"))
    await asyncio.sleep(1.6)
    assert not waiting.done()
    home.lane.release(named("a"))
    assert (await waiting).reason is Reason.SLOT_OPENED


@in_virtual_time
async def test_prompts_handed_over_hold_others_back_until_the_engine_has_moved_on() -> None:
    home = house(ScriptedEngine(slots=4, step=PROMPTS_COST, sequences_per_s=1.0))
    await home.lane.place(replace(named("a"), prompt_tokens_estimate=600))
    waiting = await later(home, named("c"))
    assert not waiting.done()
    home.lane.entered("a")
    assert not waiting.done()
    home.lane.moved_on()
    assert (await waiting).target is Target.LOCAL
    assert now_s() == 1000.0


@in_virtual_time
async def test_engine_that_moves_on_many_times_a_turn_is_looked_at_once() -> None:
    home = house(ScriptedEngine(slots=1))
    assert home.engine is not None
    await home.lane.place(named("a"))
    waiting = await later(home, named("b"))
    before = home.engine.asked
    for _ in range(100):
        home.lane.moved_on()
    await settle()
    assert home.engine.asked == before + 1
    home.lane.moved_on()
    await settle()
    assert home.engine.asked == before + 2
    waiting.cancel()
    await settle()


@in_virtual_time
async def test_engine_that_moves_on_while_nobody_waits_is_not_looked_at() -> None:
    home = house(ScriptedEngine(slots=1))
    assert home.engine is not None
    await home.lane.place(named("a"))
    before = home.engine.asked
    for _ in range(100):
        home.lane.moved_on()
    await settle()
    assert home.engine.asked == before


@in_virtual_time
async def test_slots_given_to_a_whole_row_that_leaves_in_this_tick_come_back() -> None:
    home = House(ScriptedEngine(slots=2), [])
    await home.lane.place(named("wide", choices=2))
    leaving = [await later(home, named(name, arrived_s=1000.0)) for name in "ab"]
    staying = await later(home, named("c", arrived_s=1000.5))
    for each in leaving:
        each.cancel()
    home.lane.release(named("wide", choices=2))
    assert (await staying).target is Target.LOCAL
    assert (home.lane.in_flight, home.lane.depth) == (1, 0)
