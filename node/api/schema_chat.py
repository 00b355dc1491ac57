"""`/v1/chat/completions`: the request as typed values, and the rules between its fields."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from node.api.body import Headers, is_too_deep
from node.api.schema_common import (
    CHAT_DEFAULTS,
    DEFAULT_LIMITS,
    VLLM_ONLY,
    CommonRequest,
    Draft,
    FunctionName,
    InputLimits,
    Name,
    ParsedRequest,
    Text,
    Tokens,
    TopLogprobs,
    finish,
    read,
    text_bytes,
)
from node.api.schema_guard import check_schema
from node.api.schema_media import check_audio, check_image
from node.backend import Kind
from node.errors import InvalidRequest, UnsupportedMedia
from node.routing.values import Capability


class TextPart(msgspec.Struct, tag_field="type", tag="text", gc=False):
    """A piece of text."""

    text: str


class RefusalPart(msgspec.Struct, tag_field="type", tag="refusal", gc=False):
    """A refusal the model gave earlier."""

    refusal: str


class ImageUrl(msgspec.Struct, omit_defaults=True, gc=False):
    """An image as a `data:` URL."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(msgspec.Struct, tag_field="type", tag="image_url", gc=False):
    """An image."""

    image_url: ImageUrl


class InputAudio(msgspec.Struct, gc=False):
    """Sound in base64."""

    data: str
    format: Literal["wav", "mp3"]


class AudioPart(msgspec.Struct, tag_field="type", tag="input_audio", gc=False):
    """Sound."""

    input_audio: InputAudio


Texts = Annotated[list[TextPart], Meta(min_length=1)]


class SystemMessage(msgspec.Struct, tag_field="role", tag="system", omit_defaults=True, gc=False):
    """Instructions from the operator of a conversation."""

    content: str | Texts
    name: Name | None = None


class DeveloperMessage(msgspec.Struct, tag_field="role", tag="developer", omit_defaults=True, gc=False):
    """What newer models call the system message."""

    content: str | Texts
    name: Name | None = None


class UserMessage(msgspec.Struct, tag_field="role", tag="user", omit_defaults=True, gc=False):
    """What a person says, shows or lets hear."""

    content: str | Annotated[list[TextPart | ImagePart | AudioPart], Meta(min_length=1)]
    name: Name | None = None


class CalledFunction(msgspec.Struct, gc=False):
    """The function of an earlier tool call; `arguments` is what the model wrote, not always JSON."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, gc=False):
    """An earlier tool call."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(msgspec.Struct, tag_field="role", tag="assistant", omit_defaults=True, gc=False):
    """An earlier answer."""

    content: str | Annotated[list[TextPart | RefusalPart], Meta(min_length=1)] | None = None
    refusal: str | None = None
    name: Name | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class ToolMessage(msgspec.Struct, tag_field="role", tag="tool", omit_defaults=True, gc=False):
    """The result of a tool call."""

    content: str | Texts
    tool_call_id: str
    name: Name | None = None


