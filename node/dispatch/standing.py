"""How one provider stands: whether it may be called now, and what each call taught about that.

Three things can keep calls from it: a pause it asked for (429), the breaker (it keeps failing), and isolation (it
refused the key, wants money, or the operator said so). `Standing.enter()` is the only way to a call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from node.errors import (
    Fault,
    SpillwayError,
    UpstreamAuth,
    UpstreamPoolFull,
    UpstreamQuota,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
)
from node.routing.balancer import PeakEwma
from node.routing.breaker import Breaker, BreakerLimits, BreakerState, Ticket, Verdict

_log = logging.getLogger("spillway.providers")

_DEFAULT_PAUSE_S = 1.0
_MAX_PAUSE_S = 60.0
OPERATOR = "operator"
"""What `isolated_by` says when nobody but the operator did it."""


def verdict_of(error: SpillwayError) -> Verdict:
    """What a failed call says of the provider. Being refused is an answer: it says nothing of how the provider does."""
    if isinstance(error, UpstreamRateLimited | UpstreamRejected | UpstreamAuth | UpstreamQuota | UpstreamPoolFull):
        return Verdict.NEUTRAL
    return Verdict.LOCAL_FAULT if error.fault is Fault.NODE else Verdict.UPSTREAM_FAULT


class Standing:
    """One provider's. `random` gives numbers from 0 up to 1; times are monotonic seconds.

    A first token that takes longer than `slow_s` counts as a failure, though the client gets its answer.
    """

    def __init__(self, name: str, random: Callable[[], float], limits: BreakerLimits, *, slow_s: float) -> None:
        self.name = name
        self.slow_s = slow_s
        self.breaker = Breaker(limits, random)
        self.recent_ttft = PeakEwma()
        self.in_flight = 0
        self.calls = 0
        """Made since start: what the ledger did not admit is none."""
        self.errors: dict[str, int] = {}
        """Calls that failed since start, by error code."""
        self.paused_until_s = 0.0
        self.isolated_by: str | None = None
        self.heard_s: float | None = None
        """When it last answered a call, None before the first."""
        self.account: str | None = None
        """What calls are paid from now, as something to compare: see `under`."""
        self._pauses = 0

    def under(self, account: str) -> None:
        """From now on calls go out under another address or key: what is still heard of the old one is no news of it.

        Neither is a pause that was asked of the old one.
        """
        if account != self.account:
            self.account, self.paused_until_s, self._pauses = account, 0.0, 0

    def is_available(self, now_s: float) -> bool:
        """Whether a call may be sent to it now."""
        return now_s >= self.paused_until_s and self.breaker.admits(now_s)

    def away_for_s(self, now_s: float) -> float | None:
        """For how long no call may be sent to it, as far as is known; None: until somebody mends it."""
        if self.isolated_by is not None:
            return None
        return max(0.0, self.paused_until_s - now_s, self.breaker.open_for_s(now_s))

    def enter(self, now_s: float) -> Visit | None:
        """One call's way in; None where none is let through now. The visit must be ended with `left()`."""
        if now_s < self.paused_until_s:
            return None
        ticket = self.breaker.enter(now_s)
        if ticket is None:
            return None
        self.in_flight += 1
        return Visit(self, ticket, now_s)

    def isolate(self, why: str, now_s: float) -> None:
        """Send nothing until `restore`, or until the node is started or its settings are read anew."""
        self.isolated_by = self.isolated_by or why
        self.breaker.isolate(now_s)

    def restore(self, now_s: float) -> None:
        """End an isolation: one call at a time is let through, until some have succeeded."""
        self.isolated_by = None
        self.breaker.restore(now_s)

    def failed(self, error: SpillwayError, now_s: float) -> None:
        """What an error says beyond that one call: 429 (and whatever names a time) pauses; 401, 402, 403 isolate.

        An isolation is logged once: only the operator can help.
        """
        if isinstance(error, UpstreamAuth | UpstreamQuota):
            if self.isolated_by is None:
                _log.warning("%s is left alone until a reload (%s): %s", self.name, error.code, error.message)
            self.isolate(error.code or OPERATOR, now_s)
        elif isinstance(error, UpstreamRateLimited) or error.retry_after_s:
            # One that names no time is asked again less and less often.
            pause_s = error.retry_after_s or _DEFAULT_PAUSE_S * 2.0 ** min(self._pauses, 10)
            self._pauses += 1
            self.paused_until_s = max(self.paused_until_s, now_s + min(pause_s, _MAX_PAUSE_S))

    def probed(self, error: SpillwayError | None, now_s: float, next_probe_s: float) -> None:
        """Take in a health check. A refusal shows that it is there, which is all that a check can ask."""
        verdict = Verdict.SUCCESS if error is None else verdict_of(error)
        if error is not None and verdict is Verdict.NEUTRAL:
            verdict = Verdict.SUCCESS
        if self.breaker.probed(verdict, now_s, next_probe_s):
            self._tell(now_s)

    def report(self, ticket: Ticket, verdict: Verdict, now_s: float) -> None:
        """One call's verdict, for the breaker."""
        if verdict is Verdict.SUCCESS:
            self._pauses = 0
        if self.breaker.report(ticket, verdict, now_s):
            self._tell(now_s)

    def _tell(self, now_s: float) -> None:
        state = self.breaker.state(now_s)
        if state is BreakerState.OPEN:
            why = "cannot be reached" if self.breaker.opened_by is Verdict.LOCAL_FAULT else "keeps failing"
            _log.warning("%s %s: left alone for %.1f s", self.name, why, self.breaker.open_for_s(now_s))
        elif state is BreakerState.CLOSED:
            _log.info("%s answers again", self.name)
        elif state is BreakerState.HALF_OPEN:
            _log.info("%s is tried again", self.name)


