"""What the chat and the completions endpoint have in common: fields with their bounds, and how a request is read.

Fields are sorted into four kinds. Accepted ones are the attributes of the request structs. Refused ones
(`REFUSED`) would be dangerous to obey or misleading to ignore. All others are dropped and listed, or refused
when strict; among them are `user`, `metadata` and the like, which say who asks, and vLLM's `priority`, `cache_salt` and
`request_id`, which are the node's to set. `null` means absent everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Meta

from node.api.body import Headers, parse_json
from node.api.schema_convert import convert
from node.api.schema_guard import check_schema
from node.api.wishes import RoutingWishes, SpillwayFields, parse_wishes
from node.backend import Kind
from node.errors import InvalidRequest
from node.regexes import check_regex
from node.routing.values import Capability

_INT64 = 2**63
MAX_OUTPUT_TOKENS = 10_000_000
MAX_TOKEN_ID = 2**31 - 1
MAX_GRAMMAR_CHARS = 16_384
_MAX_IGNORED = 32

Text = Annotated[str, Meta(min_length=1)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
FunctionName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}\Z")]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
PositiveFraction = Annotated[float, Meta(gt=0, le=1)]
Tokens = Annotated[int, Meta(ge=1, le=MAX_OUTPUT_TOKENS)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
TokenId = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]
Stop = Annotated[str, Meta(min_length=1, max_length=1024)]
TokenKey = Annotated[str, Meta(pattern=r"^[0-9]{1,10}\Z")]


class StreamOptions(msgspec.Struct, omit_defaults=True):
    """`include_usage` asks for a last frame with the usage."""

    include_usage: bool | None = None


class TextFormat(msgspec.Struct, tag_field="type", tag="text"):
    """Free text."""


class JsonObjectFormat(msgspec.Struct, tag_field="type", tag="json_object"):
    """Any JSON object."""


class JsonSchema(msgspec.Struct, omit_defaults=True):
    """A named JSON Schema the answer must follow."""

    name: FunctionName
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema"):
    """JSON that follows a schema."""

    json_schema: JsonSchema


class StructuredOutputs(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """vLLM's constraints on the answer; exactly one of the first five."""

    json: dict[str, Any] | str | None = None
    regex: Text | None = None
    choice: Annotated[list[Text], Meta(min_length=1, max_length=1024)] | None = None
    grammar: Annotated[str, Meta(min_length=1, max_length=MAX_GRAMMAR_CHARS)] | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    whitespace_pattern: Text | None = None


class CommonRequest(msgspec.Struct, omit_defaults=True, kw_only=True, gc=False):
    """Fields both endpoints accept, OpenAI's first, then those only vLLM knows."""

    model: Name
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenKey, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)] | None = None
    max_tokens: Tokens | None = None
    n: Annotated[int, Meta(ge=1)] | None = None
    presence_penalty: Penalty | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    seed: Annotated[int, Meta(ge=-_INT64, le=_INT64 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(min_length=1, max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: PositiveFraction | None = None
    spillway: SpillwayFields | None = None

    add_special_tokens: bool | None = None
    allowed_token_ids: Annotated[list[TokenId], Meta(min_length=1, max_length=4096)] | None = None
    bad_words: Annotated[list[Stop], Meta(max_length=64)] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    logprob_token_ids: Annotated[list[TokenId], Meta(min_length=1, max_length=128)] | None = None
    min_p: Fraction | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=MAX_OUTPUT_TOKENS)] | None = None
    prompt_logprobs: TopLogprobs | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=64)] | None = None
    structured_outputs: StructuredOutputs | None = None
    thinking_token_budget: Annotated[int, Meta(ge=0, le=MAX_OUTPUT_TOKENS)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_TOKEN_ID)] | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=1, le=MAX_OUTPUT_TOKENS)] | None = None
    truncation_side: Literal["left", "right"] | None = None


