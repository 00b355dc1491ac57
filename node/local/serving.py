"""vLLM's own serving objects, held in this process: every feature behaves as under ``vllm serve``."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from node.backend import Call, Chunk, Kind
from node.errors import EngineFailed, EngineUnavailable
from node.local.errors import from_document, from_exception
from node.local.frames import WireUsage, read, relabel, usage_frame
from node.local.outputs import Tally, abort, current_tally
from node.sse import encode, usage_object

# Fields that are the node's to set on a request.
_NODE_FIELDS = frozenset({"model", "stream", "stream_options", "request_id"})


class Serving:
    """The pieces of a started engine that answer calls. `llm` is the engine, `state` what vLLM built around it.

    `kv_tokens` is what its KV cache holds, None when vLLM does not say; vLLM counts "GPU" blocks on every device.
    `steps_ahead` is 1 if it puts a step together while the one before it runs (asynchronous scheduling).
    """

    def __init__(self, llm: Any, state: Any) -> None:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest

        self.llm = llm
        self.context_tokens: int = llm.model_config.max_model_len
        self.vocabulary_size: int = llm.model_config.get_vocab_size()
        self.max_sequences: int = llm.vllm_config.scheduler_config.max_num_seqs
        self.max_batched_tokens: int = llm.vllm_config.scheduler_config.max_num_batched_tokens
        self.steps_ahead = 1 if llm.vllm_config.scheduler_config.async_scheduling else 0
        cache = llm.vllm_config.cache_config
        blocks, block_tokens = cache.num_gpu_blocks, cache.block_size
        self.kv_tokens: int | None = blocks * block_tokens if blocks and block_tokens else None
        self.renderer = state.online_renderer
        self._objects = {Kind.CHAT: state.openai_serving_chat, Kind.COMPLETION: state.openai_serving_completion}
        self._requests = {Kind.CHAT: ChatCompletionRequest, Kind.COMPLETION: CompletionRequest}
        # Validated once and copied per plain call: pydantic's own construction costs more than all of the rest.
        self._prototypes = {
            Kind.CHAT: ChatCompletionRequest.model_validate({"messages": [{"role": "user", "content": "-"}]}),
            Kind.COMPLETION: CompletionRequest.model_validate({"prompt": "-"}),
        }
        self._models = state.openai_serving_models
        parser = self.renderer.parser
        # A reasoning parser splits every answer and some parsers rewrite every request: nothing is plain under those.
        self._plain_chat = not self.renderer.use_harmony and (
            parser is None or (parser.reasoning_parser_cls is None and not parser.always_adjust_request)
        )

    def takes_plain(self, call: Call) -> bool:
        """Whether plain text stays plain text under this model's parsers, and no adapter is asked for."""
        return (call.kind is Kind.COMPLETION or self._plain_chat) and call.model not in self._models.lora_requests

    def default_sampling(self, kind: Kind) -> dict[str, Any]:
        """The model's own sampling defaults, from its generation_config.json."""
        defaults: dict[str, Any] = self._objects[kind].default_sampling_params
        return defaults

    def unchecked_request(self, call: Call) -> Any:
        """vLLM's request object for a body already known to be well typed, without pydantic's validation."""
        fields = {key: value for key, value in call.body.items() if key not in _NODE_FIELDS and value is not None}
        # Fresh lists, because vLLM adds the model's own stop tokens to them.
        fields["stop_token_ids"] = list(fields.get("stop_token_ids", ()))
        fields["stop"] = [stop] if isinstance(stop := fields.get("stop", []), str) else list(stop)
        fields |= {"request_id": call.request_id, "stream": call.stream}
        fields.setdefault("max_tokens", None)  # a completion's own default is 16
        if call.cache_salt is not None:
            fields["cache_salt"] = call.cache_salt
        return self._prototypes[call.kind].model_copy(update=fields)

    def _checked_request(self, call: Call, tally: Tally) -> Any:
        # vLLM rewrites messages in place, and the body may yet be sent elsewhere.
        body = {key: copy.deepcopy(value) for key, value in call.body.items() if key not in _NODE_FIELDS}
        body["request_id"] = call.request_id
        if call.cache_salt is not None:
            body["cache_salt"] = call.cache_salt
        if call.model in self._models.lora_requests:
            body["model"] = call.model
        if call.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if body.get("max_tokens") is None and body.get("max_completion_tokens") is None:
            if body.get("use_beam_search"):
                body["max_tokens"] = call.max_output_tokens
            else:
                tally.output_cap = call.max_output_tokens
                if call.kind is Kind.COMPLETION:
                    body["max_tokens"] = 1  # room for one token is all the prompt must leave; the cap comes later
        return self._requests[call.kind].model_validate(body)

    async def answer(self, call: Call, tally: Tally) -> AsyncGenerator[Chunk, None]:
        """Serve any call."""
        request = self._checked_request(call, tally)
        serving = self._objects[call.kind]
        create = serving.create_chat_completion if call.kind is Kind.CHAT else serving.create_completion
        bound = current_tally.set(tally)
        try:
            result = await create(request, None)
        finally:
            current_tally.reset(bound)
        if isinstance(tally.failure, asyncio.CancelledError):
            # vLLM answers a cancelled call with "Client disconnected"; whoever cancelled us waits for the cancellation.
            raise tally.failure
        if hasattr(result, "error"):
            raise _failure(tally, call) or from_document(
                result.error.message, result.error.code, result.error.param, call.kind
            )
        if not call.stream:
            yield _whole(call, result, tally)
            return
        try:
            async with aclosing(result):
                async for chunk in _translate(call, result, tally):
                    yield chunk
        finally:
            await abort(self.llm, tally)


