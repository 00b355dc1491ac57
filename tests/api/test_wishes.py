"""What clients ask of Spillway itself: two places to say it, and neither can loosen the other."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.api.wishes import RoutingWishes, parse_wishes
from node.errors import InvalidRequest

HEADERS = {
    "require_local": b"x-spillway-require-local",
    "prefer_local": b"x-spillway-prefer-local",
    "latency_budget_ms": b"x-spillway-latency-budget-ms",
    "ttft_budget_ms": b"x-spillway-ttft-budget-ms",
    "cost_budget_usd": b"x-spillway-cost-budget-usd",
}


def test_a_client_that_says_nothing_wishes_nothing() -> None:
    assert parse_wishes({"model": "m"}, [(b"host", b"x")]) == RoutingWishes()
    assert parse_wishes({"spillway": None}) == RoutingWishes()


def test_all_wishes_in_the_body() -> None:
    wishes = {
        "require_local": True,
        "prefer_local": True,
        "latency_budget_ms": 2500,
        "ttft_budget_ms": 0.5,
        "cost_budget_usd": 0.000001,
    }
    assert parse_wishes({"spillway": wishes}) == RoutingWishes(
        require_local=True, prefer_local=True, latency_budget_s=2.5, ttft_budget_s=0.0005, cost_budget_nano_usd=1000
    )


def test_all_wishes_as_headers() -> None:
    values = (b"true", b"1", b"2500", b"0.5", b"0.1")
    assert parse_wishes({}, zip(HEADERS.values(), values, strict=True)) == RoutingWishes(
        require_local=True,
        prefer_local=True,
        latency_budget_s=2.5,
        ttft_budget_s=0.0005,
        cost_budget_nano_usd=100_000_000,
    )


@pytest.mark.parametrize(
    ("body", "first", "second"), list(itertools.product((None, False, True), (b"false", b"true"), (b"0", b"1")))
)
def test_a_pin_from_anywhere_holds(body: bool | None, first: bytes, second: bytes) -> None:
    name = HEADERS["require_local"]
    wishes = parse_wishes({"spillway": {"require_local": body}}, [(name, first), (name, second)])
    assert wishes.require_local is (body is True or first == b"true" or second == b"1")


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=4), st.integers(1, 10**6) | st.none())
def test_of_several_budgets_the_smallest_counts(in_headers: list[int], in_body: int | None) -> None:
    headers = [(HEADERS["ttft_budget_ms"], str(value).encode()) for value in in_headers]
    wishes = parse_wishes({"spillway": {"ttft_budget_ms": in_body}}, headers)
    assert wishes.ttft_budget_s == min(in_headers + ([] if in_body is None else [in_body])) / 1000


def test_a_budget_of_nothing_is_nothing() -> None:
    assert parse_wishes({"spillway": {"cost_budget_usd": 0}}).cost_budget_nano_usd == 0


@pytest.mark.parametrize(
    ("spillway", "param"),
    [
        ("x", "spillway"),
        ([], "spillway"),
        ({"require_local": "yes"}, "spillway.require_local"),
        ({"require_local": 1}, "spillway.require_local"),
        ({"requirelocal": True}, "spillway.requirelocal"),
        ({"latency_budget_ms": 0}, "spillway.latency_budget_ms"),
        ({"latency_budget_ms": -1}, "spillway.latency_budget_ms"),
        ({"latency_budget_ms": "100"}, "spillway.latency_budget_ms"),
        ({"ttft_budget_ms": 1e12}, "spillway.ttft_budget_ms"),
        ({"ttft_budget_ms": True}, "spillway.ttft_budget_ms"),
        ({"cost_budget_usd": -0.01}, "spillway.cost_budget_usd"),
    ],
)
def test_a_bad_wish_in_the_body_is_400_and_names_the_field(spillway: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_wishes({"spillway": spillway})
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"x-spillway-require-local", b""),
        (b"x-spillway-require-local", b"yes"),
        (b"x-spillway-require-local", b"\xff"),
        (b"x-spillway-requirelocal", b"true"),
        (b"x-spillway-", b"true"),
        (b"x-spillway-latency-budget-ms", b"0"),
        (b"x-spillway-latency-budget-ms", b"1e3"),
        (b"x-spillway-latency-budget-ms", b"nan"),
        (b"x-spillway-ttft-budget-ms", b"-5"),
        (b"x-spillway-ttft-budget-ms", b"9" * 5000),
        (b"x-spillway-ttft-budget-ms", b"9" * 12),
        (b"x-spillway-cost-budget-usd", b"inf"),
        (b"x-spillway-cost-budget-usd", b"1,5"),
    ],
)
def test_a_bad_wish_in_a_header_is_400_and_names_the_header(name: bytes, value: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_wishes({}, [(name, value)])
    assert caught.value.param == name.decode()


def test_one_refusal_of_the_cache_is_enough() -> None:
    assert parse_wishes({"spillway": {"cache": True}}, [(b"x-spillway-cache", b"false")]).cache is False
    assert parse_wishes({"spillway": {"cache": True}}).cache is True
    assert parse_wishes({"spillway": {"prefer_local": True}}).cache is None


@pytest.mark.parametrize(
    ("document", "param"),
    [
        ({"require_local": True}, "require_local"),
        ({"require_local": True, "spillway": {"cache": False}}, "require_local"),
        ({"requireLocal": True}, "requireLocal"),
        ({"require-local": True}, "require-local"),
        ({"spillway_require_local": True}, "spillway_require_local"),
        ({"x-spillway-require-local": "true"}, "x-spillway-require-local"),
        ({"Spillway": {"require_local": True}}, "Spillway"),
        ({"extra_body": {"spillway": {"require_local": True}}}, "extra_body.spillway"),
        ({"extra_body": {"require_local": True}}, "extra_body.require_local"),
        ({"extra_headers": {"x-spillway-require-local": "true"}}, "extra_headers.x-spillway-require-local"),
        ({"metadata": {"require_local": "true"}}, "metadata.require_local"),
    ],
)
def test_a_pin_in_the_wrong_place_of_the_body_is_400_and_says_where_it_belongs(
    document: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest, match=re.escape('{"spillway": {"require_local": true}}')) as caught:
        parse_wishes(document)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "name",
    [
        b"x_spillway_require_local",
        b"x-spillway_require_local",
        b"x_spillway-cost-budget-usd",
        b"xspillway-require-local",
        b"spillway-require-local",
        b"x-spilway-require-local",
        b"x-require-local",
        b"require-local",
    ],
)
def test_a_misspelt_pin_header_is_400_and_says_how_it_is_spelled(name: bytes) -> None:
    with pytest.raises(InvalidRequest, match="x-spillway-require-local: true") as caught:
        parse_wishes({}, [(name, b"true")])
    assert caught.value.param == name.decode()


def test_other_unknown_fields_and_headers_are_nobodys_pin() -> None:
    document = {
        "model": "m",
        "extra_body": {"top_k": 1},
        "metadata": {"team": "local", "spillway_run": "7"},
        "local": True,
    }
    assert parse_wishes(document, [(b"x-local", b"1"), (b"x-forwarded-host", b"spillway")]) == RoutingWishes()
