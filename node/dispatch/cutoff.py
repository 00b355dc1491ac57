"""A time limit that asks first whether it is to be kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

_LOOK_AGAIN_S = 0.5


@asynccontextmanager
async def cut_off(after_s: float, when: Callable[[], bool], error: Exception) -> AsyncIterator[None]:
    """Raise `error` in the body after `after_s` seconds, or later: as soon as `when()` holds, from then on."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None
    try:
        async with asyncio.timeout(None) as limit:

            def look() -> None:
                nonlocal timer
                if when():
                    limit.reschedule(loop.time())
                else:
                    timer = loop.call_later(_LOOK_AGAIN_S, look)

            timer = loop.call_later(after_s, look)
            try:
                yield
            finally:
                timer.cancel()
    except TimeoutError as cut:
        raise error from cut
