"""What `/v1/completions` accepts, refuses and makes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.api.schema import InputLimits, ParsedRequest, parse_completion
from node.backend import Kind
from node.errors import InvalidRequest, SpillwayError
from node.routing.values import Capability


def parse(**fields: Any) -> ParsedRequest:
    return parse_completion({"model": "demo", "prompt": "Once", **fields})


def refused(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    return caught.value


def test_an_ordinary_request_passes_through() -> None:
    parsed = parse(max_tokens=5, temperature=0, stop="\n")
    assert parsed.kind is Kind.COMPLETION
    assert parsed.model == "demo"
    assert parsed.body == {"prompt": "Once", "max_tokens": 5, "temperature": 0, "stop": "\n"}
    assert parsed.needs == {Capability.COMPLETIONS}
    assert (parsed.max_tokens, parsed.choices, parsed.prompt_bytes, parsed.deterministic) == (5, 1, 4, True)


@pytest.mark.parametrize(
    ("prompt", "choices", "prompt_bytes", "tokens"),
    [
        ("ü", 2, 2, False),
        (["a", "bc"], 4, 3, False),
        ([1, 2, 3], 2, 3, True),
        ([[1, 2], [3]], 4, 3, True),
    ],
)
def test_the_four_shapes_of_a_prompt(prompt: Any, choices: int, prompt_bytes: int, tokens: bool) -> None:
    parsed = parse(prompt=prompt, n=2)
    assert parsed.body["prompt"] == prompt
    assert (parsed.choices, parsed.prompt_bytes) == (choices, prompt_bytes)
    assert (Capability.TOKEN_PROMPT in parsed.needs) is tokens


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ("", "prompt"),
        ([], "prompt"),
        (5, "prompt"),
        ({"a": 1}, "prompt"),
        (["a", ""], "prompt[1]"),
        (["a", 1], "prompt[1]"),
        ([None], "prompt[0]"),
        ([1, -1], "prompt"),
        ([1, 2**31], "prompt"),
        ([1, "a"], "prompt"),
        ([1, True], "prompt"),
        ([1, 2.0], "prompt"),
        ([[1], []], "prompt[1]"),
        ([[1], 2], "prompt[1]"),
        ([[1], [-2]], "prompt[1]"),
        ([True], "prompt[0]"),
    ],
)
def test_a_bad_prompt_is_400_and_named(prompt: Any, param: str) -> None:
    assert refused(prompt=prompt).param == param


def test_a_missing_prompt_is_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_completion({"model": "demo"})
    assert caught.value.param == "prompt"


def test_more_prompts_than_allowed_are_400() -> None:
    limits = InputLimits(max_prompts=3)
    document = {"model": "demo", "prompt": ["a"] * 4}
    with pytest.raises(InvalidRequest) as caught:
        parse_completion(document, limits=limits)
    assert caught.value.param == "prompt"
    assert parse_completion({**document, "prompt": ["a"] * 3}, limits=limits).choices == 3


def test_token_ids_beyond_a_known_vocabulary_are_400() -> None:
    document = {"model": "demo", "prompt": [5, 1023]}
    assert parse_completion(document, vocab_size=1024).prompt_bytes == 2
    with pytest.raises(InvalidRequest) as caught:
        parse_completion({**document, "prompt": [5, 1024]}, vocab_size=1024)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("logprobs", [-1, 21, True, "5"])
def test_bad_logprobs_are_400(logprobs: Any) -> None:
    assert refused(logprobs=logprobs).param == "logprobs"


def test_what_a_request_asks_for_is_listed() -> None:
    parsed = parse(logprobs=0, echo=True, seed=3, response_format={"type": "json_object"})
    assert parsed.needs == {
        Capability.COMPLETIONS,
        Capability.LOGPROBS,
        Capability.VLLM_SAMPLING,
        Capability.SEED,
        Capability.JSON_OBJECT,
    }


def test_default_of_vllm_written_out_asks_for_nothing() -> None:
    parsed = parse(ignore_eos=False, echo=False, add_special_tokens=True)
    assert parsed.needs == {Capability.COMPLETIONS}
    assert not {"ignore_eos", "echo", "add_special_tokens"} & parsed.body.keys()
    assert Capability.VLLM_SAMPLING in parse(add_special_tokens=False).needs


def test_best_of_is_told_to_be_ignored() -> None:
    assert parse(best_of=3).ignored == ("best_of",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt_embeds", "AAAA"),
        ("prompt_embeds", ["AAAA"]),
        ("suffix", "end"),
        ("use_beam_search", True),
        ("vllm_xargs", {"a": 1}),
    ],
)
def test_what_must_not_be_obeyed_nor_ignored_is_400(name: str, value: Any) -> None:
    assert refused(**{name: value}).param == name


def test_prompt_logprobs_are_refused_in_a_stream() -> None:
    assert Capability.PROMPT_LOGPROBS in parse(prompt_logprobs=1).needs
    assert refused(prompt_logprobs=1, stream=True).param == "prompt_logprobs"


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "model": st.just("demo") | _json,
            "prompt": st.text(max_size=5) | st.lists(st.integers(0, 9)) | _json,
            "logprobs": _json,
            "echo": _json,
            "n": _json,
            "stop": _json,
            "logit_bias": _json,
            "stream_options": _json,
            "spillway": _json,
            "unknown": _json,
        },
    ),
    st.booleans(),
)
def test_any_object_is_a_request_or_refused(document: dict[str, Any], strict: bool) -> None:
    try:
        parsed = parse_completion(document, strict=strict)
    except SpillwayError:
        return
    json.dumps(parsed.body)
