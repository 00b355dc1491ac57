"""An event loop whose clock jumps to the next timer instead of waiting for it."""

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any


class StuckError(Exception):
    """Everybody waits, and nothing that could wake anybody is planned."""


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0
        self.stuck = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None and not self.stuck:
            self.stuck = True  # said once, so that the loop can still be closed
            raise StuckError
        self.now_s += 0.0 if ready else max(timeout or 0.0, 0.0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Real tasks and real timers in virtual seconds. For stories without sockets or threads."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Virtual monotonic seconds."""
        return self._jumping.now_s


def in_virtual_time(story: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test on a loop of its own, in virtual time."""

    @functools.wraps(story)
    def test(*args: Any, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(story(*args, **kwargs))

    return test


def now_s() -> float:
    """The running loop's time: what the parts under test are given as their clock."""
    return asyncio.get_running_loop().time()


async def settle() -> None:
    """Let every task that can run do so, without any time passing."""
    for _ in range(20):
        await asyncio.sleep(0)
