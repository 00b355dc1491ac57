"""`/v1/completions`: the request as typed values, and the rules between its fields."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from node.api.body import Headers
from node.api.schema_common import (
    COMPLETION_DEFAULTS,
    DEFAULT_LIMITS,
    MAX_TOKEN_ID,
    VLLM_ONLY,
    CommonRequest,
    Draft,
    InputLimits,
    ParsedRequest,
    TopLogprobs,
    finish,
    read,
    text_bytes,
)
from node.backend import Kind
from node.errors import InvalidRequest
from node.routing.values import Capability

_TOKENS_SCHEMA = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID}}
_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
        _TOKENS_SCHEMA,
        {"type": "array", "minItems": 1, "items": _TOKENS_SCHEMA},
    ]
}
_SHAPES = "a string, a list of strings, a list of token ids or a list of lists of token ids"


class CompletionRequest(CommonRequest, omit_defaults=True, kw_only=True, gc=False):
    """The body of `/v1/completions`."""

    prompt: Annotated[Any, Meta(extra_json_schema=_PROMPT_SCHEMA)]
    echo: bool | None = None
    logprobs: TopLogprobs | None = None


_COMPLETION_VLLM_ONLY = VLLM_ONLY | {"echo"}


def parse_completion(
    document: dict[str, Any],
    headers: Headers = (),
    *,
    strict: bool = False,
    limits: InputLimits = DEFAULT_LIMITS,
    vocab_size: int | None = None,
) -> ParsedRequest:
    """Check a decoded completions request and turn it into a value; arguments and errors as for `parse_chat`."""
    request, ignored = read(document, CompletionRequest, strict=strict)
    draft = Draft(msgspec.to_builtins(request))
    draft.needs.add(Capability.COMPLETIONS)
    if request.logprobs is not None:
        draft.needs.add(Capability.LOGPROBS)
    elif request.logprob_token_ids:
        raise InvalidRequest("'logprob_token_ids' needs 'logprobs'.", param="logprob_token_ids")
    draft.look_for_sampling(_COMPLETION_VLLM_ONLY, COMPLETION_DEFAULTS)
    _read_prompt(request.prompt, draft, limits, vocab_size)
    return finish(Kind.COMPLETION, request, draft, ignored, document, headers, limits, vocab_size)


def _read_prompt(prompt: Any, draft: Draft, limits: InputLimits, vocab_size: int | None) -> None:
    if isinstance(prompt, str):
        draft.prompt_bytes = _text(prompt, "prompt")
        return
    if not isinstance(prompt, list):
        raise InvalidRequest(f"Invalid value for 'prompt': expected {_SHAPES}.", param="prompt")
    if not prompt:
        raise InvalidRequest("Invalid value for 'prompt': it is empty.", param="prompt")
    first = prompt[0]
    if type(first) is int:
        draft.needs.add(Capability.TOKEN_PROMPT)
        draft.prompt_bytes = _tokens(prompt, "prompt", vocab_size)
        return
    draft.prompts = len(prompt)
    if draft.prompts > limits.max_prompts:
        raise InvalidRequest(
            f"Invalid value for 'prompt': at most {limits.max_prompts} prompts in one request.", param="prompt"
        )
    if isinstance(first, list):
        draft.needs.add(Capability.TOKEN_PROMPT)
        draft.prompt_bytes = sum(_tokens(item, f"prompt[{i}]", vocab_size) for i, item in enumerate(prompt))
    else:
        draft.prompt_bytes = sum(_text(item, f"prompt[{i}]") for i, item in enumerate(prompt))


def _text(text: Any, param: str) -> int:
    if not isinstance(text, str):
        raise InvalidRequest(f"Invalid value for '{param}': expected {_SHAPES}.", param=param)
    if not text:
        raise InvalidRequest(f"Invalid value for '{param}': it is empty.", param=param)
    return text_bytes(text)


def _tokens(tokens: Any, param: str, vocab_size: int | None) -> int:
    """The number of token ids: each is one token, so it also bounds them."""
    if not isinstance(tokens, list) or set(map(type, tokens)) != {int}:
        raise InvalidRequest(f"Invalid value for '{param}': expected a list of token ids.", param=param)
    highest = MAX_TOKEN_ID if vocab_size is None else vocab_size - 1
    if min(tokens) < 0 or max(tokens) > highest:
        raise InvalidRequest(f"Invalid value for '{param}': token ids go from 0 to {highest}.", param=param)
    return len(tokens)
