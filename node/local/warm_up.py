"""What a new engine does before the first caller: compile what compiles on first use, then be timed.

Whatever compiles later would make the whole engine stand still then: up to twenty seconds for a grammar on CPU, seven
for log-probabilities. What is timed afterwards is varied, one sequence and a few, longer and shorter prompts, so that
routing starts with a step model and not with a mean. The learner wants some thirty steps: a third of a second on a GPU.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any

from node.local.outputs import Tally, outputs
from node.local.serving import Serving

# Long enough for a prefill cost worth knowing, short enough for the slowest CPU.
_LONG_TOKENS, _SHORT_TOKENS = 256, 64
_OUTPUT_TOKENS = 5
_FEW = 8
_canaries = count()
# Sequences together and the length of their prompts. Any two in a row tell the three terms of the step model apart.
_TIMED = ((_FEW, _SHORT_TOKENS), (1, _LONG_TOKENS), (_FEW // 2, _SHORT_TOKENS), (1, _SHORT_TOKENS)) * 2


async def warm_up(serving: Serving, *, grammar: bool, compiled: Callable[[], None]) -> None:
    """Generate until nothing compiles any more, call `compiled`, then generate what is to be learned from.

    `grammar`: whether the model is asked for structured output.
    """
    from vllm.sampling_params import StructuredOutputsParams

    numbers = count()
    if grammar:
        json = StructuredOutputsParams(json_object=True)
        await _generate(serving, next(numbers), _LONG_TOKENS, logprobs=1, ignore_eos=False, structured_outputs=json)
    else:
        await _generate(serving, next(numbers), _LONG_TOKENS, logprobs=1)
    few = min(_FEW, serving.max_sequences)
    await asyncio.gather(*(_generate(serving, next(numbers), _SHORT_TOKENS) for _ in range(few)))
    compiled()
    for sequences, prompt_tokens in _TIMED:
        together = min(sequences, serving.max_sequences)
        await asyncio.gather(*(_generate(serving, next(numbers), prompt_tokens) for _ in range(together)))


async def canary(serving: Serving) -> None:
    """Generate one token: whether the engine still makes steps."""
    await _generate(serving, next(_canaries), 1, name="canary", output_tokens=1)


async def _generate(
    serving: Serving,
    number: int,
    prompt_tokens: int,
    *,
    name: str = "warm-up",
    output_tokens: int = _OUTPUT_TOKENS,
    ignore_eos: bool = True,
    **more: Any,
) -> None:
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    vocabulary = serving.vocabulary_size
    length = max(1, min(prompt_tokens, serving.context_tokens - output_tokens))
    # Different from the first token on, or the later prompts would come from the prefix cache.
    prompt = tokens_input([(number * 31 + token * (number + 1)) % vocabulary for token in range(length)])
    params = SamplingParams(
        temperature=0.0,
        max_tokens=output_tokens,
        ignore_eos=ignore_eos,
        output_kind=RequestOutputKind.FINAL_ONLY,
        **more,
    )
    async for _ in outputs(serving.llm, prompt, params, f"{name}-{number}", Tally()):
        pass
