"""What states an engine has been in, and when it came into them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from node.dashboard.feed import EngineChange
from node.local.supervision import Supervision

_KEPT: Final = 24


class EngineHistory:
    """The last changes of one engine's state. `unix_s` is the wall clock."""

    def __init__(self, unix_s: Callable[[], float], kept: int = _KEPT) -> None:
        self._unix_s = unix_s
        self._changes: deque[EngineChange] = deque(maxlen=kept)

    def note(self, life: Supervision) -> None:
        """`life` is how it stands now; nothing is noted if it stood so before."""
        state = "given_up" if life.given_up else life.state.value
        if not self._changes or self._changes[-1].state != state:
            why = life.why if state in ("down", "given_up") else None
            self._changes.append(EngineChange(at_s=round(self._unix_s(), 1), state=state, why=why))

    def changes(self) -> tuple[EngineChange, ...]:
        """Oldest first."""
        return tuple(self._changes)
