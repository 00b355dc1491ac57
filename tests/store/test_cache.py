"""The answer cache: the same question gets the same answer, nobody else's, and not for ever."""

from dataclasses import replace

import pytest

from node.backend import Call, Kind
from node.money import Usage
from node.routing.values import Residency
from node.store.cache import CachedAnswer, MemoryCache, cache_key

CALL = Call(
    request_id="r1",
    kind=Kind.CHAT,
    model="demo",
    body={"messages": [{"role": "user", "content": "Grüße"}], "temperature": 0},
    stream=False,
    include_usage=False,
    max_output_tokens=10,
    created_s=1,
    tenant="a",
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def answer(data: bytes = b"x" * 10) -> CachedAnswer:
    return CachedAnswer(data, "chatcmpl-r1", "0.0", "demo", Usage(1, 1))


def cache(clock: Clock | None = None, *, max_bytes: int = 30, max_entry_bytes: int = 20) -> MemoryCache:
    return MemoryCache(max_bytes=max_bytes, max_entry_bytes=max_entry_bytes, ttl_s=60, clock=clock or Clock())


def test_answer_is_there_until_it_is_too_old() -> None:
    clock = Clock()
    kept = cache(clock)
    kept.put(b"k", answer())
    clock.now_s = 59.9
    assert kept.get(b"k") == answer()
    clock.now_s = 60
    assert kept.get(b"k") is None
    assert (len(kept), kept.used_bytes) == (0, 0)


def test_reading_an_answer_does_not_make_it_younger() -> None:
    clock = Clock()
    kept = cache(clock)
    kept.put(b"k", answer())
    clock.now_s = 50
    kept.get(b"k")
    clock.now_s = 61
    assert kept.get(b"k") is None


def test_least_recently_used_goes_first() -> None:
    kept = cache()
    for key in (b"a", b"b", b"c"):
        kept.put(key, answer())
    kept.get(b"a")
    kept.put(b"d", answer())
    assert [key for key in (b"a", b"b", b"c", b"d") if kept.get(key)] == [b"a", b"c", b"d"]
    assert kept.used_bytes == 30


def test_one_answer_over_the_limit_is_not_kept_and_drives_nobody_out() -> None:
    kept = cache()
    kept.put(b"a", answer())
    kept.put(b"b", answer(b"x" * 21))
    assert (kept.get(b"a"), kept.get(b"b")) == (answer(), None)


def test_newer_answer_takes_the_place_of_the_old_one() -> None:
    kept = cache()
    kept.put(b"a", answer())
    kept.put(b"a", answer(b"y"))
    assert (kept.get(b"a"), len(kept), kept.used_bytes) == (answer(b"y"), 1, 1)


def test_cache_of_no_bytes_keeps_nothing() -> None:
    kept = cache(max_bytes=0)
    kept.put(b"a", answer())
    assert kept.get(b"a") is None


def test_kept_answer_is_given_under_the_callers_own_id_and_for_nothing() -> None:
    data = b'{"id":"chatcmpl-r1","text":"\\"cost_usd\\":0.000042","usage":{"cost_usd":0.000042}}'
    kept = CachedAnswer(data, "chatcmpl-r1", "0.000042", "demo", Usage(1, 1))
    assert kept.as_answer_to(replace(CALL, request_id="r2")) == (
        b'{"id":"chatcmpl-r2","text":"\\"cost_usd\\":0.000042","usage":{"cost_usd":0.0}}'
    )


def test_same_question_has_the_same_key_whatever_the_order_of_its_fields() -> None:
    turned = replace(CALL, request_id="r2", created_s=2, body=dict(reversed(CALL.body.items())))
    assert cache_key(CALL, Residency.ANY) == cache_key(turned, Residency.ANY)


@pytest.mark.parametrize(
    "other",
    [
        replace(CALL, tenant="b"),
        replace(CALL, model="other"),
        replace(CALL, kind=Kind.COMPLETION),
        replace(CALL, stream=True),
        replace(CALL, include_usage=True),
        replace(CALL, body={**CALL.body, "temperature": 0.5}),
        replace(CALL, body={**CALL.body, "seed": 1}),
        replace(CALL, body={"messages": [{"role": "user", "content": "Grusse"}], "temperature": 0}),
    ],
)
def test_any_difference_is_another_question(other: Call) -> None:
    assert cache_key(CALL, Residency.ANY) != cache_key(other, Residency.ANY)


def test_pinned_question_is_never_that_of_one_who_may_leave() -> None:
    assert cache_key(CALL, Residency.ANY) != cache_key(CALL, Residency.PREMISES)


def test_text_that_is_no_valid_unicode_has_a_key_too() -> None:
    assert len(cache_key(replace(CALL, body={"prompt": "\ud800"}), Residency.ANY)) == 32
