"""Which provider misbehaves how, and when: seeded, in episodes of a few dozen requests."""

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from node.emulator.switches import Switch

Armed = Mapping[str, Mapping[str, float | int | None]]
"""What is put to ``/emulator/switches``."""

_CALM, _STORM = 0.2, 0.06
_AT_ONCE = 2
_OFTEN = (0.1, 0.2)
_STORMS = (Switch.ERROR_503, Switch.SILENCE, Switch.FLAPPING, Switch.RESET_MID_STREAM, Switch.RATE_LIMIT_ZERO)

# These take a provider away for seconds, a minute, or until the operator reloads: one hit is as good as ten.
_ONCE = frozenset(
    {
        Switch.RATE_LIMIT,
        Switch.RATE_LIMIT_SECONDS,
        Switch.RATE_LIMIT_DATE,
        Switch.RATE_LIMIT_NONSENSE,
        Switch.PAYMENT_REQUIRED,
        Switch.INSUFFICIENT_QUOTA,
        Switch.UNAUTHORIZED,
        Switch.FORBIDDEN,
    }
)
_MINUTE_LONG = frozenset({Switch.RATE_LIMIT_HUGE})


@dataclass(frozen=True)
class Episode:
    """What every provider does for a while."""

    armed: Mapping[str, Armed]


def weather(seed: int, providers: Sequence[str]) -> Iterator[Episode]:
    """Episodes without end. Every provider goes through all misbehaviours, in an order of its own, again and again."""
    decks = {name: _deck(random.Random(f"{seed}/{name}"), 3 * number) for number, name in enumerate(providers)}
    chance = random.Random(f"{seed}/weather")
    while True:
        yield Episode({name: _armed(chance, decks[name]) for name in providers})


def _armed(chance: random.Random, deck: Iterator[Switch]) -> Armed:
    drawn = chance.random()
    if drawn < _CALM:
        return {}
    if drawn < _CALM + _STORM:
        return {chance.choice(_STORMS): {"probability": 1.0, "count": None}}
    armed = {}
    for _ in range(_AT_ONCE):
        switch = next(deck)
        once = switch in _ONCE or switch in _MINUTE_LONG
        armed[switch.value] = {"probability": chance.choice(_OFTEN), "count": 1 if once else None}
    return armed


def _deck(chance: random.Random, long_round: int) -> Iterator[Switch]:
    for number in itertools.count():
        cards = list(Switch)
        chance.shuffle(cards)
        # The longest only once, and never at two providers in one round: else there would be nobody to call.
        yield from [each for each in cards if each not in _MINUTE_LONG]
        if number == long_round:
            yield from sorted(_MINUTE_LONG)
