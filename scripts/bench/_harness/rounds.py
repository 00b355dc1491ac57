"""The order in which arms are measured."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

Arm = TypeVar("Arm")


def abba(arms: Sequence[Arm], rounds: int) -> Iterator[tuple[int, Arm]]:
    """(round, arm) for every measurement: odd rounds run backwards (A B B A), so a linear drift hits all arms alike."""
    if rounds < 2 or rounds % 2:
        raise ValueError(f"the number of rounds must be even and at least 2, not {rounds}")
    for number in range(rounds):
        for arm in arms if number % 2 == 0 else reversed(arms):
            yield number, arm
