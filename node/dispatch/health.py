"""Asks providers that nobody calls whether they are there, and pays no tokens for it: by their list of models."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from node.dispatch.standing import Standing, verdict_of
from node.errors import SpillwayError, UpstreamAuth, UpstreamQuota
from node.routing.breaker import BreakerState, Verdict

_log = logging.getLogger("spillway.health")

_LONGEST_S: Final = 5.0
_IDLE_INTERVALS: Final = 12  # a provider that is well and idle is asked so much less often


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One provider to look after: every `interval_s` while it is down. `models` are those the catalogue names there."""

    standing: Standing
    interval_s: float
    models: frozenset[str]


Probe = Callable[[str, float], Awaitable[Collection[str]]]
"""The models the provider of that name lists, within so many seconds; raises `SpillwayError`."""


class HealthChecks:
    """Checks every provider on a task of its own, so that a slow one delays nobody. `random` gives 0 up to 1.

    A provider that is down is asked once per interval, one that is well only when no call has been answered for twelve
    of them; one that is paused or isolated is left alone. Where the list of models has never been had, only a road that
    is closed counts as a fault: not every server has that list.
    """

    def __init__(
        self,
        checked: Mapping[str, Checked],
        probe: Probe,
        *,
        clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        self._checked = checked
        self._probe = probe
        self._clock = clock
        self._random = random
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = False
        self._failing: set[str] = set()
        self._lists: set[str] = set()
        self._asked_s: dict[str, float] = {}

    def start(self) -> None:
        """Begin; the first questions come after one interval."""
        self._started = True
        for name in self._checked:
            task = asyncio.create_task(self._watch(name), name=f"health of {name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def replace(self, checked: Mapping[str, Checked]) -> None:
        """From now on these are looked after, and no others. What is known of one of that name stays known."""
        for task in self._tasks:
            task.cancel()
        self._checked = checked
        if self._started:
            self.start()

    async def stop(self) -> None:
        """End all of it."""
        self._started = False
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def check(self, name: str) -> None:
        """Ask one provider now, whether it is due or not, and tell its standing."""
        checked = self._checked[name]
        error: SpillwayError | None = None
        self._asked_s[name] = self._clock()
        try:
            listed = await self._probe(name, min(_LONGEST_S, checked.interval_s))
        except SpillwayError as failure:
            error = failure
        else:
            self._tell_missing(name, checked.models - set(listed))
        now_s = self._clock()
        verdict = Verdict.SUCCESS if error is None else verdict_of(error)
        if verdict is Verdict.UPSTREAM_FAULT and name not in self._lists:
            return
        if error is not None and verdict is not Verdict.NEUTRAL:
            self._failing.add(name)
        else:
            self._failing.discard(name)
        if isinstance(error, UpstreamAuth | UpstreamQuota):
            _log.warning("%s refused a question that costs nothing (%s): %s", name, error.code, error.message)
        checked.standing.probed(error, now_s, now_s + 1.5 * checked.interval_s)

    def is_due(self, name: str) -> bool:
        """Whether the provider is to be asked, now that another interval is over."""
        checked, now_s = self._checked[name], self._clock()
        standing = checked.standing
        state = standing.breaker.state(now_s)
        if state is BreakerState.ISOLATED or now_s < standing.paused_until_s:
            return False
        if state is not BreakerState.CLOSED or name in self._failing:
            return True
        known_s = max(standing.heard_s or 0.0, self._asked_s.get(name, 0.0))
        return known_s == 0.0 or now_s - known_s >= _IDLE_INTERVALS * checked.interval_s

    async def _watch(self, name: str) -> None:
        while True:
            # Never all at once, and never longer apart than the interval.
            await asyncio.sleep(self._checked[name].interval_s * (1.0 - 0.2 * self._random()))
            if self.is_due(name):
                await self.check(name)

    def _tell_missing(self, name: str, missing: frozenset[str]) -> None:
        if name not in self._lists and missing:
            _log.warning("%s does not list %s, which the catalogue names there", name, ", ".join(sorted(missing)))
        self._lists.add(name)
