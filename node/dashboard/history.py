"""What states an engine or a provider has been in, and when it came into them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from node.dashboard.feed import Change
from node.dispatch.standing import Standing
from node.local.supervision import Supervision
from node.routing.breaker import BreakerState

_KEPT: Final = 24


class History:
    """The last changes of one thing's state. `unix_s` is the wall clock."""

    def __init__(self, unix_s: Callable[[], float], kept: int = _KEPT) -> None:
        self._unix_s = unix_s
        self._changes: deque[Change] = deque(maxlen=kept)

    def note(self, state: str, why: str | None) -> None:
        """It is in `state` now; nothing is noted if it was so before."""
        if not self._changes or self._changes[-1].state != state:
            self._changes.append(Change(at_s=round(self._unix_s(), 1), state=state, why=why))

    def changes(self) -> tuple[Change, ...]:
        """Oldest first."""
        return tuple(self._changes)


def engine_state(life: Supervision) -> tuple[str, str | None]:
    """An engine's state, and of a failure the cause."""
    state = "given_up" if life.given_up else life.state.value
    return state, life.why if state in ("down", "given_up") else None


def provider_state(standing: Standing, now_s: float) -> tuple[str, str | None]:
    """Whether a provider is used, and if not the cause.

    Between open and half open a breaker changes every few seconds as long as the provider is away: that is one state.
    """
    breaker = standing.breaker.state(now_s)
    if breaker is BreakerState.ISOLATED:
        return breaker.value, standing.isolated_by
    if breaker is BreakerState.CLOSED:
        return breaker.value, None
    return BreakerState.OPEN.value, standing.breaker.opened_by
