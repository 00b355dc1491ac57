"""One request's outputs from the engine, counted, and aborted on every way out but its end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from node.money import Usage


@dataclass(slots=True)
class Tally:
    """What one call has had from the engine so far.

    `on_queued` is told the number of sequences, and the engine's id for them, when the engine's own count takes them
    over, `on_finished` why each one came to its end. `output_cap`, when set, replaces vLLM's default for a call whose
    client named no maximum. `cached_tokens` of the prompt were in the prefix cache. `failure` is what the engine
    raised, before vLLM's serving objects turn it into a text. `live` holds the engine's ids of what is still running.
    """

    on_queued: Callable[[int, str], None] = lambda sequences, request_id: None
    on_finished: Callable[[str], None] = lambda reason: None
    output_cap: int | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    failure: BaseException | None = None
    live: set[str] = field(default_factory=set)

    def usage(self) -> Usage:
        """The counts so far."""
        return Usage(self.prompt_tokens, self.output_tokens, cached_tokens=self.cached_tokens)


# The call being handed to vLLM's serving objects in this context; see `CountedEngine`.
current_tally: ContextVar[Tally | None] = ContextVar("current_tally", default=None)


async def outputs(
    llm: Any, prompt: Any, params: Any, request_id: str, tally: Tally, **options: Any
) -> AsyncGenerator[Any, None]:
    """The engine's `RequestOutput`s for one rendered prompt.

    `AsyncLLM.generate` is not used because it does not abort a request that is cancelled while being handed over, and
    because the moment of hand-over is what `EngineLoad.in_flight` needs.
    """
    queue = None
    first, finished = True, False
    try:
        queue = await llm.add_request(request_id, prompt, params, **options)
        tally.live.add(queue.request_id)
        tally.on_queued(params.n, queue.request_id)
        while not finished:
            output = queue.get_nowait() or await queue.get()
            finished = output.finished
            if first:
                tally.prompt_tokens += len(output.prompt_token_ids or ()) + len(output.encoder_prompt_token_ids or ())
                tally.cached_tokens += output.num_cached_tokens or 0
                first = False
            for completion in output.outputs:
                tally.output_tokens += len(completion.token_ids)
                if completion.finish_reason is not None:
                    tally.on_finished(completion.finish_reason)
            yield output
    except Exception as error:
        tally.failure = error
        raise
    except BaseException as error:
        tally.failure = error
        if queue is None:  # cancelled while being handed over: only the id we gave it is known
            await llm.abort(request_id)
        raise
    finally:
        if queue is not None:
            if not finished:
                await llm.abort(queue.request_id, internal=True)
            tally.live.discard(queue.request_id)
            queue.close()


async def abort(llm: Any, tally: Tally) -> None:
    """Stop whatever is still running for the call; does nothing once all has finished."""
    if tally.live:
        await llm.abort(tuple(tally.live), internal=True)


class CountedEngine:
    """The engine as vLLM's serving objects see it: a generation goes through `outputs`, all else is the engine's.

    The tally is taken from `current_tally` when the generator is made, which is inside the serving object's `create_*`.
    """

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    def generate(self, prompt: Any, sampling_params: Any, request_id: str, **options: Any) -> AsyncGenerator[Any, None]:
        """`AsyncLLM.generate`, counted."""
        tally = current_tally.get()
        if tally is None:
            stream: AsyncGenerator[Any, None] = self._llm.generate(prompt, sampling_params, request_id, **options)
            return stream
        if tally.output_cap is not None:
            room = self._llm.model_config.max_model_len - len(prompt.get("prompt_token_ids") or ())
            sampling_params.max_tokens = max(1, min(tally.output_cap, room))
        return outputs(self._llm, prompt, sampling_params, request_id, tally, **options)
