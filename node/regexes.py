"""A bounded look at a regular expression that a client, or an operator, wants text to follow.

The grammar engines compile expressions to automata, which nested quantifiers cannot hang; expanding repetitions can.
The nested shapes are refused as well, because a backtracking matcher (another engine, a cloud, the client's own
validation) takes exponential time on them: a repeated group that holds an unbounded repetition and nothing that must
separate one round from the next, an unbounded `.` in a repeated group, and equal alternatives in a repeated group.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from node.errors import InvalidRequest

MAX_PATTERN_CHARS = 2048
MAX_EXPANDED_ATOMS = 20_000
_MAX_GROUP_DEPTH = 64
_FEW_ROUNDS = 8  # how often a group with a free `.` may repeat
_TOKEN = re.compile(
    r"(?P<escape>\\.)|(?P<cls>\[\^?\]?(?:[^\]\\]|\\.)*\])|(?P<open>\((?:\?(?:[:=!>]|<[=!]|P?<\w{1,64}>))?)"
    r"|(?P<close>\))|(?P<bar>\|)|(?P<edge>[\^$])|(?P<char>.)",
    re.DOTALL,
)
_QUANTIFIER = re.compile(r"(?:(?P<sign>[*+?])|\{(?P<low>\d{1,9})(?P<to>,(?P<high>\d{1,9})?)?\})[?+]?")


@dataclass(slots=True)
class _Group:
    """What is known of an open group: of its current alternative, and of all of them together."""

    start: int
    size: int = 0
    separated: bool = False
    unbounded: bool = False
    slippery: bool = False
    free_dot: bool = False
    alternatives: list[str] = field(default_factory=list)


def check_regex(pattern: str, param: str) -> None:
    """Refuse, with `InvalidRequest` for `param`, an expression that is too long, not balanced, too large once its
    repetitions are written out, or of a shape that backtracking matchers cannot bear. Linear in its length."""
    why = fault(pattern)
    if why is not None:
        raise InvalidRequest(f"Invalid value for '{param}': the regular expression {why}.", param=param)


def fault(pattern: str) -> str | None:
    """What is wrong with it, as the end of a sentence; None: nothing."""
    if len(pattern) > MAX_PATTERN_CHARS:
        return f"is longer than {MAX_PATTERN_CHARS} characters"
    stack = [_Group(0)]
    at = 0
    while at < len(pattern):
        token = _TOKEN.match(pattern, at)
        if token is None or token["char"] in ("[", "\\"):
            return "has an unfinished escape or class"
        start, at = at, token.end()
        if token["open"] is not None:
            if len(stack) > _MAX_GROUP_DEPTH:
                return "nests its groups too deeply"
            stack.append(_Group(at))
            continue
        if token["bar"] is not None:
            _end_alternative(stack[-1], pattern, start)
            continue
        if token["edge"] is not None:
            continue
        inner = None
        if token["close"] is not None:
            if len(stack) == 1:
                return "has an unmatched ')'"
            inner = stack.pop()
            _end_alternative(inner, pattern, start)
        low: int = 1
        high: int | None = 1
        if quantifier := _QUANTIFIER.match(pattern, at):
            at = quantifier.end()
            low, high = _bounds(quantifier)
            if high is not None and high < low:
                return "has a repetition whose end is before its start"
        if inner is not None and (why := _repeated(inner, high)) is not None:
            return why
        group = stack[-1]
        group.size += (inner.size if inner else 1) * max(1, low, high or 0)
        if group.size > MAX_EXPANDED_ATOMS:
            return f"is larger than {MAX_EXPANDED_ATOMS} atoms once its repetitions are written out"
        _add_atom(group, inner, low, high, dot=token["char"] == ".")
    return None if len(stack) == 1 else "has an unmatched '('"


def _bounds(quantifier: re.Match[str]) -> tuple[int, int | None]:
    match quantifier["sign"]:
        case "*":
            return 0, None
        case "+":
            return 1, None
        case "?":
            return 0, 1
        case _:
            low = int(quantifier["low"])
            high = low if quantifier["to"] is None else int(quantifier["high"]) if quantifier["high"] else None
            return low, high


def _repeated(inner: _Group, high: int | None) -> str | None:
    if high is None and (inner.slippery or len(set(inner.alternatives)) < len(inner.alternatives)):
        return "repeats a group that can match the same text in many ways"
    if (high is None or high > _FEW_ROUNDS) and (inner.free_dot or inner.slippery):
        return "repeats a group that can match the same text in many ways"
    return None


def _add_atom(group: _Group, inner: _Group | None, low: int, high: int | None, *, dot: bool) -> None:
    if high is None or (inner is not None and inner.slippery):
        group.unbounded = True
    elif low > 0:
        group.separated = True
    group.free_dot |= (dot and high is None) or (inner is not None and inner.free_dot)


def _end_alternative(group: _Group, pattern: str, end: int) -> None:
    group.slippery |= group.unbounded and not group.separated
    group.alternatives.append(pattern[group.start : end])
    group.start, group.separated, group.unbounded = end + 1, False, False
