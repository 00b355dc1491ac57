"""Requests and tokens per minute and key, counted in memory. What comes too soon is refused before it is placed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node.api.responses import HeaderList
from node.caller import Caller
from node.dispatch.outcome import Outcome
from node.errors import MoreThanAMinute, RateLimited
from node.routing.rate_limit import Allowance
from node.routing.values import Features


@dataclass(frozen=True, slots=True)
class _Meter:
    requests: Allowance | None
    tokens: Allowance | None


class RateLimits:
    """What each limited caller has left. `clock` gives monotonic seconds.

    Tokens are taken when a request is admitted, as many as it may come to, and what it did not use is given back at its
    end. A caller whose limit is changed has all of the new one.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._meters: dict[str, _Meter] = {}

    def take(self, caller: Caller, features: Features) -> None:
        """Count a request. Raises `RateLimited`; then it counts for nothing."""
        meter, now_s, tokens = self._meter(caller), self._clock(), features.most_tokens
        if meter.tokens is not None and tokens > meter.tokens.per_minute:
            raise MoreThanAMinute(
                f"The request may come to {tokens} tokens, prompt and answer together, and its key has "
                f"{meter.tokens.per_minute} per minute. Ask for fewer with `max_tokens`."
            )
        if meter.requests is not None and (wait_s := meter.requests.wait_s(1, now_s)) > 0.0:
            raise _too_soon(f"{meter.requests.per_minute} requests per minute", wait_s)
        if meter.tokens is not None and (wait_s := meter.tokens.wait_s(tokens, now_s)) > 0.0:
            left = meter.tokens.left(now_s)
            used = f"{meter.tokens.per_minute} tokens per minute but {left}, and the request may come to {tokens}"
            raise _too_soon(used, wait_s)
        if meter.requests is not None:
            meter.requests.take(1, now_s)
        if meter.tokens is not None:
            meter.tokens.take(tokens, now_s)

    def settle(self, outcome: Outcome) -> None:
        """A request is over: give back the tokens it did not use. One that was answered from memory used none."""
        meter = self._meters.get(outcome.tenant)
        if meter is None or meter.tokens is None:
            return
        used = outcome.usage.total_tokens if outcome.usage is not None and outcome.backend != "cache" else 0
        meter.tokens.take(used - outcome.most_tokens, self._clock())

    def headers(self, caller: Caller) -> HeaderList:
        """OpenAI's headers: what the caller may have, has left, and when it has all of it again."""
        meter, now_s = self._meter(caller), self._clock()
        headers: HeaderList = []
        for name, allowance in ((b"requests", meter.requests), (b"tokens", meter.tokens)):
            if allowance is not None:
                headers += [
                    (b"x-ratelimit-limit-" + name, b"%d" % allowance.per_minute),
                    (b"x-ratelimit-remaining-" + name, b"%d" % allowance.left(now_s)),
                    (b"x-ratelimit-reset-" + name, _duration(allowance.full_in_s(now_s)).encode()),
                ]
        return headers

    def _meter(self, caller: Caller) -> _Meter:
        meter = self._meters.get(caller.tenant)
        if meter is None or _limits(meter) != (caller.requests_per_minute, caller.tokens_per_minute):
            meter = self._meters[caller.tenant] = _Meter(
                _allowance(caller.requests_per_minute), _allowance(caller.tokens_per_minute)
            )
        return meter


def _too_soon(used: str, wait_s: float) -> RateLimited:
    again = f"Please try again in {_duration(wait_s)}."
    return RateLimited(f"The key has used its {used}. {again}", retry_after_s=wait_s)


def _allowance(per_minute: int | None) -> Allowance | None:
    return None if per_minute is None else Allowance(per_minute)


def _limits(meter: _Meter) -> tuple[int | None, int | None]:
    requests, tokens = meter.requests, meter.tokens
    return (None if requests is None else requests.per_minute, None if tokens is None else tokens.per_minute)


def _duration(seconds: float) -> str:
    """As OpenAI writes it: ``6m0s``, ``1.5s``, ``20ms``."""
    if seconds < 1.0:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 3), 60.0)
    return f"{int(minutes)}m{rest:.3g}s" if minutes else f"{round(rest, 3):g}s"
