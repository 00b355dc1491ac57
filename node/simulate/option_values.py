"""What the options of `spillway simulate` and `spillway trace` say, as values. What is wrong is a `SettingsError`."""

from __future__ import annotations

import argparse
import math
from decimal import Decimal, InvalidOperation

from node.catalogue_files import default_models_dir, load_prices
from node.errors import SettingsError
from node.money import Price
from node.simulate.formats.convert import Window


def window_of(options: argparse.Namespace, *, seconds: float) -> Window:
    """The part of a trace that `--from-s` and `--seconds` ask for; `seconds` of it where the latter says nothing."""
    start_s = number("--from-s", options.from_s, least=0)
    if options.seconds is not None:
        seconds = number("--seconds", options.seconds, above=0)
    return Window(start_s=start_s, seconds=seconds)


def price_of(text: str, key: str = "--prices") -> Price:
    """`INPUT,OUTPUT`, or a model of the price files that ship, with its provider before it where several have it."""
    if "," in text:
        try:
            input_usd, output_usd = (Decimal(part.strip()) for part in text.split(","))
        except (InvalidOperation, ValueError):
            raise SettingsError(f"{key} {text!r}: expected INPUT,OUTPUT in dollars, such as 0.80,2.50") from None
        if not all(usd.is_finite() and 0 <= usd <= 1_000_000 for usd in (input_usd, output_usd)):
            raise SettingsError(f"{key} {text!r}: dollars per million tokens are from 0 to 1000000")
        return Price(input_usd, output_usd)
    known = load_prices(default_models_dir())
    named = {f"{provider}/{model}": price for (provider, model), price in known.items()}
    matching = [name for name in named if name == text or name.partition("/")[2] == text]
    if not matching:
        raise SettingsError(f"{key} {text!r}: no such price; there are {', '.join(sorted(named))}, or INPUT,OUTPUT")
    if len(matching) > 1:
        raise SettingsError(f"{key} {text!r}: several have it: {', '.join(sorted(matching))}")
    return named[matching[0]]


def number(
    name: str, text: str, *, above: float | None = None, least: float | None = None, most: float = 1e12
) -> float:
    """`text` as a finite number within these limits. `name` is the option it was given for."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if (
        math.isfinite(value)
        and value <= most
        and (above is None or value > above)
        and (least is None or value >= least)
    ):
        return value
    limit = f"above {above:g}" if above is not None else f"from {least:g} on" if least is not None else ""
    limit += f", at most {most:g}" if most < 1e12 else ""
    raise SettingsError(f"{name}: expected a number {limit}, got {text!r}")


def whole(name: str, text: str) -> int:
    """`text` as a whole number, not negative."""
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise SettingsError(f"{name}: expected a whole number from 0 on, got {text!r}")
    return int(text)
