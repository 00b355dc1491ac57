"""What finished answers teach about the next request of the same caller."""

from __future__ import annotations

from dataclasses import replace

import pytest

from node.dispatch.experience import Experience
from node.dispatch.outcome import Ending, Outcome
from node.money import Usage
from tests.outcomes import SERVED_HERE

DONE = replace(SERVED_HERE, tenant="t", ttft_s=0.1, prompt_bytes=1000, usage=Usage(500, 40, cached_tokens=250))


def taught(outcome: Outcome, times: int = 200) -> Experience:
    experience = Experience()
    for _ in range(times):
        experience.learn(outcome)
    return experience


def test_nothing_learned_means_four_bytes_a_token_and_an_empty_cache() -> None:
    fresh = Experience()
    assert (fresh.prompt_tokens(1000), fresh.cached_tokens("t", 250)) == (250, 0)
    assert fresh.output_tokens("t", 16) == 16


def test_local_answers_teach_prompt_size_length_and_the_share_in_the_prefix_cache() -> None:
    experience = taught(DONE)
    assert experience.prompt_tokens(1000) == pytest.approx(500, abs=1)
    assert experience.cached_tokens("t", 300) == pytest.approx(150, abs=1)
    assert experience.output_tokens("t", 1000) == pytest.approx(40)
    assert experience.output_tokens("t", 30) == 30


def test_cache_is_the_callers_own_and_length_is_somewhat_everybodys() -> None:
    experience = taught(DONE)
    assert experience.cached_tokens("other", 300) == 0
    assert experience.output_tokens("other", 1000) == pytest.approx(40)


def test_each_choice_is_an_answer_of_its_own() -> None:
    experience = taught(replace(DONE, choices=4))
    assert experience.output_tokens("t", 1000) == pytest.approx(10)


def test_clouds_answers_say_nothing_about_the_cache_here() -> None:
    experience = taught(replace(DONE, backend="holysheep"))
    assert experience.cached_tokens("t", 300) == 0
    assert experience.output_tokens("t", 1000) == pytest.approx(40)


@pytest.mark.parametrize(
    "outcome",
    [
        replace(DONE, ending=Ending.CLIENT_CLOSED),
        replace(DONE, ending=Ending.FAILED),
        replace(DONE, usage=None),
        replace(DONE, usage=Usage(500, 40, estimated=True)),
        replace(DONE, backend="cache"),
    ],
    ids=["cut by the client", "failed", "refused", "estimated", "from memory"],
)
def test_what_was_cut_estimated_or_remembered_teaches_nothing(outcome: Outcome) -> None:
    experience = taught(outcome)
    assert (experience.prompt_tokens(1000), experience.cached_tokens("t", 300)) == (250, 0)
    assert experience.output_tokens("t", 1000) == 256
