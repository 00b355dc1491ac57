"""What operators read off: calls, tokens, spend and savings, exact to the last digit."""

import json
from dataclasses import replace
from typing import Any

import msgspec

from node.dispatch.outcome import Ending, Outcome
from node.money import Usage
from node.routing.values import Reason
from node.store.totals import Totals
from tests.outcomes import SERVED_HERE

LOCAL = replace(
    SERVED_HERE, tenant="a", ttft_s=0.5, usage=Usage(10, 5), reference_nano_usd=20_000, cloud_nano_usd=18_000
)
CLOUD = replace(
    LOCAL,
    backend="holysheep",
    reason=Reason.PREDICTED_LATE,
    cost_nano_usd=15_000,
    reference_nano_usd=20_001,
    cloud_nano_usd=15_000,
)
REFUSED = replace(
    LOCAL,
    ending=Ending.REFUSED,
    backend=None,
    reason=None,
    ttft_s=None,
    usage=None,
    reference_nano_usd=None,
    cloud_nano_usd=None,
    error_code="overloaded",
)


def document(*outcomes: Outcome) -> dict[str, Any]:
    totals = Totals()
    for outcome in outcomes:
        totals.add(outcome)
    read: dict[str, Any] = json.loads(msgspec.json.encode(totals.document()), parse_float=str)
    return read


def test_node_that_did_nothing_says_so() -> None:
    nothing = document()
    assert nothing["total"] == {
        "requests": 0,
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "spent_usd": "0.0",
        "reference_usd": "0.0",
        "all_cloud_usd": "0.0",
        "saved_usd": "0.0",
    }
    assert nothing["ttft_in_budget"] == {"measured": 0, "met": 0}


def test_spend_and_savings_add_up_exactly() -> None:
    total = document(LOCAL, CLOUD)["total"]
    assert (total["requests"], total["prompt_tokens"], total["completion_tokens"]) == (2, 20, 10)
    assert (total["spent_usd"], total["reference_usd"]) == ("0.000015", "0.000040001")
    assert (total["all_cloud_usd"], total["saved_usd"]) == ("0.000033", "0.000018")


def test_provider_dearer_than_the_first_equivalent_is_a_loss() -> None:
    assert document(replace(CLOUD, cloud_nano_usd=1))["total"]["saved_usd"] == "-0.000014999"


def test_each_backend_and_model_has_its_own_line() -> None:
    read = document(LOCAL, CLOUD, replace(CLOUD, model="other"))
    assert {name: line["requests"] for name, line in read["by_backend"].items()} == {"holysheep": 2, "local": 1}
    assert {name: line["requests"] for name, line in read["by_model"].items()} == {"demo": 2, "other": 1}
    assert read["by_reason"] == {"predicted_late": 2, "within_budget": 1}


def test_refused_request_counts_but_belongs_to_no_backend() -> None:
    read = document(REFUSED, LOCAL)
    assert read["total"]["requests"] == 2
    assert read["by_ending"] == {"done": 1, "refused": 1}
    assert list(read["by_backend"]) == ["local"]


def test_promise_is_measured_on_streamed_answers() -> None:
    late, whole = replace(LOCAL, ttft_s=2.1), replace(LOCAL, ttft_s=None)
    assert document(LOCAL, late, whole, REFUSED)["ttft_in_budget"] == {"measured": 2, "met": 1}
