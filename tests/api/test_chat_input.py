"""What `/v1/chat/completions` accepts, refuses and makes of it."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.api.schema import InputLimits, ParsedRequest, parse_chat
from node.backend import Kind
from node.errors import InvalidRequest, SpillwayError, UnsupportedMedia, render
from node.routing.values import Capability

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * 50).decode()


def parse(**fields: Any) -> ParsedRequest:
    return parse_chat({"model": "demo", "messages": HELLO, **fields})


def refused(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    assert render(caught.value)[0] == 400
    return caught.value


def test_an_ordinary_request_passes_through() -> None:
    parsed = parse(temperature=0.5, max_tokens=7, stream=True, stream_options={"include_usage": True}, top_p=None)
    assert parsed.kind is Kind.CHAT
    assert parsed.model == "demo"
    assert parsed.body == {"messages": HELLO, "temperature": 0.5, "max_tokens": 7}
    assert (parsed.stream, parsed.include_usage) == (True, True)
    assert (parsed.max_tokens, parsed.choices, parsed.messages, parsed.prompt_bytes) == (7, 1, 1, 5)
    assert parsed.needs == frozenset()
    assert not parsed.deterministic
    assert parsed.ignored == ()


def test_a_whole_conversation_passes_through() -> None:
    messages = [
        {"role": "system", "content": "Be brief.", "name": "op"},
        {"role": "developer", "content": [{"type": "text", "text": "Really."}]},
        {"role": "user", "content": "Wetter in Zürich?"},
        {
            "role": "assistant",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
        {"role": "assistant", "content": "Rain.", "reasoning_content": "wet"},
        {"role": "user", "content": "Thanks"},
    ]
    parsed = parse(messages=messages)
    assert parsed.body["messages"] == messages
    assert parsed.messages == 7
    assert parsed.needs == {Capability.TOOLS}
    words = "Be brief.opReally.Wetter in Zürich?c1weather{}rainc1Rain.wetThanks"
    assert parsed.prompt_bytes == len(words.encode())


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("Hello", "messages"),
        ({}, "messages"),
        ([123], "messages[0]"),
        ([{}], "messages[0].role"),
        ([{"role": "wizard", "content": "x"}], "messages[0].role"),
        ([{"role": 5, "content": "x"}], "messages[0].role"),
        ([*HELLO, {"role": "user"}], "messages[1].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": []}], "messages[0].content"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "smell"}]}], "messages[0].content[0].type"),
        ([{"role": "assistant"}], "messages[0].content"),
        ([{"role": "assistant", "tool_calls": []}], "messages[0].content"),
        ([{"role": "assistant", "tool_calls": [{"id": "1"}]}], "messages[0].tool_calls[0].type"),
        ([{"role": "tool", "content": "x"}], "messages[0].tool_call_id"),
        (
            [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages[0].content[0].type",
        ),
    ],
)
def test_bad_messages_are_400_and_named(messages: Any, param: str) -> None:
    assert refused(messages=messages).param == param


def test_messages_that_are_missing_are_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_chat({"model": "demo"})
    assert caught.value.param == "messages"
    assert caught.value.message == "Missing required parameter: 'messages'."


@pytest.mark.parametrize("model", [None, "", 5, ["demo"], "m" * 300])
def test_a_model_that_is_no_name_is_400(model: Any) -> None:
    assert refused(model=model).param == "model"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("value", [-1, 0, "5", 1.5, 1e18, 10**18, True, [5]])
def test_bad_max_tokens_are_400(name: str, value: Any) -> None:
    assert refused(**{name: value}).param == name


def test_both_names_of_max_tokens_are_one() -> None:
    assert parse(max_completion_tokens=9).max_tokens == 9
    assert parse(max_completion_tokens=9, max_tokens=9).body == {"messages": HELLO, "max_tokens": 9}
    assert refused(max_completion_tokens=9, max_tokens=8).param == "max_completion_tokens"
    assert parse().max_tokens is None


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("n", [0, -1, 17, 1000, True, 1.5, "1"]),
        ("temperature", [3, -0.1, float("nan"), "1", True]),
        ("top_p", [0, 1.01, float("nan")]),
        ("presence_penalty", [3, -3]),
        ("frequency_penalty", [3, -3]),
        (
            "logit_bias",
            [{"x": 1}, {"-1": 1}, {"1": 101}, {"1": -101}, {"1": "5"}, {str(i): 1 for i in range(1025)}, [1]],
        ),
        ("stop", ["", [], [""], ["a"] * 5, "x" * 10_000, ["x" * 10_000], 5, [5]]),
        ("seed", [2**63, 1.5, "1"]),
        ("stream", ["yes", 1]),
        ("stream_options", [5, "x"]),
        ("tools", [[], {}, [5], [{**TOOL, "type": "custom"}]]),
        ("reasoning_effort", ["extreme", 5]),
        ("top_k", [-2, 1.5]),
        ("min_p", [-0.1, 1.1]),
        ("repetition_penalty", [0, -1]),
        ("min_tokens", [-1]),
        ("bad_words", [[""], ["x"] * 65]),
        ("allowed_token_ids", [[], [-1], ["x"]]),
        ("truncate_prompt_tokens", [0, -2]),
    ],
)
def test_a_value_out_of_bounds_is_400_and_named(name: str, values: list[Any]) -> None:
    for value in values:
        param = refused(**{name: value}).param
        assert param is not None
        assert param.startswith(name), value


def test_bounds_themselves_are_accepted() -> None:
    parse(n=16, temperature=2, top_p=1, presence_penalty=-2, frequency_penalty=2, seed=-(2**63), stop=["a"] * 4)
    parse(logit_bias={"0": -100, "5": 100}, logprobs=True, top_logprobs=20, top_k=-1, temperature=0)


@pytest.mark.parametrize("value", [21, -1, True, "5"])
def test_top_logprobs_out_of_bounds_are_400(value: Any) -> None:
    assert refused(logprobs=True, top_logprobs=value).param == "top_logprobs"


@pytest.mark.parametrize("logprobs", [None, False])
def test_top_logprobs_need_logprobs(logprobs: Any) -> None:
    assert refused(logprobs=logprobs, top_logprobs=5).param == "top_logprobs"
    assert parse(logprobs=logprobs, top_logprobs=0).needs == frozenset()


def test_token_ids_beyond_a_known_vocabulary_are_400() -> None:
    for name, value in (("logit_bias", {"1024": 1}), ("allowed_token_ids", [1, 1024]), ("stop_token_ids", [1024])):
        document = {"model": "demo", "messages": HELLO, name: value}
        assert parse_chat(document, vocab_size=1025).body[name] == value
        with pytest.raises(InvalidRequest) as caught:
            parse_chat(document, vocab_size=1024)
        assert caught.value.param == name


@pytest.mark.parametrize("stream", [None, False])
def test_stream_options_need_a_stream(stream: Any) -> None:
    assert refused(stream=stream, stream_options={"include_usage": True}).param == "stream_options"


def test_unknown_parameters_are_dropped_and_listed_in_a_form_fit_for_a_header() -> None:
    parsed = parse(**{"user": "me", "base_url": "http://x", "evil\r\nset-cookie: a": 1, "ü": 1, "nothing": None})
    assert parsed.body == {"messages": HELLO}
    assert parsed.ignored == ("%C3%BC", "base_url", "evil%0D%0Aset-cookie%3A%20a", "user")


def test_many_unknown_parameters_do_not_make_an_endless_header() -> None:
    parsed = parse(**{f"{i:03}" + "x" * 500: 1 for i in range(500)})
    assert len(", ".join(parsed.ignored)) < 8192


def test_unknown_parameters_inside_messages_do_not_travel_on() -> None:
    parsed = parse(messages=[{"role": "user", "content": "Hello", "cache_control": {"type": "ephemeral"}}])
    assert parsed.body["messages"] == HELLO


def test_strict_mode_refuses_unknown_parameters() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_chat({"model": "demo", "messages": HELLO, "frequency_penality": 1}, strict=True)
    assert caught.value.param == "frequency_penality"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chat_template", "{{ 1 }}"),
        ("mm_processor_kwargs", {"x": 1}),
        ("media_io_kwargs", {"image": {}}),
        ("kv_transfer_params", {"x": 1}),
        ("ec_transfer_params", {"x": 1}),
        ("vllm_xargs", {"x": 1}),
        ("use_beam_search", True),
        ("functions", [{"name": "f"}]),
        ("function_call", "auto"),
        ("audio", {"voice": "x"}),
        ("guided_json", {"type": "object"}),
    ],
)
def test_what_must_not_be_obeyed_nor_ignored_is_400(name: str, value: Any) -> None:
    assert refused(**{name: value}).param == name
    assert parse(**{name: None}).ignored == ()


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "documents", "anything"])
def test_template_switches_outside_the_list_are_400(name: str) -> None:
    assert refused(chat_template_kwargs={name: True}).param == f"chat_template_kwargs.{name}"
    assert parse(chat_template_kwargs={"enable_thinking": False}).needs == {Capability.VLLM_SAMPLING}


@pytest.mark.parametrize(
    "name", ["priority", "cache_salt", "request_id", "session_id", "user", "metadata", "service_tier"]
)
def test_what_is_the_nodes_to_set_is_dropped(name: str) -> None:
    parsed = parse(**{name: "x"})
    assert name not in parsed.body
    assert parsed.ignored == (name,)


# --- tools and schemas


@pytest.mark.parametrize(
    ("choice", "tools"),
    [
        ("auto", None),
        ("required", None),
        ({"type": "function", "function": {"name": "weather"}}, None),
        ({"type": "function", "function": {"name": "absent"}}, [TOOL]),
        ("weather", [TOOL]),
        ({"type": "function"}, [TOOL]),
        ({"function": {"name": "weather"}}, [TOOL]),
    ],
)
def test_a_tool_choice_that_names_no_tool_is_400(choice: Any, tools: Any) -> None:
    param = refused(tool_choice=choice, tools=tools).param
    assert param is not None
    assert param.startswith("tool_choice")


def test_tools_and_choice_pass_through() -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    parsed = parse(tools=[TOOL], tool_choice=choice, parallel_tool_calls=False)
    assert parsed.body == {"messages": HELLO, "tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False}
    assert parsed.needs == {Capability.TOOLS}
    assert parsed.prompt_bytes > len(json.dumps(TOOL, separators=(",", ":")))


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "ü", "a\n"])
def test_a_tool_name_openai_would_refuse_is_400(name: str) -> None:
    assert refused(tools=[{"type": "function", "function": {"name": name}}]).param == "tools[0].function.name"


def test_arguments_of_earlier_calls_may_be_broken_but_not_harmful() -> None:
    def conversation(arguments: str) -> list[dict[str, Any]]:
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
        return [*HELLO, {"role": "assistant", "tool_calls": [call]}]

    for arguments in ("", '{"a": ', "not json", '{"a": 1}'):
        assert parse(messages=conversation(arguments)).needs == {Capability.TOOLS}
    for arguments in ("[" * 100_000, "9" * 10_000):
        assert refused(messages=conversation(arguments)).param == "messages[1].tool_calls[0].function.arguments"


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


TREE = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["value"],
}
GOOD_SCHEMAS = [
    {},
    TREE,
    {"$defs": {"a/b": {"type": ["string", "null"]}}, "properties": {"x": {"$ref": "#/$defs/a~1b"}, "y": True}},
    {"anyOf": [{"$ref": "#/definitions/leaf"}, {"type": "null"}], "definitions": {"leaf": {"enum": [1, {"$ref": 5}]}}},
    {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$", "maxLength": 10},
    {"patternProperties": {"^x-": {"const": {"type": 123}}}, "items": [{}, {}], "additionalProperties": False},
    {"properties": {"$ref": {"type": "string"}, "type": {"type": "string"}, "pattern": {"type": "string"}}},
    deep(60),
]
BAD_SCHEMAS = [
    {"type": 123},
    {"type": "text"},
    {"type": []},
    {"properties": {"x": {"type": 123}}},
    {"properties": []},
    {"properties": {"x": "string"}},
    {"items": 5},
    {"anyOf": {}},
    {"anyOf": []},
    {"required": "x"},
    {"required": [1]},
    {"enum": []},
    {"minLength": -1},
    {"maxItems": 10**12},
    {"minItems": 1.5},
    {"minimum": "0"},
    {"pattern": 5},
    {"pattern": "(a+)+$"},
    {"patternProperties": {"(a*)*": {}}},
    {"$ref": "#"},
    {"$ref": 5},
    {"$ref": "http://127.0.0.1/schema"},
    {"$ref": "other.json"},
    {"$ref": "#/$defs/absent"},
    {"$ref": "#/title", "title": "x"},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    {"anyOf": [{"type": "string"}, {"$ref": "#"}]},
    {"allOf": [{"not": {"$ref": "#/allOf/0"}}]},
    {"description": "x" * 1_000_000},
    {"enum": ["value" * 10] * 30_000},
    deep(65),
]


@pytest.mark.parametrize("schema", GOOD_SCHEMAS, ids=range(len(GOOD_SCHEMAS)))
def test_sound_schemas_are_accepted_wherever_one_may_stand(schema: dict[str, Any]) -> None:
    named = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    assert parse(response_format=named).needs == {Capability.JSON_SCHEMA}
    assert parse(structured_outputs={"json": schema}).needs == {Capability.GUIDED}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    assert parse(tools=[tool]).body["tools"] == [tool]


@pytest.mark.parametrize("schema", BAD_SCHEMAS, ids=range(len(BAD_SCHEMAS)))
def test_harmful_and_malformed_schemas_are_400_wherever_one_may_stand(schema: dict[str, Any]) -> None:
    named = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    assert refused(response_format=named).param == "response_format.json_schema.schema"
    assert refused(structured_outputs={"json": schema}).param == "structured_outputs.json"
    assert refused(structured_outputs={"json": json.dumps(schema)}).param == "structured_outputs.json"
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    assert refused(tools=[TOOL, tool]).param == "tools[1].function.parameters"


def test_references_that_fan_out_are_followed_once_each() -> None:
    levels: dict[str, Any] = {
        f"d{i}": {"properties": {"x": {"$ref": f"#/$defs/d{i + 1}"}, "y": {"$ref": f"#/$defs/d{i + 1}"}}}
        for i in range(500)
    }
    schema = {"$ref": "#/$defs/d0", "$defs": {**levels, "d500": {"type": "string"}}}
    assert Capability.GUIDED in parse(structured_outputs={"json": schema}).needs


@pytest.mark.parametrize(
    "regex",
    [
        "[a-z]+",
        r"(\d+,)*\d+",
        "(foo|bar)+",
        r"^[^@]+@[^@]+\.[a-z]{2,10}$",
        "a{3}b{2,}",
        r"\(\[\{",
        "[]a]+",
        "(?:x|y)?",
        r"(?<y>\d{4})",
    ],
)
def test_ordinary_expressions_are_accepted(regex: str) -> None:
    assert parse(structured_outputs={"regex": regex}).needs == {Capability.GUIDED}


@pytest.mark.parametrize(
    "regex",
    [
        "(a+)+",
        "(a*)*b",
        "(a|a)*",
        "((a+)?)*",
        r"(\w+\s?)*$",
        "(.*a){20}",
        "(.*,)*",
        "(b{900}){900}",
        "((a{1,100}){1,100}){1,100}",
        "a{99999999}",
        "(",
        ")",
        "[a",
        "a\\",
        "(" * 500 + ")" * 500,
        "a" * 3000,
        "a{3,2}",
    ],
)
def test_expressions_that_explode_or_do_not_parse_are_400(regex: str) -> None:
    assert refused(structured_outputs={"regex": regex}).param == "structured_outputs.regex"


@given(st.text(alphabet="ab.()|*+?{}[],0129\\^$-", max_size=60))
def test_any_expression_is_accepted_or_refused(regex: str) -> None:
    with contextlib.suppress(InvalidRequest):
        parse(structured_outputs={"regex": regex or "a"})


@pytest.mark.parametrize(
    "response_format",
    [
        "json",
        {},
        {"type": "yaml"},
        {"type": "structural_tag", "format": {}},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "x"}},
        {"type": "json_schema", "json_schema": {"schema": {}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": "{}"}},
    ],
)
def test_a_bad_response_format_is_400(response_format: Any) -> None:
    param = refused(response_format=response_format).param
    assert param is not None
    assert param.startswith("response_format")


@pytest.mark.parametrize(
    "structured",
    [
        {},
        {"regex": "a", "choice": ["b"]},
        {"choice": []},
        {"choice": [""]},
        {"json_object": False},
        {"_backend": "x"},
        {"structural_tag": "{}"},
        {"json": "[]"},
        {"json": "{"},
        {"grammar": "x" * 20_000},
    ],
)
def test_bad_structured_outputs_are_400(structured: Any) -> None:
    param = refused(structured_outputs=structured).param
    assert param is not None
    assert param.startswith("structured_outputs")


def test_two_answer_formats_exclude_each_other() -> None:
    guide = {"regex": "a"}
    assert refused(structured_outputs=guide, response_format={"type": "json_object"}).param == "structured_outputs"
    assert parse(structured_outputs=guide, response_format={"type": "text"}).needs == {Capability.GUIDED}
    choice = {"type": "function", "function": {"name": "weather"}}
    assert refused(structured_outputs=guide, tools=[TOOL], tool_choice=choice).param == "structured_outputs"


# --- media


def with_part(part: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, part]}]


def image(url: str) -> list[dict[str, Any]]:
    return with_part({"type": "image_url", "image_url": {"url": url}})


def test_an_image_inside_the_request_asks_for_vision() -> None:
    parsed = parse(messages=image(f"data:image/png;base64,{PNG}"))
    assert parsed.needs == {Capability.VISION}
    assert (parsed.media_parts, parsed.prompt_bytes) == (1, len("What is this?"))


def test_sound_inside_the_request_asks_for_audio() -> None:
    data = base64.b64encode(b"RIFF....WAVE").decode()
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    assert parse(messages=with_part(part)).needs == {Capability.AUDIO}


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/",
        "https://example.com/cat.png",
        "HTTP://127.0.0.1:1/",
        "file:///etc/passwd",
        "//example.com/cat.png",
        "",
        "data:,",
        "data:image/svg+xml;base64,AAAA",
        "data:text/html;base64,AAAA",
        f"data:image/png,{PNG}",
        f" data:image/png;base64,{PNG}",
        "data:image/png;base64,",
        "data:image/png;base64,****",
        f"data:image/jpeg;base64,{PNG}",
        "data:image/png;base64,ü",
    ],
)
def test_anything_but_an_image_inside_the_request_is_unsupported_media(url: str) -> None:
    with pytest.raises(UnsupportedMedia) as caught:
        parse(messages=image(url))
    assert render(caught.value)[0] == 400
    assert caught.value.code == "unsupported_media"
    assert caught.value.param == "messages[0].content[1].image_url.url"


@pytest.mark.parametrize("kind", ["video_url", "audio_url", "file", "image_embeds", "prompt_embeds"])
def test_other_kinds_of_media_are_unsupported(kind: str) -> None:
    with pytest.raises(UnsupportedMedia) as caught:
        parse(messages=with_part({"type": kind, kind: {"url": "http://127.0.0.1/"}}))
    assert caught.value.param == "messages[0].content[1].type"


def test_media_are_bounded_in_size_and_number() -> None:
    limits = InputLimits(max_media_bytes=58, max_media_parts=2)
    url = f"data:image/png;base64,{PNG}"
    part = {"type": "image_url", "image_url": {"url": url}}
    document = {"model": "demo", "messages": [{"role": "user", "content": [part] * 2}]}
    assert parse_chat(document, limits=limits).media_parts == 2
    with pytest.raises(UnsupportedMedia):
        parse_chat({**document, "messages": [{"role": "user", "content": [part] * 3}]}, limits=limits)
    with pytest.raises(UnsupportedMedia):
        parse_chat(document, limits=InputLimits(max_media_bytes=55))


# --- what a request asks for


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({"n": 2}, Capability.MANY_CHOICES),
        ({"seed": 1}, Capability.SEED),
        ({"logit_bias": {"1": 1}}, Capability.LOGIT_BIAS),
        ({"logprobs": True}, Capability.LOGPROBS),
        ({"prompt_logprobs": 0}, Capability.PROMPT_LOGPROBS),
        ({"response_format": {"type": "json_object"}}, Capability.JSON_OBJECT),
        ({"reasoning_effort": "low"}, Capability.REASONING_EFFORT),
        ({"top_k": 5}, Capability.VLLM_SAMPLING),
        ({"ignore_eos": True}, Capability.VLLM_SAMPLING),
        ({"continue_final_message": True}, Capability.VLLM_SAMPLING),
    ],
)
def test_what_a_request_asks_for_is_listed(fields: dict[str, Any], needs: Capability) -> None:
    assert parse(**fields).needs == {needs}


@pytest.mark.parametrize(
    "fields",
    [
        {"ignore_eos": False},
        {"skip_special_tokens": True, "stop_token_ids": [], "min_tokens": 0},
        {"add_generation_prompt": True, "continue_final_message": False, "add_special_tokens": False},
        {"chat_template_kwargs": {}, "include_reasoning": True, "echo": False},
    ],
)
def test_default_of_vllm_written_out_asks_for_nothing(fields: dict[str, Any]) -> None:
    parsed = parse(**fields)
    assert (parsed.needs, parsed.body, parsed.ignored) == (frozenset(), {"messages": HELLO}, ())


@pytest.mark.parametrize(("name", "value"), [("top_k", -1), ("top_k", 0), ("min_p", 0), ("repetition_penalty", 1.0)])
def test_sampling_switched_off_is_kept_for_the_engine_and_keeps_nothing_here(name: str, value: float) -> None:
    parsed = parse(**{name: value})
    assert (parsed.needs, parsed.body[name]) == (frozenset(), value)


def test_temperature_zero_or_a_seed_makes_an_answer_repeatable() -> None:
    assert parse(temperature=0).deterministic
    assert parse(seed=5).deterministic
    assert not parse(temperature=0.1).deterministic


def test_wishes_come_from_body_and_headers() -> None:
    document = {"model": "demo", "messages": HELLO, "spillway": {"ttft_budget_ms": 500}}
    parsed = parse_chat(document, [(b"x-spillway-require-local", b"true")])
    assert (parsed.wishes.require_local, parsed.wishes.ttft_budget_s) == (True, 0.5)
    assert "spillway" not in parsed.body


def test_a_misspelt_wish_is_400() -> None:
    assert refused(spillway={"require_locl": True}).param == "spillway.require_locl"


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_content = (
    st.text(max_size=5)
    | _json
    | st.lists(
        st.fixed_dictionaries(
            {"type": st.sampled_from(["text", "image_url", "input_audio", "refusal", "x"])},
            optional={"text": st.text(max_size=5), "image_url": _json, "refusal": _json},
        ),
        max_size=3,
    )
)
_message = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"])},
    optional={"content": _content, "name": _json, "tool_calls": _json, "tool_call_id": st.text(max_size=3)},
)
_schema_values = st.recursive(
    st.booleans() | st.sampled_from(["string", "object", "#", "#/properties/a", "^a+$", 5]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "properties", "a", "$ref", "items", "anyOf", "pattern", "enum"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "model": st.just("demo") | _json,
            "messages": st.lists(_message | _json, max_size=3),
            "tools": _json,
            "tool_choice": _json,
            "response_format": _json,
            "structured_outputs": _json,
            "logprobs": _json,
            "spillway": _json,
            "unknown": _json,
        },
    ),
    st.booleans(),
)
def test_any_object_is_a_request_or_refused(document: dict[str, Any], strict: bool) -> None:
    try:
        parsed = parse_chat(document, strict=strict)
    except SpillwayError:
        return
    json.dumps(parsed.body)


@given(
    st.dictionaries(
        st.sampled_from(["type", "properties", "$ref", "items", "anyOf", "not"]), _schema_values, max_size=4
    )
)
def test_any_schema_is_accepted_or_refused(schema: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidRequest):
        parse(structured_outputs={"json": schema})
