"""Whether one more request may come in, asked before anything of it is read: not while the node ends or is short."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from node.errors import HostExhausted, HostStrained, ShuttingDown, SpillwayError
from node.watch.strain import Level, Strain

_RETRY_STRAINED_S = 2.0
_RETRY_EXHAUSTED_S = 5.0


class Guest:
    """One request inside, and the bytes of its body that are held for it."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self.held_bytes = 0

    def hold(self, size_bytes: int) -> None:
        """Count another piece of its body. Raises `HostExhausted` where all requests together hold too much."""
        self._door.take_bytes(size_bytes)
        self.held_bytes += size_bytes


class Door:
    """Counts who is inside. `strain` says how short the machine is; `max_bytes` bounds the bodies of all together."""

    def __init__(self, *, strain: Callable[[], Strain], max_bytes: Callable[[], int]) -> None:
        self._strain = strain
        self._max_bytes = max_bytes
        self.inside = 0
        self.held_bytes = 0
        self.closed = False
        self.turned_away: dict[str, int] = {}

    def close(self) -> None:
        """Nobody comes in any more; who is inside stays."""
        self.closed = True

    def count(self, refusal: SpillwayError) -> None:
        """Note a refusal that no outcome tells of: of a connection, of what is not yet a request, by a rate limit."""
        code = refusal.code or "invalid_request"
        self.turned_away[code] = self.turned_away.get(code, 0) + 1

    @contextmanager
    def through(self) -> Iterator[Guest]:
        """Let a request in for the length of the block.

        Raises `ShuttingDown` (503) when the door is closed, `HostStrained` (429) when as many are inside as a strained
        machine should hold, and `HostExhausted` (503) when it should hold none.
        """
        refusal = self._refusal()
        if refusal is not None:
            raise self._count(refusal)
        guest = Guest(self)
        self.inside += 1
        try:
            yield guest
        finally:
            self.inside -= 1
            self.held_bytes -= guest.held_bytes

    def take_bytes(self, size_bytes: int) -> None:
        """Count bytes of a body; for `Guest.hold`."""
        if self.held_bytes + size_bytes > self._max_bytes():
            message = f"The requests being served hold {self.held_bytes} bytes, and the node takes no more for now."
            raise self._count(HostExhausted(message, retry_after_s=_RETRY_STRAINED_S))
        self.held_bytes += size_bytes

    def _refusal(self) -> SpillwayError | None:
        if self.closed:
            return ShuttingDown(
                "The node is shutting down, and takes no new requests.", retry_after_s=_RETRY_STRAINED_S
            )
        strain = self._strain()
        if strain.most_inside is None or self.inside < strain.most_inside:
            return None
        if strain.level is Level.EXHAUSTED:
            message = f"The node is out of {strain.scarce}."
            return HostExhausted(message, retry_after_s=_RETRY_EXHAUSTED_S)
        message = f"The node is short of {strain.scarce} and holds {self.inside} requests, as many as it should."
        return HostStrained(message, retry_after_s=_RETRY_STRAINED_S)

    def _count(self, refusal: SpillwayError) -> SpillwayError:
        self.count(refusal)
        return refusal
