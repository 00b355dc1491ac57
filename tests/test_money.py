"""Money is counted in whole nano-dollars, and no digit of it is lost or made up."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.money import FREE, NANO_PER_USD, Price, Usage, nano_to_usd_text, usd_to_nano


@pytest.mark.parametrize(
    ("nano_usd", "text"),
    [
        (0, "0.0"),
        (1, "0.000000001"),
        (42_000, "0.000042"),
        (NANO_PER_USD, "1.0"),
        (10 * NANO_PER_USD, "10.0"),
        (1_500_000_000, "1.5"),
        (-42_000, "-0.000042"),
        (-NANO_PER_USD, "-1.0"),
        (10**30, "1000000000000000000000.0"),
    ],
)
def test_dollars_are_written_with_every_digit_and_no_exponent(nano_usd: int, text: str) -> None:
    assert nano_to_usd_text(nano_usd) == text


@given(st.integers(-(10**18), 10**18))
def test_written_dollars_are_json_and_read_back_the_same(nano_usd: int) -> None:
    text = nano_to_usd_text(nano_usd)
    assert usd_to_nano(json.loads(text, parse_float=Decimal)) == nano_usd


def test_list_price_is_exact() -> None:
    price = Price(Decimal("0.27"), Decimal("1.10"))
    assert price.cost_nano_usd(Usage(1_000_000, 0)) == 270_000_000
    assert price.cost_nano_usd(Usage(3, 2)) == 3 * 270 + 2 * 1100


def test_finer_price_is_rounded_up_once_per_call() -> None:
    price = Price(Decimal("0.0001"), Decimal("0.0001"))
    assert price.cost_nano_usd(Usage(1, 0)) == 1
    assert price.cost_nano_usd(Usage(10, 0)) == 1
    assert price.cost_nano_usd(Usage(6, 5)) == 2
    assert price.cost_nano_usd(Usage(0, 0)) == 0


@given(st.decimals(0, 1000, places=6), st.decimals(0, 1000, places=6), st.integers(0, 10**7), st.integers(0, 10**7))
def test_charge_is_never_below_the_price_and_less_than_a_nano_dollar_above(
    input_usd: Decimal, output_usd: Decimal, prompt: int, completion: int
) -> None:
    exact_nano = (input_usd * prompt + output_usd * completion) * 1000
    assert 0 <= Price(input_usd, output_usd).cost_nano_usd(Usage(prompt, completion)) - exact_nano < 1


def test_local_tokens_are_free() -> None:
    assert FREE.cost_nano_usd(Usage(10**9, 10**9)) == 0


def test_limit_in_dollars_is_never_widened() -> None:
    assert usd_to_nano(Decimal("0.0000000019")) == 1
    assert usd_to_nano(Decimal("0.01")) == 10_000_000


def test_total_is_prompt_and_completion() -> None:
    assert Usage(3, 4).total_tokens == 7
