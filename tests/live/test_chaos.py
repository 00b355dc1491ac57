"""A short `scripts/bench/faults`: three providers that fail in every way, and an engine that is killed meanwhile."""

from pathlib import Path

import pytest
from _faults_campaign import asked_again, campaign
from _faults_clients import HERE
from _faults_setup import world

from node.emulator.switches import Switch

pytestmark = pytest.mark.engine


async def test_whatever_fails_every_answer_is_right_or_a_clear_error_and_nothing_is_left(tmp_path: Path) -> None:
    async with world(tmp_path, seed=4) as made:
        node = made.node
        before, old = await node.footprint(), node.engine()
        told = await campaign(made, seed=4, count=900, kills=1)
        await node.engine_ready(HERE, 600.0)
        afterwards = await asked_again(made, count=24, tries=10)
        after = await node.footprint_at_rest(before, within_s=60.0)
        life = await node.supervision(HERE)
    assert told.wrong == {}, told.examples[:3]
    assert told.switches > len(Switch) / 2, "else little was tried"
    # How many are refused depends on how many are sent while nobody can answer: of the others, most come whole.
    assert told.whole > (told.requests - told.refused) * 2 / 3
    assert [each for each in afterwards if not each.whole] == []
    assert told.attempts_per_request is not None
    assert told.attempts_per_request <= 1.2
    assert after.beyond(before) == {}
    assert (life["deaths"], life["hangs"], life["starts"]) == (1, 0, 2)
    assert [process for process in old if process.find()] == []
