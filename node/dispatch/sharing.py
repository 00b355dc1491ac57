"""One upstream call for identical requests in flight, and cached answers after it.

Only for requests whose answer may be cached. The call runs in a task of its own and keeps its chunks; everyone who
asked, the first one too, reads along from the start. When the last reader has gone before the end, the call is stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from node.backend import Call, Chunk
from node.dispatch.dispatcher import Answer
from node.dispatch.journey import Journey, cancelled_by
from node.errors import SpillwayError
from node.money import nano_to_usd_text
from node.store.cache import CachedAnswer, ResponseCache

StartCall = Callable[[], Awaitable[Answer]]


class _Flight:
    """One call under way: its chunks so far, who reads them, how it ended."""

    def __init__(self, key: bytes, call: Call) -> None:
        self.key = key
        self.call = call
        self.chunks: list[Chunk] = []
        self.journey: Journey | None = None
        self.error: BaseException | None = None
        self.over = False
        self.readers = 0
        self.moved = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def move(self) -> None:
        """Wake every reader."""
        self.moved.set()
        self.moved = asyncio.Event()

    def kept(self) -> CachedAnswer | None:
        """The whole answer for the cache, or None while there is no whole one."""
        last = self.chunks[-1] if self.chunks else None
        if self.error is not None or last is None or last.usage is None or self.journey is None:
            return None
        return CachedAnswer(
            data=b"".join(chunk.data for chunk in self.chunks),
            response_id=self.call.response_id,
            cost_text=nano_to_usd_text(self.journey.answer_nano_usd),
            served_model=self.journey.served_model or self.call.model,
            usage=last.usage,
        )


class SharedAnswer:
    """One reader's view of a call under way. `owner` is the reader whose request started it."""

    def __init__(self, flight: _Flight, call: Call, leave: Callable[[_Flight], None], *, owner: bool) -> None:
        self._flight = flight
        self._leave = leave
        self._call = call
        self.owner = owner
        self._left = False
        self._cut: SpillwayError | None = None
        flight.readers += 1

    @property
    def journey(self) -> Journey:
        """The notes of the call itself; there once `began()` has returned."""
        assert self._flight.journey is not None
        return self._flight.journey

    async def began(self) -> None:
        """Wait for the first content. Raises what the call raised."""
        flight = self._flight
        while flight.journey is None and not flight.over:
            await flight.moved.wait()
        if flight.journey is None:
            raise flight.error or SpillwayError("The call was stopped.")

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """The call's chunks from its start, under this reader's own response id."""
        flight, position = self._flight, 0
        theirs, ours = flight.call.response_id.encode(), self._call.response_id.encode()
        while True:
            while position < len(flight.chunks):
                chunk = flight.chunks[position]
                position += 1
                if not self.owner:
                    chunk = Chunk(
                        chunk.data.replace(theirs, ours),
                        chunk.has_content,
                        chunk.output_tokens,
                        chunk.usage,
                        chunk.finish_reason,
                    )
                yield chunk
            if flight.error is not None:
                raise flight.error
            if flight.over:
                return
            await flight.moved.wait()

    def cut(self, why: SpillwayError | None) -> None:
        """Say that this reader stops, for `why`, before the end. None: because its client has hung up."""
        self._cut = why

    async def aclose(self) -> None:
        """Stop reading. The last to leave before the end stops the call, and waits until it has let go."""
        if self._left:
            return
        self._left = True
        flight = self._flight
        flight.readers -= 1
        if flight.readers == 0 and not flight.over and flight.task is not None:
            self._leave(flight)  # first, so that nobody can join a call that is being stopped
            flight.task.cancel(self._cut)
            await asyncio.wait([flight.task])


class Sharing:
    """Cached answers and calls under way, by cache key."""

    def __init__(self, cache: ResponseCache) -> None:
        self._cache = cache
        self._flights: dict[bytes, _Flight] = {}

    def cached(self, key: bytes) -> CachedAnswer | None:
        """A whole answer kept from before."""
        return self._cache.get(key)

    def join(self, key: bytes, call: Call, start: StartCall) -> SharedAnswer:
        """Read along with the call under way for `key`, or begin one with `start`."""
        flight = self._flights.get(key)
        if flight is not None:
            return SharedAnswer(flight, call, self._forget, owner=False)
        flight = self._flights[key] = _Flight(key, call)
        shared = SharedAnswer(flight, call, self._forget, owner=True)
        flight.task = asyncio.create_task(self._run(flight, start), name=f"shared-{call.request_id}")
        flight.task.add_done_callback(lambda task: self._landed(flight, task))
        return shared

    async def _run(self, flight: _Flight, start: StartCall) -> None:
        answer = await start()
        try:
            flight.journey = answer.journey
            async for chunk in answer:
                flight.chunks.append(chunk)
                flight.move()
        except asyncio.CancelledError as cancelled:
            answer.cut(cancelled_by(cancelled))
            raise
        finally:
            await answer.aclose()

    def _landed(self, flight: _Flight, task: asyncio.Task[None]) -> None:
        """The call is over, whichever way: a callback, because a task that is cancelled early never runs at all."""
        flight.over = True
        if not task.cancelled():
            flight.error = task.exception()
        if (kept := flight.kept()) is not None and not task.cancelled():
            self._cache.put(flight.key, kept)
        self._forget(flight)
        flight.move()

    def _forget(self, flight: _Flight) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
