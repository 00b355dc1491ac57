"""The script of the demo's day: who asks what, and how much of it."""

import json
import random
from collections import Counter
from itertools import pairwise

from _demo.day import CHAPTERS, FULL_DAY_S, MAY_LEAVE, STAYS, Act, Crowd, Request, arrivals

from node.privacy.content import ContentRules
from node.privacy.detectors import Detector
from node.settings import ContentRulesSettings


def crowd(seed: int = 1) -> list[Request]:
    return Crowd(random.Random(seed)).requests(lambda at_s: 20.0, 60.0)


def texts(request: Request) -> str:
    return json.dumps(request.body["messages"])


def test_the_same_seed_gives_the_same_day_and_another_one_another() -> None:
    assert crowd(1) == crowd(1)
    assert crowd(1) != crowd(2)


def test_every_prompt_says_whether_it_may_leave_and_nothing_of_a_pinned_one_is_repeated_elsewhere() -> None:
    for request in crowd():
        assert (STAYS in texts(request)) is request.pinned
        assert (MAY_LEAVE in texts(request)) is not request.pinned


async def test_the_node_pins_what_the_demo_counts_as_pinned() -> None:
    rules = ContentRules(ContentRulesSettings(detect=(Detector.EMAIL, Detector.IBAN)))
    for request in crowd():
        found = await rules.match(dict(request.body), unreadable=False)
        assert (found is not None or "require_local" in request.body["spillway"]) is request.pinned
        assert (found is not None) is (request.caller == "hr")


def test_all_callers_are_heard_chats_go_on_and_what_is_asked_often_may_come_from_the_cache() -> None:
    requests = crowd()
    callers = Counter(request.caller for request in requests)
    assert callers.keys() == {"chat", "faq", "reports", "hr"}
    assert max(len(request.body["messages"]) for request in requests if request.caller == "chat") > 3
    faq = [request for request in requests if request.caller == "faq"]
    assert len({texts(request) for request in faq}) < 6
    assert {request.body["temperature"] for request in faq} == {0}


def test_arrivals_follow_the_rate() -> None:
    moments = list(arrivals(lambda at_s: 0.0 if at_s < 50 else 40.0, 100.0, random.Random(1)))
    assert all(first <= second for first, second in pairwise(moments))
    assert min(moments) >= 50
    assert 1700 < len(moments) < 2300
    assert list(arrivals(lambda at_s: 0.0, 10.0, random.Random(1))) == []


def test_a_full_day_takes_two_minutes_and_a_short_one_half_a_minute() -> None:
    assert sum(chapter.lasts_s(FULL_DAY_S) for chapter in CHAPTERS) == FULL_DAY_S
    assert sum(chapter.lasts_s(0) for chapter in CHAPTERS) <= 30


def test_the_burst_is_far_too_much_for_the_engine_and_over_at_its_end() -> None:
    burst = next(chapter for chapter in CHAPTERS if chapter.name == "burst")
    assert burst.load_at(0) < 0.5
    assert burst.load_at(0.3) == 3
    assert burst.load_at(1) < 0.5


def test_whatever_fails_in_a_chapter_is_well_again_at_its_end() -> None:
    acts = [event.act for chapter in CHAPTERS for event in chapter.events]
    assert acts.index(Act.PROVIDER_OUT) < acts.index(Act.ALL_OUT) < acts.index(Act.ALL_BACK)
    assert len(acts) == len(set(acts)) == len(Act)
