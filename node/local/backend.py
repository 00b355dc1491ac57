"""The local engine behind the seam that clouds share."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractContextManager, aclosing, contextmanager, nullcontext

from node.backend import Call, Chunk, Kind
from node.local import plain
from node.local.engine import LocalEngine
from node.local.errors import from_exception
from node.money import Usage


class LocalBackend:
    """Answers calls with the model this process runs. Free of charge, and it never leaves the machine.

    `guard` is entered with each call before the engine is given it, and left with whatever came of it.
    """

    def __init__(
        self,
        engine: LocalEngine,
        guard: Callable[[Call], AbstractContextManager[None]] = lambda call: nullcontext(),
    ) -> None:
        self._engine = engine
        self._guard = guard

    @property
    def name(self) -> str:
        """What `x-spillway-backend` says."""
        return "local"

    @property
    def served_model(self) -> str:
        """The catalogue name of the model."""
        return self._engine.model_name

    def usage_so_far(self) -> Usage | None:
        """Nothing to settle: local tokens are free, and one backend serves all calls."""
        return None

    async def open(self, call: Call) -> AsyncGenerator[Chunk, None]:
        """Stream the answer. Raises only `SpillwayError`; closing or cancelling aborts the request in the engine."""
        with (
            self._guard(call),
            _our_errors(call.kind),
            self._engine.work.entering(call.request_id, _sequences(call)) as tally,
        ):
            serving = self._engine.serving()
            fast = serving.takes_plain(call) and plain.fits_fast_path(call)
            source = plain.answer(serving, call, tally) if fast else serving.answer(call, tally)
            async with aclosing(source):
                async for chunk in source:
                    yield chunk


def _sequences(call: Call) -> int:
    """How many sequences the engine will run for `call`."""
    prompt = call.body.get("prompt")
    many = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
    prompts = len(prompt) if many and isinstance(prompt, list) else 1
    choices = call.body.get("n")
    return prompts * (choices if isinstance(choices, int) and choices > 0 else 1)


@contextmanager
def _our_errors(kind: Kind) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        ours = from_exception(error, kind)
        if ours is error:
            raise
        raise ours from error
