"""The ordinary call: plain text in, plain text out, one choice.

vLLM's serving objects validate, render, parse and re-encode for every feature they have. Most calls use none of them;
those skip pydantic on both ends, and their frames come from a byte template. What such a call may hold is written down
as a type: a body that does not convert to it goes to the serving objects, which know everything.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal

import msgspec

from node.backend import Call, Chunk, Kind
from node.errors import EngineFailed
from node.local.errors import from_document, no_room
from node.local.frames import Template, document, usage_frame
from node.local.outputs import Tally, outputs
from node.local.serving import Serving, check_ending


class _Message(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: Literal["system", "developer", "user", "assistant"]
    content: str


class _Sampling(msgspec.Struct, forbid_unknown_fields=True, gc=False, kw_only=True):
    model: str | None = None
    user: str | None = None
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    min_tokens: int = 0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    cache_salt: str | None = None


class _PlainChat(_Sampling, forbid_unknown_fields=True, gc=False, kw_only=True):
    messages: list[_Message] = msgspec.field()
    max_completion_tokens: int | None = None


class _PlainCompletion(_Sampling, forbid_unknown_fields=True, gc=False, kw_only=True):
    prompt: str = msgspec.field()


_PLAIN: dict[Kind, type[_PlainChat] | type[_PlainCompletion]] = {
    Kind.CHAT: _PlainChat,
    Kind.COMPLETION: _PlainCompletion,
}


def fits_fast_path(call: Call) -> bool:
    """Whether the body holds nothing beyond a plain text conversation (or prompt) and ordinary sampling."""
    try:
        plain = msgspec.convert(call.body, _PLAIN[call.kind])
    except msgspec.ValidationError:
        return False
    # What must not be empty is refused by the serving objects, in their words.
    return bool(plain.messages if isinstance(plain, _PlainChat) else plain.prompt) and plain.cache_salt != ""


async def answer(serving: Serving, call: Call, tally: Tally) -> AsyncGenerator[Chunk, None]:
    """Serve a call that `fits_fast_path`."""
    request = serving.unchecked_request(call)
    prompt, prompt_tokens = await _render(serving, call, request)
    room = serving.context_tokens - prompt_tokens
    if room < 1:
        raise no_room(prompt_tokens, serving.context_tokens, call.kind)
    asked = call.body.get("max_completion_tokens") or call.body.get("max_tokens") or call.max_output_tokens
    # Clipped to the room there is, as vLLM does; asking for more than the whole context was refused in rendering.
    params = request.to_sampling_params(min(asked, room), serving.default_sampling(call.kind))
    lead, template = b"", None
    if call.stream:
        template = Template(call)
        lead = template.role()
    async with aclosing(outputs(serving.llm, prompt, params, call.response_id, tally)) as source:
        # One loop for both ways of answering, and no further generator around it: a layer costs 2 % per token.
        async for output in source:
            (completion,) = output.outputs
            text, reason = completion.text, completion.finish_reason
            if reason is not None:
                check_ending(reason)
                usage = tally.usage()
                if template is None:
                    data = document(call, text, reason, completion.stop_reason, usage)
                else:
                    data = lead + template.last(text, reason, completion.stop_reason) + usage_frame(call, usage)
                yield Chunk(data, bool(text), usage.completion_tokens, usage, reason)
                return
            if template is not None and (text or lead):
                # No text yet (half a character, or a possible stop string): the role alone tells the client we began.
                yield Chunk(lead + template.text(text) if text else lead, bool(text), tally.output_tokens)
                lead = b""
    raise EngineFailed("The local engine ended the answer early.")


async def _render(serving: Serving, call: Call, request: Any) -> tuple[Any, int]:
    """The engine's input for the prompt, and its length in tokens."""
    if call.kind is Kind.CHAT:
        rendered = await serving.renderer.render_chat(request)
    else:
        rendered = await serving.renderer.render_completion(request)
    if hasattr(rendered, "error"):
        raise from_document(rendered.error.message, rendered.error.code, rendered.error.param, call.kind)
    (prompt,) = rendered[1] if call.kind is Kind.CHAT else rendered
    return prompt, len(prompt["prompt_token_ids"])
