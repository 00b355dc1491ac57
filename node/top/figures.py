"""Numbers as people read them: few digits, always a unit, and a dash for what is not known. As on the page."""

from __future__ import annotations

import math
import time
from typing import Final

from node.money import NANO_PER_USD

NONE: Final = "-"
"""Stands for what is not known, which is never 0."""

_GIB: Final = 2**30
_MIB: Final = 2**20


def number(value: float | None) -> str:
    """Three digits that mean something, no more: 0.42, 4.2, 42, 420, 4,200."""
    if value is None:
        return NONE
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if digits else text


def count(value: int | None) -> str:
    """A whole number, from ten thousand on in k, M or G."""
    if value is None:
        return NONE
    if abs(value) < 10_000:
        return f"{value:,}"
    factor, unit = (1e3, "k") if abs(value) < 1e6 else (1e6, "M") if abs(value) < 1e9 else (1e9, "G")
    short = value / factor
    return f"{short:.{1 if abs(short) < 100 else 0}f} {unit}"


def per_second(value: float | None) -> str:
    """A rate."""
    return NONE if value is None else f"{number(value)}/s"


def seconds(value: float | None) -> str:
    """A short time, such as one to a first token."""
    if value is None:
        return NONE
    if value == 0:
        return "0 s"
    if value < 0.001:
        return f"{value * 1e6:.0f} us"
    if value < 0.01:
        return f"{value * 1000:.1f} ms"
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    if value < 10:
        return f"{value:.2f} s"
    if value < 100:
        return f"{value:.1f} s"
    return duration(value)


def duration(value: float | None) -> str:
    """A longer time in its two largest units."""
    if value is None:
        return NONE
    minutes, whole_s = divmod(max(0, round(value)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (whole_s, "s")]
    first = next((at for at, (amount, _) in enumerate(parts) if amount), 3)
    said = [f"{amount} {unit}" for amount, unit in parts[first : first + 2] if amount]
    return " ".join(said) or "0 s"


def share(value: float | None) -> str:
    """A fraction in per cent. Only all of it is "100 %", and only nothing "0 %"."""
    if value is None:
        return NONE
    if value in (0, 1):
        return f"{value:.0%}".replace("%", " %")
    percent = min(99.9, max(0.1, 100 * value)) if 0 < value < 1 else 100 * value
    return f"{percent:.{1 if percent < 10 or percent >= 99.5 else 0}f} %"


def part_of(some: float, whole: float) -> float | None:
    """`some` of `whole` as a fraction; None where there is no whole."""
    return some / whole if whole else None


def dollars(nano: int | None) -> str:
    """Nano-dollars: cents and more as such, less with as many digits as it takes to see two of them."""
    if nano is None:
        return NONE
    if nano == 0:
        return "$0"
    size = abs(nano) / NANO_PER_USD
    digits = 2 if size >= 1 else max(2, min(9, 1 - math.floor(math.log10(size))))
    return f"{'-' if nano < 0 else ''}${size:,.{digits}f}"


def size(value: int | None) -> str:
    """Bytes."""
    if value is None:
        return NONE
    return f"{value / _GIB:.1f} GiB" if value >= _GIB else f"{value / _MIB:.0f} MiB"


def clock(unix_s: float | None) -> str:
    """A moment, in the time zone of whoever looks."""
    return NONE if unix_s is None else time.strftime("%H:%M:%S", time.localtime(unix_s))


def words(code: str | None) -> str:
    """A code such as ``last_moment`` as words."""
    return NONE if code is None else code.replace("_", " ")
