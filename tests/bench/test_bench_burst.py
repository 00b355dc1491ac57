from dataclasses import replace
from decimal import Decimal

import _burst
from _harness.load import Record

PLAN = _burst.Plan(bursts=1, requests=200, within_s=5, max_num_seqs=4, cloud_ttft_ms=350, cloud_pace_ms=12, seed=1)
BOOKS = _burst.Books(
    spent_nano_usd=Decimal(4200), billed_nano_usd=4200, calls_billed=3, pinned_logged=0, unpinned_logged=3
)
KEPT = _burst.Answered(
    burst=0,
    pinned=False,
    arrival_s=1.0,
    first_token_s=1.5,
    end_s=2.0,
    backend="holysheep",
    reason="predicted_late",
    model="deepseek-v3.2",
    queue_ms=0.0,
    status=200,
    completion_tokens=48,
    error=None,
)
LATE = replace(KEPT, first_token_s=3.1, end_s=4.0)
PINNED_LATE = replace(LATE, pinned=True, backend="local", reason="pinned")
CUT_OFF = replace(KEPT, error="the stream ended without [DONE]")


def missed(answers: list[_burst.Answered], books: _burst.Books = BOOKS) -> list[str]:
    return [bar.name for bar in _burst.bars(answers, books) if not bar.met]


def test_the_same_seed_gives_the_same_burst_and_another_number_another_one() -> None:
    assert _burst.burst(PLAN, 0) == _burst.burst(PLAN, 0)
    assert _burst.burst(PLAN, 0) != _burst.burst(PLAN, 1)


def test_a_burst_arrives_in_time_with_a_fifth_pinned_and_no_prompt_twice() -> None:
    requests = _burst.burst(PLAN, 0)
    assert len({request.prompt for request in requests}) == 200
    assert all(0 <= request.at_s <= 5 for request in requests)
    assert sum(request.pinned for request in requests) == 40
    assert all((_burst.MARKER in request.prompt) is request.pinned for request in requests)
    assert all((_burst.UNPINNED in request.prompt) is not request.pinned for request in requests)


def test_every_bar_is_met_when_all_promises_were_kept_and_the_books_agree() -> None:
    assert missed([KEPT] * 99 + [LATE, PINNED_LATE]) == []


def test_a_second_late_answer_in_a_hundred_misses_the_bar_in_whichever_burst_it_is() -> None:
    other_burst = [replace(KEPT, burst=1)] * 1000
    assert missed([KEPT] * 98 + [LATE] * 2 + other_burst) == [_burst.bars([], BOOKS)[1].name]


def test_an_answer_cut_off_is_neither_answered_nor_in_time() -> None:
    assert CUT_OFF.ttft_s is None
    assert len(missed([CUT_OFF])) == 2


def test_a_nano_dollar_between_the_books_is_seen() -> None:
    apart = replace(BOOKS, spent_nano_usd=Decimal("4200.5"))
    assert missed([KEPT], apart) == ["the node's spend beside the emulator's bill"]


def test_a_pinned_prompt_in_the_log_is_seen_and_an_empty_log_proves_nothing() -> None:
    assert len(missed([KEPT], replace(BOOKS, pinned_logged=1))) == 1
    assert len(missed([KEPT], replace(BOOKS, unpinned_logged=0))) == 1


def test_an_answer_without_text_has_its_end_for_a_first_token() -> None:
    assert replace(KEPT, first_token_s=None).ttft_s == 1.0


def test_records_are_told_with_the_backend_and_the_reason_of_the_answers_headers() -> None:
    request = _burst.Request(1.0, "What is a token?", pinned=False)
    headers = {"X-Spillway-Backend": "local", "x-spillway-reason": "within_budget", "x-spillway-queue-ms": "2.5"}
    record = Record(0, 1.0, 0.75, 0.25, (), 200, headers, {"completion_tokens": 7}, None)
    (told,) = _burst.answered(0, [request], [record])
    assert (told.backend, told.reason, told.model, told.queue_ms) == ("local", "within_budget", "none", 2.5)
    assert (told.arrival_s, told.first_token_s, told.end_s, told.completion_tokens) == (1.0, 1.25, 1.75, 7)


def test_the_table_keeps_pinned_and_unpinned_apart() -> None:
    shown = _burst.summary([KEPT, LATE, PINNED_LATE])
    assert "| holysheep " in shown
    assert "| local, pinned" in shown
    assert "50.0%" in shown
