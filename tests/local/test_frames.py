from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.backend import Call, Kind
from node.local.frames import Template, document, read, relabel, usage_frame
from node.money import Usage


def call(kind: Kind = Kind.CHAT, *, stream: bool = True, usage: bool = True, model: str = "demo") -> Call:
    return Call(
        request_id="r1",
        kind=kind,
        model=model,
        body={},
        stream=stream,
        include_usage=usage,
        max_output_tokens=16,
        created_s=7,
        tenant="t",
    )


def parsed(data: bytes) -> dict[str, Any]:
    assert data.startswith(b"data: ")
    assert data.endswith(b"\n\n")
    value: dict[str, Any] = json.loads(data[6:])
    return value


@given(st.text(), st.sampled_from(["demo", 'a "quoted" name', "模型"]))
def test_any_text_survives_the_template(text: str, model: str) -> None:
    chat = parsed(Template(call(model=model)).text(text))
    assert chat["choices"][0]["delta"] == {"content": text}
    assert (chat["id"], chat["object"], chat["created"], chat["model"]) == (
        "chatcmpl-r1",
        "chat.completion.chunk",
        7,
        model,
    )
    completion = parsed(Template(call(Kind.COMPLETION, model=model)).text(text))
    assert completion["choices"][0]["text"] == text
    assert (completion["id"], completion["object"]) == ("cmpl-r1", "text_completion")


def test_last_frame_names_why_it_ended() -> None:
    for kind in Kind:
        choice = parsed(Template(call(kind)).last("!", "stop", "END"))["choices"][0]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "END")


def test_chat_opens_with_the_role_and_a_completion_does_not() -> None:
    assert parsed(Template(call()).role())["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert Template(call(Kind.COMPLETION)).role() == b""


def test_usage_is_sent_only_to_those_who_asked() -> None:
    frame = parsed(usage_frame(call(), Usage(3, 4)))
    assert frame["choices"] == []
    assert frame["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "cost_usd": 0.0}
    assert usage_frame(call(usage=False), Usage(3, 4)) == b""


def test_whole_answer_carries_free_usage() -> None:
    chat = json.loads(document(call(stream=False), "hi", "length", None, Usage(1, 2)))
    assert chat["object"] == "chat.completion"
    assert chat["choices"][0]["message"] == {"role": "assistant", "content": "hi", "refusal": None}
    assert chat["usage"]["cost_usd"] == 0.0
    assert json.loads(document(call(Kind.COMPLETION), "hi", "stop", None, Usage(1, 2)))["choices"][0]["text"] == "hi"


EVENT = (
    'data: {"id":"chatcmpl-r1","object":"chat.completion.chunk","created":99,"model":"served",'
    '"choices":[{"index":0,"delta":%s,"logprobs":null,"finish_reason":%s}]}\n\n'
)


@pytest.mark.parametrize(
    ("delta", "content"),
    [
        ('{"content":"a"}', True),
        ('{"content":""}', False),
        ('{"role":"assistant","content":""}', False),
        ('{"reasoning":"hm"}', True),
        ('{"tool_calls":[{"index":0,"function":{"name":"f"}}]}', True),
        ("{}", False),
    ],
)
def test_content_is_text_reasoning_or_a_tool_call(delta: str, content: bool) -> None:
    wire = read(EVENT % (delta, "null"))
    assert wire is not None
    assert wire.has_content is content


def test_end_marks_and_comments_hold_nothing() -> None:
    assert read("data: [DONE]\n\n") is None
    assert read(": keep-alive\n\n") is None


def test_error_event_is_recognised() -> None:
    wire = read('data: {"error": {"message": "m", "type": "t", "param": null, "code": 500}}\n\n')
    assert wire is not None
    assert wire.error is not None
    assert wire.error.code == 500


def test_only_the_fields_themselves_are_relabelled() -> None:
    event = EVENT % ('{"content":"\\"created\\":99,\\"model\\":\\"served\\""}', '"stop"')
    wire = read(event)
    assert wire is not None
    assert wire.finish_reason == "stop"
    ours = parsed(relabel(event, wire, call(model='na"me')))
    assert (ours["created"], ours["model"]) == (7, 'na"me')
    assert ours["choices"][0]["delta"]["content"] == '"created":99,"model":"served"'
