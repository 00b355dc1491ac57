"""The demo's report and its promises."""

import json
from dataclasses import replace

from _demo.books import Account, Bill, Books
from _demo.report import Seen, document, examples, promises, text
from _demo.told import Change, End, Told

LOCAL = Told("calm", "hr", True, 1.0, 3.0, End.WHOLE, 0.4, 0.1, "local", "content_rule", 0.0, 200, request_id="id-1")
LEFT = Told(
    "burst", "chat", False, 20.0, 1.0, End.WHOLE, 0.9, 0.7, "holysheep", "last_moment", 0.4, 200, cost_nano_usd=31_000
)
REFUSED = Told(
    "burst", "chat", False, 24.0, 1.0, End.REFUSED, 1.0, None, None, "budget_spent", 1.0, 429, "insufficient_quota"
)
BOOKS = Books(
    accounts=(Account("holysheep", 93_000, 93_000, 3, 1), Account("openai", 0, 0, 0, 0)),
    bills=(Bill("chat", 4, 93_000, 93_000), Bill("hr", 1, 0, 31_000)),
    stayed_heard=0,
    others_heard=3,
    estimated=0,
)
SEEN = Seen(
    told=[LOCAL, LEFT, replace(LEFT, at_s=21.0), replace(LEFT, at_s=22.0), REFUSED],
    chapters={"calm": (0.0, 15.0), "burst": (15.0, 50.0)},
    engine=[Change(-20.0, "starting"), Change(-2.0, "ready"), Change(21.1, "down", "died"), Change(45.0, "ready")],
    breakers={"holysheep": [Change(-20.0, "closed"), Change(30.0, "open"), Change(33.0, "closed")], "openai": []},
    books=BOOKS,
    lasted_s=60.0,
    ended_early=False,
)


def missed(seen: Seen) -> list[str]:
    return [bar.name for bar in promises(seen) if not bar.met]


def test_all_promises_are_kept_on_a_good_day_refusals_and_broken_streams_included() -> None:
    assert missed(SEEN) == []
    assert missed(replace(SEEN, told=[*SEEN.told, replace(LOCAL, end=End.BROKEN)])) == []


def test_each_promise_that_is_broken_is_named() -> None:
    def with_books(**changes: object) -> Seen:
        return replace(SEEN, books=replace(BOOKS, **changes))  # type: ignore[arg-type]

    apart = (Account("holysheep", 93_000, 92_999, 3, 1), Account("openai", 0, 1, 1, 0))
    broken = [
        with_books(stayed_heard=1),
        with_books(others_heard=0),
        with_books(accounts=apart),
        *(replace(SEEN, told=[*SEEN.told, replace(LOCAL, end=end)]) for end in (End.HUNG, End.LOST, End.SILENT)),
    ]
    assert [len(missed(seen)) for seen in broken] == [1] * 6
    assert next(bar.measured for bar in promises(with_books(accounts=apart)) if not bar.met) == 2


def test_what_ending_early_alone_may_have_caused_breaks_no_promise() -> None:
    cut = replace(LEFT, end=End.CUT, backend=None, reason=None)
    books = replace(BOOKS, others_heard=0, accounts=(Account("holysheep", 5, 9, 3, 0),))
    assert missed(replace(SEEN, ended_early=True, told=[LOCAL, cut], books=books)) == []


def test_report_tells_the_day() -> None:
    shown = text(SEEN)
    for part in (
        "| holysheep: last_moment |",
        "Overflow open from 0:20 to 0:22: 3 requests left",
        "Engine away from 0:21 for 23.9 s. Of 3 requests open then the cloud answered 2",
        "Breaker of holysheep: once open, first at 0:30, closed again at 0:33.",
        "Spent $0.000093000; all of it in the cloud would have cost $0.000124000, 25% less.",
    ):
        assert part in " ".join(shown.split()), part


def test_document_is_json_and_counts_by_chapter() -> None:
    found = json.loads(json.dumps(document(SEEN)))
    calm, burst = found["chapters"]
    assert (calm["answered_by"], burst["answered_by"]) == ({"local": 1}, {"cloud": 3, "nobody": 1})
    assert burst["reasons"] == {"last_moment": 3, "budget_spent": 1}
    assert burst["ttft_s"] == {"local": {"p50": None, "p95": None}, "cloud": {"p50": 0.7, "p95": 0.7}}


def test_examples_are_of_what_is_new_in_a_chapter_and_say_why_in_the_dashboards_words() -> None:
    first, second = examples(SEEN.told, "burst")
    assert "was answered by holysheep (last_moment), first token after 0.70 s of 1 s." in first
    assert "It waited to its last safe moment" in first
    assert "was refused with 429 insufficient_quota (budget_spent)" in second
    assert examples([], "calm") == []


def test_day_in_which_the_node_broke_is_told_without_its_books_and_the_promise_that_needs_them_is_not_met() -> None:
    accounts = (Account("holysheep", None, 93_000, 3, 1), Account("openai", None, 0, 0, 0))
    books = replace(BOOKS, accounts=accounts, bills=(), others_heard=0)
    seen = replace(SEEN, books=books, broken="the node has ended")
    assert missed(seen) == ["the ledger beside the clouds' own bills"]
    shown = text(seen)
    assert "| holysheep | 3 | ? | 0.000093000 |" in " ".join(shown.split())
    assert "all of it in the cloud" not in shown
    assert json.loads(json.dumps(document(seen)))["broken"] == "the node has ended"
