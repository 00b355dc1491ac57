"""The emulator's own prices and arithmetic, in exact fractions, apart from the node's on purpose.

A bill that was added up by the code it checks proves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import yaml

_NANO_USD_PER_TOKEN_AT_1_USD_PER_MTOK = 1_000


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """Dollars per million tokens, exact."""

    input_usd_per_mtok: Fraction
    output_usd_per_mtok: Fraction

    def cost_nano_usd(self, prompt_tokens: int, completion_tokens: int) -> int:
        """What a call costs in nano-dollars; a broken nano-dollar is charged whole."""
        exact = self.input_usd_per_mtok * prompt_tokens + self.output_usd_per_mtok * completion_tokens
        return -((-exact * _NANO_USD_PER_TOKEN_AT_1_USD_PER_MTOK) // 1)


def _price(input_usd: float, output_usd: float) -> ModelPrice:
    return ModelPrice(Fraction(str(input_usd)), Fraction(str(output_usd)))


HOLYSHEEP: Mapping[str, ModelPrice] = MappingProxyType(
    {
        "gpt-4.1": _price(3, 8),
        "claude-sonnet-4.5": _price(5, 15),
        # The provider's input price for this one was not found; an emulated call is not free, so both halves cost 3.
        "gpt-4o-mini": _price(3, 3),
        "gemini-2.5-flash": _price(0.80, 2.50),
        "deepseek-v3.2": _price(0.14, 0.42),
    }
)
"""The numbers of models/prices/holysheep.yaml, written a second time; a test holds the two together."""


def read_prices(path: Path) -> dict[str, ModelPrice]:
    """The prices of a price file (``models/prices/*.yaml``).

    Where one half of a price is null the other half stands in, so that no emulated call is free by accident; a model
    with neither is left out. Raises `ValueError` for a file of another form.
    """
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        entries = document["models"].items()
        found: dict[str, ModelPrice] = {}
        for model, entry in entries:
            paid = [entry["input_usd_per_mtok"], entry["output_usd_per_mtok"]]
            known = [half for half in paid if half is not None]
            if known:
                halves = [known[0] if half is None else half for half in paid]
                found[model] = _price(*halves)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a price file: {error!r}") from error
    return found
