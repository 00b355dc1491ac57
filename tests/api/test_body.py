"""Request bytes to a JSON object: what is not exactly that is a 400 (or 415), and never another exception."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from node.api.body import MAX_DEPTH, check_content_type, parse_json
from node.errors import InvalidRequest, UnsupportedContentType, render


def refusal(body: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse_json(body)
    status, headers, document = render(caught.value)
    assert status == 400
    assert headers["x-should-retry"] == "false"
    error = json.loads(document)["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", None)
    return str(error["message"])


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": 1',
        b'{"a" 1}',
        b"{'a': 1}",
        b'{"a": 1}}',
        b'{"a": tru}',
        b'{"a": "\n"}',
        b'{"a": 01}',
        b'\xef\xbb\xbf{"a": 1}',
    ],
)
def test_malformed_json_is_400(body: bytes) -> None:
    assert "could not parse" in refusal(body)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'"x"', "a string"),
        (b"[]", "an array"),
        (b"42", "a number"),
        (b"4.2", "a number"),
        (b"null", "null"),
        (b"true", "a boolean"),
    ],
)
def test_a_body_that_is_not_an_object_is_400(body: bytes, found: str) -> None:
    assert found in refusal(body)


@pytest.mark.parametrize("body", [b"", b" \r\n\t"])
def test_an_empty_body_is_400(body: bytes) -> None:
    assert "empty" in refusal(body)


@pytest.mark.parametrize(
    "body", [b'{"a": "\xff"}', b'{"a": "\xed\xa0\x80"}', b'{"\xc3": 1}', '{"a": 1}'.encode("utf-16")]
)
def test_invalid_utf8_is_400(body: bytes) -> None:
    assert "UTF-8" in refusal(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":' * 100_000,
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
        b'{"s":"\\\\","a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
    ],
    ids=["objects", "arrays", "one too deep", "behind an escaped backslash"],
)
def test_nesting_beyond_the_cap_is_400(body: bytes) -> None:
    assert "levels" in refusal(body)


def test_nesting_up_to_the_cap_is_accepted() -> None:
    document: Any = {}
    for _ in range(MAX_DEPTH - 1):
        document = {"a": document}
    assert parse_json(json.dumps(document).encode()) == document


def test_brackets_inside_strings_do_not_nest() -> None:
    document = {"a": '\\"[{' * 500, "b": "[" * 500 + "\\"}
    assert parse_json(json.dumps(document).encode()) == document


def test_more_arrays_than_any_request_needs_are_400() -> None:
    assert "containers" in refusal(b'{"a":[' + b"[]," * 200_000 + b"[]]}")


@pytest.mark.parametrize("digits", ["9" * 5000, "-" + "9" * 5000, str(2**64), str(-(2**63) - 1)])
def test_an_integer_beyond_64_bits_is_400(digits: str) -> None:
    assert "64 bits" in refusal(f'{{"a": {digits}}}'.encode())


@pytest.mark.parametrize("value", [2**64 - 1, -(2**63), 10**18, -1, 0])
def test_integers_of_64_bits_are_exact(value: int) -> None:
    assert parse_json(f'{{"a": {value}}}'.encode()) == {"a": value}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_a_number_that_is_not_finite_is_400(number: str) -> None:
    refusal(f'{{"a": [{number}]}}'.encode())


@pytest.mark.parametrize(
    "body", [rb'{"a": "\ud800"}', rb'{"a": ["\uDC00 x"]}', rb'{"\ud800": 1}', rb'{"a": "\ud83d\u0041"}']
)
def test_an_unpaired_surrogate_is_400(body: bytes) -> None:
    assert "surrogate" in refusal(body)


def test_a_surrogate_pair_is_a_character() -> None:
    assert parse_json(rb'{"a": "\ud83d\ude00"}') == {"a": "\N{GRINNING FACE}"}


@pytest.mark.parametrize(
    "body",
    [
        b'{"spillway": {"require_local": true, "require_local": false}}',
        b'{"model": "a", "model": "b"}',
        b'{"a": [{"b": {"c": 1, "d": 2, "c": 1}}]}',
        rb'{"a": 1, "\u0061": 2}',
    ],
)
def test_a_key_given_twice_is_400_at_any_level(body: bytes) -> None:
    assert "twice" in refusal(body)


def test_nul_characters_are_allowed() -> None:
    assert parse_json(rb'{"a\u0000": "\u0000"}') == {"a\0": "\0"}


@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:\\u0ed8 1e9.-truefalsn', max_size=200).map(str.encode))
@example(b'{"a":"\\ud800')
@example(b'{"a":"\\')
def test_any_bytes_are_an_object_or_refused(body: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        assert isinstance(parse_json(body), dict)


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=30,
)


@given(st.dictionaries(st.text(), _values, max_size=6), st.booleans())
def test_every_sound_object_comes_back_unchanged(document: dict[str, Any], ascii_only: bool) -> None:
    assert parse_json(json.dumps(document, ensure_ascii=ascii_only).encode()) == document


@pytest.mark.parametrize(
    "value",
    [
        b"application/json",
        b"Application/JSON; charset=UTF-8",
        b'application/json;charset="utf-8"',
        b"application/json ; x=y",
    ],
)
def test_json_in_utf8_is_accepted(value: bytes) -> None:
    check_content_type([(b"host", b"x"), (b"content-type", value), (b"content-encoding", b"identity")])


def test_no_content_type_is_400() -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_content_type([(b"host", b"x")])
    assert render(caught.value)[0] == 400


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-type", b"text/plain")],
        [(b"content-type", b"application/x-www-form-urlencoded")],
        [(b"content-type", b"")],
        [(b"content-type", b"\xff")],
        [(b"content-type", b"application/json; charset=utf-16")],
        [(b"content-type", b"application/json"), (b"content-type", b"text/plain")],
        [(b"content-type", b"application/json"), (b"content-encoding", b"gzip")],
        [(b"content-type", b"application/json"), (b"content-encoding", b"identity, br")],
    ],
)
def test_another_or_compressed_content_type_is_415(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(UnsupportedContentType) as caught:
        check_content_type(headers)
    assert render(caught.value)[0] == 415