def check_ending(reason: str | None) -> None:
    """Raise for the two finish reasons that mean there is no whole answer."""
    if reason == "abort":
        raise EngineUnavailable("The local engine aborted the request.")
    if reason == "error":
        raise EngineFailed("The local engine failed on this request.")


def _failure(tally: Tally, call: Call) -> Exception | None:
    return from_exception(tally.failure, call.kind) if isinstance(tally.failure, Exception) else None


async def _translate(call: Call, events: AsyncGenerator[str, None], tally: Tally) -> AsyncGenerator[Chunk, None]:
    """vLLM's events as chunks. The last choice frame is held back, so that usage travels in the same chunk."""
    held: Chunk | None = None
    finish_reason: str | None = None
    async for event in events:
        wire = read(event)
        if wire is None:
            continue
        if wire.error is not None:
            raise _failure(tally, call) or from_document(
                wire.error.message, wire.error.code, wire.error.param, call.kind
            )
        if wire.usage is not None and not wire.choices:
            usage = wire.usage.value(tally.cached_tokens)
            data = (held.data if held else b"") + usage_frame(call, usage, wire.usage.details())
            yield Chunk(data, bool(held and held.has_content), usage.completion_tokens, usage, finish_reason)
            return
        if wire.finish_reason:
            check_ending(wire.finish_reason)
            finish_reason = wire.finish_reason
        if held is not None:
            yield held
            held = None
        chunk = Chunk(relabel(event, wire, call), wire.has_content, tally.output_tokens, None, wire.finish_reason)
        if wire.finish_reason:
            held = chunk
        else:
            yield chunk
    raise EngineFailed("The local engine ended the answer early.")


def _whole(call: Call, result: Any, tally: Tally) -> Chunk:
    """vLLM's response object as the one chunk of the answer."""
    body = result.model_dump()
    wire = WireUsage(**{key: body["usage"].get(key) for key in WireUsage.__struct_fields__})
    usage = wire.value(tally.cached_tokens)
    reasons = [choice["finish_reason"] for choice in body["choices"]]
    for reason in reasons:
        check_ending(reason)
    body |= {"id": call.response_id, "created": call.created_s, "model": call.model}
    body["usage"] = usage_object(usage, 0, wire.details())
    return Chunk(encode(body), True, usage.completion_tokens, usage, reasons[-1] if reasons else None)
