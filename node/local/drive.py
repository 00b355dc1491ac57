"""A ready engine driven directly, past HTTP and routing: token prompts of a given length, answers of a given length."""

from __future__ import annotations

from node.backend import Kind
from node.local.engine import LocalEngine
from node.local.outputs import outputs


class DirectDrive:
    """What calibration needs of an engine. Answers are streamed, so that this process has its usual work.

    They are sampled as those of requests that say nothing about it: on a CPU that is a good part of a step.

    Its KV cache is given out in blocks of `block_tokens`; `steps_ahead` is 1 if it schedules asynchronously.
    """

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine
        self._numbers = 0
        vocabulary_size = engine.vocabulary_size
        assert vocabulary_size is not None
        self.vocabulary_size = vocabulary_size
        self._sampling = engine.serving().default_sampling(Kind.COMPLETION)
        config = engine.serving().llm.vllm_config
        self.block_tokens: int = config.cache_config.block_size or 1
        self.steps_ahead = engine.serving().steps_ahead

    async def generate(self, prompt: list[int], output_tokens: int) -> None:
        """Compute `prompt` and generate exactly `output_tokens`. Cancelling aborts the sequence in the engine."""
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        params = SamplingParams(
            **self._sampling
            | {"max_tokens": output_tokens, "ignore_eos": True, "output_kind": RequestOutputKind.DELTA, "seed": None}
        )
        self._numbers += 1
        name = f"calibrate-{self._numbers}"
        with self._engine.work.entering(name, 1) as tally:
            async for _ in outputs(self._engine.serving().llm, tokens_input(prompt), params, name, tally):
                pass
