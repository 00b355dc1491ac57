"""Prices, token usage and what they come to, in integer nano-dollars.

One dollar is 10**9 nano-dollars. A price of 1 $/MTok is 1,000 nano-dollars per token, so every list price
with up to three decimals is exact; finer prices are rounded up per call, never down.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal

NANO_PER_USD = 1_000_000_000
_ATTO_PER_NANO = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens one call used. `estimated` says that the backend did not report them and we counted ourselves;
    `suspect` that it reported something we could not believe. `cached_tokens` of the prompt were in the local engine's
    prefix cache."""

    prompt_tokens: int
    completion_tokens: int
    estimated: bool = False
    suspect: bool = False
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs, in dollars per million tokens, input and output apart."""

    input_usd_per_mtok: Decimal
    output_usd_per_mtok: Decimal
    _input_atto_usd: int = field(init=False, repr=False, compare=False)
    _output_atto_usd: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_input_atto_usd", _atto_per_token(self.input_usd_per_mtok))
        object.__setattr__(self, "_output_atto_usd", _atto_per_token(self.output_usd_per_mtok))

    def cost_nano_usd(self, usage: Usage) -> int:
        """The price of `usage` in nano-dollars, rounded up to the next whole one."""
        return self.cost_of_nano_usd(usage.prompt_tokens, usage.completion_tokens)

    def cost_of_nano_usd(self, prompt_tokens: int, completion_tokens: int) -> int:
        """The same of so many tokens."""
        return -(-(self._input_atto_usd * prompt_tokens + self._output_atto_usd * completion_tokens) // _ATTO_PER_NANO)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What may be spent per UTC hour, day and calendar month, in nano-dollars; None: no limit."""

    hour_nano_usd: int | None = None
    day_nano_usd: int | None = None
    month_nano_usd: int | None = None


NO_BUDGET = Budget()


def _atto_per_token(usd_per_mtok: Decimal) -> int:
    """$/MTok as whole atto-dollars (10**-18) per token: exact to twelve decimals, rounded up beyond.

    Integers, because this is computed several times for every call, and decimals are an order slower.
    """
    return int((usd_per_mtok * 10**12).to_integral_value(rounding=ROUND_CEILING))


FREE = Price(Decimal(0), Decimal(0))


def nano_to_usd_text(nano_usd: int) -> str:
    """Nano-dollars as an exact decimal JSON number, for example ``0.000042`` (never an exponent)."""
    if nano_usd == 0:
        return "0.0"
    sign, nano = ("-", -nano_usd) if nano_usd < 0 else ("", nano_usd)
    whole, fraction = divmod(nano, NANO_PER_USD)
    return f"{sign}{whole}.{fraction:09d}".rstrip("0").removesuffix(".") if fraction else f"{sign}{whole}.0"


def usd_to_nano(usd: Decimal) -> int:
    """Dollars as nano-dollars, rounded down (used for limits, so a limit is never widened)."""
    return int(usd * NANO_PER_USD)