VLLM_ONLY: Final = frozenset(CommonRequest.__struct_fields__).difference(
    ("model", "frequency_penalty", "logit_bias", "max_tokens", "n", "presence_penalty", "response_format", "seed"),
    ("stop", "stream", "stream_options", "temperature", "top_p", "spillway", "prompt_logprobs", "structured_outputs"),
)
# vLLM's own defaults: written out they ask for nothing, and are taken out of the request.
_DEFAULTS: Final[dict[str, Any]] = {
    "bad_words": [],
    "echo": False,
    "ignore_eos": False,
    "include_stop_str_in_output": False,
    "min_tokens": 0,
    "return_token_ids": False,
    "return_tokens_as_token_ids": False,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "stop_token_ids": [],
}
CHAT_DEFAULTS: Final = _DEFAULTS | {
    "add_generation_prompt": True,
    "add_special_tokens": False,
    "chat_template_kwargs": {},
    "continue_final_message": False,
    "documents": [],
    "include_reasoning": True,
}
COMPLETION_DEFAULTS: Final = _DEFAULTS | {"add_special_tokens": True}
# These ask vLLM to leave out what the model's own generation config may ask for: kept, but any backend can do it.
_NEUTRAL: Final[dict[str, tuple[float, ...]]] = {"min_p": (0,), "repetition_penalty": (1,), "top_k": (-1, 0)}
_NOT_FROM_CLIENTS = "is not accepted from clients"
_USE_STRUCTURED = "is no longer understood by vLLM; use 'response_format' or 'structured_outputs'"
REFUSED: Final[dict[str, str]] = {
    "prompt_embeds": "is not accepted: tensors from clients are never loaded",
    "chat_template": "is not accepted: templates are programs, and come with the model",
    "mm_processor_kwargs": _NOT_FROM_CLIENTS,
    "media_io_kwargs": _NOT_FROM_CLIENTS,
    "kv_transfer_params": _NOT_FROM_CLIENTS,
    "ec_transfer_params": _NOT_FROM_CLIENTS,
    "vllm_xargs": _NOT_FROM_CLIENTS,
    "use_beam_search": "is not supported",
    "suffix": "is not supported",
    "audio": "is not supported: answers are text",
    "functions": "is not supported; use 'tools'",
    "function_call": "is not supported; use 'tool_choice'",
    "guided_json": _USE_STRUCTURED,
    "guided_regex": _USE_STRUCTURED,
    "guided_choice": _USE_STRUCTURED,
    "guided_grammar": _USE_STRUCTURED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class InputLimits:
    """Bounds the operator may set. `max_choices` caps `n`, `max_prompts` the prompts of one completions request."""

    max_choices: int = 16
    max_prompts: int = 64
    max_media_bytes: int = 10 * 1024 * 1024
    max_media_parts: int = 16


DEFAULT_LIMITS: Final = InputLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedRequest:
    """A request that has passed every check which needs no backend.

    `body` holds the accepted fields as plain JSON values without `model`, `stream`, `stream_options` and `spillway`,
    with `max_completion_tokens` under the name `max_tokens`. `choices` counts all sequences to generate (`n` for each
    prompt). `prompt_bytes` are the UTF-8 bytes of all prompt text, tool definitions and schemas (for prompts of
    token ids: the ids): no tokenizer makes more tokens of them, but the chat template adds some for each of the
    `messages`, and each of the `media_parts` costs what the model takes for it. `deterministic` is true when
    the same request must give the same answer (temperature 0 or a seed). `ignored` names dropped parameters,
    percent-encoded so that they fit a header.
    """

    kind: Kind
    model: str
    body: dict[str, Any]
    stream: bool
    include_usage: bool
    max_tokens: int | None
    choices: int
    needs: frozenset[Capability]
    prompt_bytes: int
    messages: int
    media_parts: int
    deterministic: bool
    wishes: RoutingWishes
    ignored: tuple[str, ...]


@dataclass(slots=True)
class Draft:
    """A request while its endpoint still looks at it: what is found goes into `needs` and the counts."""

    body: dict[str, Any]
    needs: set[Capability] = field(default_factory=set)
    prompts: int = 1
    prompt_bytes: int = 0
    messages: int = 0
    media_parts: int = 0

    def look_for_sampling(self, names: frozenset[str], defaults: Mapping[str, Any]) -> None:
        """Drop the fields that say no more than vLLM's `defaults`, and note the need if others of `names` ask for
        more than any backend does."""
        for name in names & self.body.keys():
            value = self.body[name]
            if name in defaults and value == defaults[name]:
                del self.body[name]
            elif value not in _NEUTRAL.get(name, ()):
                self.needs.add(Capability.VLLM_SAMPLING)


_R = TypeVar("_R", bound=CommonRequest)


def read(document: dict[str, Any], struct: type[_R], *, strict: bool) -> tuple[_R, tuple[str, ...]]:
    """The typed request and the names of the parameters that were dropped. Raises `InvalidRequest`."""
    ignored: list[str] = []
    for name in document.keys() - struct.__struct_fields__:
        value = document[name]
        if value is None:
            continue
        if name in REFUSED:
            if value:
                raise InvalidRequest(f"'{name}' {REFUSED[name]}.", param=name)
        elif strict:
            raise InvalidRequest(f"Unknown parameter: '{name[:64]}'.", param=name[:64])
        elif name != "modalities" or value != ["text"]:
            ignored.append(quote(name[:64], safe=""))
    return convert(document, struct), tuple(sorted(ignored)[:_MAX_IGNORED])


def finish(
    kind: Kind,
    request: CommonRequest,
    draft: Draft,
    ignored: tuple[str, ...],
    document: dict[str, Any],
    headers: Headers,
    limits: InputLimits,
    vocab_size: int | None,
) -> ParsedRequest:
    """Check what both endpoints share, and put everything together. Raises `InvalidRequest`."""
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    n = request.n or 1
    if n > limits.max_choices:
        raise InvalidRequest(f"Invalid value for 'n': at most {limits.max_choices} choices.", param="n")
    body, needs = draft.body, draft.needs
    for name in ("model", "stream", "stream_options", "spillway"):
        body.pop(name, None)
    max_tokens = request.max_tokens
    if request.min_tokens and max_tokens is not None and request.min_tokens > max_tokens:
        raise InvalidRequest("Invalid value for 'min_tokens': more than 'max_tokens'.", param="min_tokens")
    if request.prompt_logprobs is not None:
        if request.stream:
            raise InvalidRequest("'prompt_logprobs' is not available in a stream.", param="prompt_logprobs")
        needs.add(Capability.PROMPT_LOGPROBS)
    if n > 1:
        needs.add(Capability.MANY_CHOICES)
    if request.seed is not None:
        needs.add(Capability.SEED)
    if request.logit_bias:
        needs.add(Capability.LOGIT_BIAS)
    if request.response_format is not None or request.structured_outputs is not None:
        _check_answer_format(request, draft)
    if vocab_size is not None:
        _check_vocabulary(request, vocab_size)
    return ParsedRequest(
        kind=kind,
        model=request.model,
        body=body,
        stream=bool(request.stream),
        include_usage=request.stream_options is not None and bool(request.stream_options.include_usage),
        max_tokens=max_tokens,
        choices=n * draft.prompts,
        needs=frozenset(needs),
        prompt_bytes=draft.prompt_bytes,
        messages=draft.messages,
        media_parts=draft.media_parts,
        deterministic=request.temperature == 0 or request.seed is not None,
        wishes=parse_wishes(document, headers),
        ignored=ignored,
    )


def text_bytes(text: str) -> int:
    """The length of `text` in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def _check_answer_format(request: CommonRequest, draft: Draft) -> None:
    if isinstance(request.response_format, JsonObjectFormat):
        draft.needs.add(Capability.JSON_OBJECT)
    elif isinstance(request.response_format, JsonSchemaFormat):
        draft.needs.add(Capability.JSON_SCHEMA)
        check_schema(request.response_format.json_schema.schema, "response_format.json_schema.schema")
        draft.prompt_bytes += len(msgspec.json.encode(draft.body["response_format"]))
    guide = request.structured_outputs
    if guide is None:
        return
    if request.response_format is not None and not isinstance(request.response_format, TextFormat):
        raise InvalidRequest(
            "'structured_outputs' and 'response_format' exclude each other.", param="structured_outputs"
        )
    given = [guide.json, guide.regex, guide.choice, guide.grammar, guide.json_object or None]
    if sum(constraint is not None for constraint in given) != 1:
        raise InvalidRequest(
            "'structured_outputs' needs exactly one of json, regex, choice, grammar and json_object.",
            param="structured_outputs",
        )
    draft.needs.add(Capability.GUIDED)
    if guide.json is not None:
        param = "structured_outputs.json"
        schema = guide.json if isinstance(guide.json, dict) else _schema_text(guide.json, param)
        check_schema(schema, param)
    if guide.regex is not None:
        check_regex(guide.regex, "structured_outputs.regex")
    if guide.whitespace_pattern is not None:
        check_regex(guide.whitespace_pattern, "structured_outputs.whitespace_pattern")


def _schema_text(text: str, param: str) -> dict[str, Any]:
    try:
        return parse_json(text.encode())
    except InvalidRequest:
        raise InvalidRequest(f"Invalid value for '{param}': expected a JSON Schema object.", param=param) from None


def _check_vocabulary(request: CommonRequest, vocab_size: int) -> None:
    for token in request.logit_bias or ():
        if int(token) >= vocab_size:
            raise InvalidRequest(
                f"Invalid key in 'logit_bias': the model's token ids end at {vocab_size - 1}.", param="logit_bias"
            )
    for name in ("allowed_token_ids", "logprob_token_ids", "stop_token_ids"):
        if max(getattr(request, name) or (0,)) >= vocab_size:
            raise InvalidRequest(
                f"Invalid value for '{name}': the model's token ids end at {vocab_size - 1}.", param=name
            )
