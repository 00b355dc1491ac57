"""What an answer tells of the predictions made for it: how much later its first content came, and since when."""

import asyncio
from dataclasses import dataclass

import pytest

from node.routing.policy import Policy
from node.routing.values import Decision, Features, Reason, Snapshot, Target
from tests.dispatch.doubles import END, HELLO, ROLE, WHOLE, House, ScriptedBackend, ScriptedEngine, named, read
from tests.dispatch.virtual_time import in_virtual_time


@dataclass
class Predicting(Policy):
    """Waits while the engine is busy, and always expects a first token 0.3 s later."""

    def decide(self, features: Features, snapshot: Snapshot, now_s: float) -> Decision:
        """See the class."""
        assert snapshot.engine is not None
        target, reason = Target.LOCAL, Reason.WITHIN_BUDGET
        if snapshot.engine.in_flight:
            target, reason = Target.WAIT, Reason.NO_SLOT
        return Decision(target=target, reason=reason, predicted_ttft_s=0.3)


def house(*script: object) -> House:
    return House(ScriptedEngine(ScriptedBackend("local", script), slots=1), policy=Predicting())  # type: ignore[arg-type]


@in_virtual_time
async def test_first_content_later_than_predicted_is_told_by_how_much() -> None:
    home = house(0.1, ROLE, 0.4, HELLO, 5.0, END)
    await read(await home.answer())
    (only,) = home.outcome.foreseen
    assert (only.predicted_s, only.queued) == (0.3, False)
    assert only.took_s == pytest.approx(0.5)


@in_virtual_time
async def test_wait_is_not_part_of_what_was_predicted_when_it_ended() -> None:
    home = house(0.2, *WHOLE)
    first = await home.answer()

    second = asyncio.create_task(home.answer(named("second")))
    await asyncio.sleep(1.0)
    await read(first)
    await read(await second)
    outcome = home.outcomes[1]
    assert outcome.ttft_s == pytest.approx(1.4)
    at_the_hand_over, waiting = outcome.foreseen
    assert not at_the_hand_over.queued
    assert at_the_hand_over.took_s == pytest.approx(0.2)
    # When it began to wait, at 0.2 s, its first token was expected 0.3 s later; it came at 1.4 s.
    assert (waiting.predicted_s, waiting.queued) == (0.3, True)
    assert waiting.took_s == pytest.approx(1.2)


@in_virtual_time
async def test_answer_that_is_not_streamed_says_nothing_about_first_tokens() -> None:
    home = house(0.5, *WHOLE)
    await read(await home.answer(stream=False))
    assert (home.outcome.foreseen, home.outcome.ttft_s) == ((), None)
