"""What requests tell a trace, for those who have one. Nothing here knows OpenTelemetry: `node.traces` does.

    request ─┬─ queue     each wait to be placed, with what was decided
             ├─ attempt   each backend at work on it ── stream, from its first content on
             └─ …

A request without a trace carries None, and that is all it costs. Never a prompt, an answer, or an error's text, which
may quote them. Times are monotonic seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from node.money import Usage
from node.routing.values import Decision

if TYPE_CHECKING:
    from node.dispatch.outcome import Outcome


class AttemptTrace(Protocol):
    """One attempt's."""

    @property
    def traceparent(self) -> str:
        """The W3C header that makes what the backend does a part of it."""

    def began(self, at_s: float, *, stream: bool) -> None:
        """There is content: all of it, or, of a `stream`, the first."""

    def ended(self, at_s: float, usage: Usage | None, finish_reason: str | None, error_code: str | None) -> None:
        """It is over. `usage` is None where it came to nothing, `error_code` where nothing failed."""


class RequestTrace(Protocol):
    """One request's."""

    def placed(self, from_s: float, to_s: float, decision: Decision | None) -> None:
        """It waited to be placed; None: it was given up before."""

    def attempt(self, backend: str, served_model: str, decision: Decision, at_s: float) -> AttemptTrace:
        """A backend begins to work on it."""

    def came_to(self, outcome: Outcome) -> None:
        """What became of it."""

    def answered(self, at_s: float, status: int | None, error_code: str | None) -> None:
        """The client has its answer, with that HTTP status; None: it had gone."""
