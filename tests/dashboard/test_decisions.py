"""What is kept of the last requests, what of a busy second is shown, and what is found again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from node.dashboard.decisions import DecisionLog, Query, as_ended, some_of_each
from node.dispatch.outcome import Ending, Outcome
from node.routing.values import Reason
from tests.outcomes import SERVED_HERE


def outcome(number: int = 0, **more: Any) -> Outcome:
    return replace(SERVED_HERE, request_id=f"id-{number}", **more)


def test_quiet_second_is_shown_whole_and_in_order() -> None:
    ended = [as_ended(float(number), outcome(number)) for number in range(40)]
    assert some_of_each(ended, 40) == ended


def test_rare_decision_is_shown_though_thousands_of_another_kind_come_with_it() -> None:
    ended = [as_ended(float(number), outcome(number)) for number in range(2000)]
    rare = as_ended(1000.5, outcome(9999, backend=None, ending=Ending.REFUSED, reason=Reason.BUDGET_SPENT))
    ended.insert(1000, rare)
    shown = some_of_each(ended, 40)
    assert rare in shown
    assert len(shown) == 40
    assert shown == sorted(shown, key=lambda each: each.row.at_s)


def test_only_the_last_are_kept_and_the_newest_come_first() -> None:
    log = DecisionLog(lambda: 7.0, kept=3)
    for number in range(5):
        log.add(outcome(number))
    assert (log.added, len(log)) == (5, 3)
    assert [each.request_id for each in log.find(Query(), 10)] == ["id-4", "id-3", "id-2"]
    assert [each.row.request_id for each in log.newest(2)] == ["id-4", "id-3"]


def test_found_by_backend_reason_ending_and_part_of_an_id_or_code() -> None:
    log = DecisionLog(lambda: 7.0)
    log.add(outcome(1, backend="holysheep", reason=Reason.LAST_MOMENT))
    log.add(outcome(2, ending=Ending.FAILED, error_code="engine_died"))
    log.add(outcome(3, backend=None, reason=Reason.NO_PROVIDER, ending=Ending.REFUSED, tenant="Clinic"))

    def found(**query: str) -> list[str]:
        return [each.request_id for each in log.find(Query(**query), 10)]

    assert found(backend="holysheep") == ["id-1"]
    assert found(backend="none") == ["id-3"]
    assert found(reason="last_moment") == ["id-1"]
    assert found(ending="failed") == ["id-2"]
    assert found(text="engine_d") == ["id-2"]
    assert found(text="clinic") == found(text="CLINIC") == ["id-3"]
    assert found(text="id-", ending="done") == ["id-1"]
    assert found(text="nobody") == []
