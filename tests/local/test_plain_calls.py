from __future__ import annotations

from typing import Any

import pytest

from node.backend import Call, Kind
from node.local.plain import fits_fast_path

USER = {"role": "user", "content": "hi"}
TALK: dict[str, Any] = {"messages": [USER]}


def fits(kind: Kind, body: dict[str, Any]) -> bool:
    return fits_fast_path(
        Call(
            request_id="r",
            kind=kind,
            model="demo",
            body=body,
            stream=True,
            include_usage=False,
            max_output_tokens=16,
            created_s=0,
            tenant="t",
        )
    )


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"model": "demo", "user": "u", "stream": True, "stream_options": {"include_usage": True}},
        {"max_tokens": 5, "temperature": 0, "top_p": 0.5, "seed": 3, "stop": "x"},
        {"stop": ["a", "b"], "n": 1, "max_completion_tokens": 4, "cache_salt": "s"},
        {"temperature": None, "stop": None, "n": None},
    ],
)
def test_plain_conversation_takes_the_short_way(more: dict[str, Any]) -> None:
    assert fits(Kind.CHAT, TALK | more)


@pytest.mark.parametrize(
    "more",
    [
        {"tools": []},
        {"tool_choice": "auto"},
        {"response_format": {"type": "json_object"}},
        {"logprobs": True},
        {"n": 2},
        {"echo": True},
        {"chat_template_kwargs": {"enable_thinking": True}},
        {"reasoning_effort": "low"},
        {"logit_bias": {"1": 1}},
        {"temperature": "0.5"},
        {"max_tokens": 1.5},
        {"seed": True},
        {"cache_salt": ""},
        {"messages": []},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
        {"messages": [{"role": "tool", "content": "hi", "tool_call_id": "1"}]},
        {"messages": [USER | {"name": "bob"}]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": []}]},
        {"something_new": 1},
    ],
)
def test_anything_more_goes_to_the_serving_objects(more: dict[str, Any]) -> None:
    assert not fits(Kind.CHAT, TALK | more)


def test_completion_is_plain_only_with_one_text_prompt() -> None:
    assert fits(Kind.COMPLETION, {"prompt": "Once", "max_tokens": 3})
    assert not fits(Kind.COMPLETION, {"prompt": ""})
    assert not fits(Kind.COMPLETION, {"prompt": ["Once", "Twice"]})
    assert not fits(Kind.COMPLETION, {"prompt": [1, 2]})
    assert not fits(Kind.COMPLETION, {"prompt": "Once", "echo": True})
