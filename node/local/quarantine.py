"""Requests that were running when an engine died: at the second time they are kept away from it. No clock, no engine.

A prompt that crashes a kernel, or makes a step run out of memory, kills the engine for everybody, and its caller will
send it again. Nobody can tell which of those that were running did it; but only that one is there every time.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import msgspec

from node.backend import Call

_DEATHS = 2
_KEEP_S = 3600.0
_MOST = 4096  # a death leaves as many as an engine runs at a time: some hundreds


@dataclass(frozen=True, slots=True)
class _Suspect:
    """Seen at `deaths` different deaths, the last one being that of engine number `engine`, at `at_s`."""

    deaths: int
    engine: int
    at_s: float


class Quarantine:
    """What is remembered of such requests: digests of at most 4,096 bodies, each for an hour after the last death."""

    def __init__(self) -> None:
        self._suspects: OrderedDict[bytes, _Suspect] = OrderedDict()  # oldest death first

    def __len__(self) -> int:
        return len(self._suspects)

    def died_with(self, call: Call, engine: int, now_s: float) -> None:
        """Engine number `engine` died while it worked on `call`. However often the same request ran then, it is one."""
        self._forget(now_s)
        key = _fingerprint(call)
        known = self._suspects.pop(key, None)
        if known is not None and known.engine == engine:
            self._suspects[key] = known
            return
        self._suspects[key] = _Suspect((known.deaths if known else 0) + 1, engine, now_s)
        if len(self._suspects) > _MOST:
            self._suspects.popitem(last=False)

    def held_for_s(self, call: Call, now_s: float) -> float | None:
        """For how many seconds more the engine is not given `call`; None when it may have it."""
        if not self._suspects:
            return None  # as nearly always: nothing is encoded or hashed then
        self._forget(now_s)
        suspect = self._suspects.get(_fingerprint(call))
        return suspect.at_s + _KEEP_S - now_s if suspect is not None and suspect.deaths >= _DEATHS else None

    def _forget(self, now_s: float) -> None:
        while self._suspects and next(iter(self._suspects.values())).at_s + _KEEP_S <= now_s:
            self._suspects.popitem(last=False)


def _fingerprint(call: Call) -> bytes:
    """Of what the engine computes: the same request sent again, by whomever, has the same one."""
    return hashlib.sha256(msgspec.json.encode((call.kind, call.model, call.body), order="sorted")).digest()