class Visit:
    """One call at a provider, from `Standing.enter()` to `left()`."""

    __slots__ = ("_account", "_entered_s", "_over", "_standing", "_ticket", "_told")

    def __init__(self, standing: Standing, ticket: Ticket, now_s: float) -> None:
        self._account = standing.account
        self._standing = standing
        self._ticket = ticket
        self._entered_s = now_s
        self._told = False
        self._over = False

    def began(self, ttft_s: float | None, now_s: float) -> None:
        """The answer has begun, `ttft_s` after the call (None for one that does not stream: its time says nothing)."""
        standing = self._standing
        standing.heard_s = now_s
        slow = ttft_s is not None and ttft_s > standing.slow_s
        if ttft_s is not None:
            standing.recent_ttft.add(ttft_s, now_s)
        self._tell(Verdict.UPSTREAM_FAULT if slow else Verdict.SUCCESS, now_s)

    def failed(self, error: SpillwayError, now_s: float) -> None:
        """The call failed, before its answer began or on the way."""
        code, errors = error.code or "unknown", self._standing.errors
        errors[code] = errors.get(code, 0) + 1
        if isinstance(error, UpstreamTimeout) and not self._told:
            self._standing.recent_ttft.add(now_s - self._entered_s, now_s)
        self._tell(verdict_of(error), now_s)
        if self._account == self._standing.account:
            self._standing.failed(error, now_s)

    def left(self, now_s: float, *, awaited: bool = False) -> None:
        """The call is over. Safe to call twice.

        A client that hung up says nothing; but one that `awaited` a first token for longer than `slow_s` was right to.
        """
        if self._over:
            return
        self._over = True
        self._standing.in_flight -= 1
        if not self._told:
            slow = awaited and now_s - self._entered_s > self._standing.slow_s
            self._tell(Verdict.UPSTREAM_FAULT if slow else Verdict.NEUTRAL, now_s)

    def _tell(self, verdict: Verdict, now_s: float) -> None:
        self._told = True
        self._standing.report(self._ticket, verdict, now_s)