class FunctionDefinition(msgspec.Struct, omit_defaults=True):
    """A function the model may call; `parameters` is a JSON Schema."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    """A tool; only functions exist."""

    type: Literal["function"]
    function: FunctionDefinition


class ChosenFunction(msgspec.Struct):
    """The name of a function among the tools."""

    name: FunctionName


class NamedToolChoice(msgspec.Struct):
    """The one tool that must be called."""

    type: Literal["function"]
    function: ChosenFunction


class ChatTemplateKwargs(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """The template switches clients may set. Others (`chat_template`, `tokenize`, ...) change what a template is."""

    enable_thinking: bool | None = None
    thinking: bool | None = None
    preserve_thinking: bool | None = None
    clear_thinking: bool | None = None


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class ChatRequest(CommonRequest, omit_defaults=True, kw_only=True, gc=False):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    max_completion_tokens: Tokens | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    tools: Annotated[list[Tool], Meta(min_length=1, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None

    add_generation_prompt: bool | None = None
    chat_template_kwargs: ChatTemplateKwargs | None = None
    continue_final_message: bool | None = None
    documents: Annotated[list[dict[str, Text]], Meta(max_length=256)] | None = None
    echo: bool | None = None
    include_reasoning: bool | None = None


_CHAT_VLLM_ONLY = VLLM_ONLY | {
    "add_generation_prompt",
    "chat_template_kwargs",
    "continue_final_message",
    "documents",
    "echo",
    "include_reasoning",
}


def parse_chat(
    document: dict[str, Any],
    headers: Headers = (),
    *,
    strict: bool = False,
    limits: InputLimits = DEFAULT_LIMITS,
    vocab_size: int | None = None,
) -> ParsedRequest:
    """Check a decoded chat request and turn it into a value.

    `headers` (lower-case names) may hold `x-spillway-*` wishes. `strict` refuses unknown parameters instead of
    dropping them. `vocab_size` bounds token ids when the model's vocabulary is known. Raises `InvalidRequest` or
    `UnsupportedMedia`, with `param` naming the field.
    """
    request, ignored = read(document, ChatRequest, strict=strict)
    _merge_max_tokens(request)
    draft = Draft(msgspec.to_builtins(request))
    if request.logprobs:
        draft.needs.add(Capability.LOGPROBS)
    elif request.top_logprobs or request.logprob_token_ids:
        param = "top_logprobs" if request.top_logprobs else "logprob_token_ids"
        raise InvalidRequest(f"'{param}' needs 'logprobs' to be true.", param=param)
    if request.continue_final_message and request.add_generation_prompt:
        raise InvalidRequest(
            "'continue_final_message' and 'add_generation_prompt' exclude each other.", param="continue_final_message"
        )
    if request.reasoning_effort is not None:
        draft.needs.add(Capability.REASONING_EFFORT)
    draft.look_for_sampling(_CHAT_VLLM_ONLY, CHAT_DEFAULTS)
    _read_tools(request, draft)
    _read_messages(request.messages, draft, limits)
    if request.documents:
        draft.prompt_bytes += len(msgspec.json.encode(request.documents))
    return finish(Kind.CHAT, request, draft, ignored, document, headers, limits, vocab_size)


def _merge_max_tokens(request: ChatRequest) -> None:
    newer, older = request.max_completion_tokens, request.max_tokens
    if newer is None:
        return
    if older is not None and older != newer:
        raise InvalidRequest(
            "'max_tokens' and 'max_completion_tokens' differ; send only one of them.", param="max_completion_tokens"
        )
    request.max_tokens, request.max_completion_tokens = newer, None


def _read_tools(request: ChatRequest, draft: Draft) -> None:
    choice = request.tool_choice
    if request.tools is None:
        if choice is not None and choice != "none":
            raise InvalidRequest("'tool_choice' is only allowed when 'tools' are given.", param="tool_choice")
        if request.parallel_tool_calls is not None:
            # Harmless for us and common among clients, but some providers refuse it without tools.
            del draft.body["parallel_tool_calls"]
        draft.body.pop("tool_choice", None)
        return
    draft.needs.add(Capability.TOOLS)
    names = {tool.function.name for tool in request.tools}
    if isinstance(choice, NamedToolChoice):
        if choice.function.name not in names:
            raise InvalidRequest(
                f"'tool_choice' names the function '{choice.function.name}', which is not among the 'tools'.",
                param="tool_choice",
            )
        if request.structured_outputs is not None:
            raise InvalidRequest(
                "'structured_outputs' and a named 'tool_choice' exclude each other.", param="structured_outputs"
            )
    for index, tool in enumerate(request.tools):
        if tool.function.parameters is not None:
            check_schema(tool.function.parameters, f"tools[{index}].function.parameters")
    draft.prompt_bytes += len(msgspec.json.encode(draft.body["tools"]))


def _read_messages(messages: Sequence[Message], draft: Draft, limits: InputLimits) -> None:
    draft.messages = len(messages)
    for index, message in enumerate(messages):
        content = message.content
        if isinstance(content, str):
            draft.prompt_bytes += text_bytes(content)
        elif content is not None:
            _read_parts(content, draft, limits, f"messages[{index}].content")
        if message.name is not None:
            draft.prompt_bytes += text_bytes(message.name)
        if isinstance(message, AssistantMessage):
            _read_assistant(message, draft, index)
        elif isinstance(message, ToolMessage):
            draft.needs.add(Capability.TOOLS)
            draft.prompt_bytes += text_bytes(message.tool_call_id)


def _read_parts(parts: Sequence[Any], draft: Draft, limits: InputLimits, param: str) -> None:
    for index, part in enumerate(parts):
        match part:
            case TextPart():
                draft.prompt_bytes += text_bytes(part.text)
                continue
            case RefusalPart():
                draft.prompt_bytes += text_bytes(part.refusal)
                continue
            case ImagePart():
                draft.needs.add(Capability.VISION)
                check_image(part.image_url.url, limits.max_media_bytes, f"{param}[{index}].image_url.url")
            case AudioPart():
                draft.needs.add(Capability.AUDIO)
                sound = part.input_audio
                check_audio(sound.data, sound.format, limits.max_media_bytes, f"{param}[{index}].input_audio.data")
        draft.media_parts += 1
        if draft.media_parts > limits.max_media_parts:
            raise UnsupportedMedia(f"At most {limits.max_media_parts} images and sounds per request.", param=param)


def _read_assistant(message: AssistantMessage, draft: Draft, index: int) -> None:
    thought = message.reasoning or message.reasoning_content
    if not (message.tool_calls or message.refusal or thought) and message.content is None:
        param = f"messages[{index}].content"
        raise InvalidRequest(f"Missing required parameter: '{param}' (there are no tool calls).", param=param)
    for text in (message.refusal, message.reasoning, message.reasoning_content):
        draft.prompt_bytes += text_bytes(text) if text else 0
    if message.tool_calls is None:
        return
    if not message.tool_calls:
        del draft.body["messages"][index]["tool_calls"]
        return
    draft.needs.add(Capability.TOOLS)
    for position, call in enumerate(message.tool_calls):
        _check_arguments(call.function.arguments, f"messages[{index}].tool_calls[{position}].function.arguments")
        draft.prompt_bytes += sum(map(text_bytes, (call.id, call.function.name, call.function.arguments)))


def _check_arguments(arguments: str, param: str) -> None:
    """Models write broken JSON, and a conversation must survive that; but what makes a parser fail otherwise (chat
    templates parse the arguments) is refused here."""
    if arguments.count("[") + arguments.count("{") > 64 and is_too_deep(arguments.encode()):
        raise InvalidRequest(f"Invalid value for '{param}': nested too deeply, or not balanced.", param=param)
    try:
        json.loads(arguments)
    except json.JSONDecodeError:
        return
    except ValueError:  # an integer of thousands of digits
        raise InvalidRequest(f"Invalid value for '{param}': a number is out of range.", param=param) from None
