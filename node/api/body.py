"""Bytes to a JSON object, or a clear refusal: the only place where client bytes are decoded.

The standard library's decoder with four hooks is used although msgspec's is faster (about 10 µs against 2 µs for a
1 KB body): msgspec silently keeps the last of two equal keys, which would let a second `require_local` hide
behind the first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, NoReturn

import msgspec

from node.errors import InvalidRequest, UnsupportedContentType

Headers = Iterable[tuple[bytes, bytes]]

MAX_DEPTH = 64
MAX_CONTAINERS = 100_000
_SURELY_64_BIT_CHARS = 19
_MAX_INT_CHARS = 20  # longer ones do not fit 64 bits, and converting them takes quadratic time
_ALL_BYTES = bytes(range(256))
_NOT_STRUCTURE = _ALL_BYTES.translate(None, b'"[]{}')
_BRACES_TO_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NAMES = {str: "a string", list: "an array", int: "a number", float: "a number", bool: "a boolean"}


class _Unacceptable(ValueError):
    """Valid for Python's decoder, not for us."""


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`, with no duplicate keys, non-finite numbers, integers beyond 64 bits, lone
    surrogates or more than `MAX_DEPTH` levels in it. NUL characters in strings are allowed.

    Raises `InvalidRequest` for anything else.
    """
    if not body or body.isspace():
        raise _refusal("the body is empty")
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        _check_depth(body)
    try:
        document = _decoder.decode(body.decode())
        if b"\\ud" in body or b"\\uD" in body:
            msgspec.json.encode(document)  # raises for a lone surrogate anywhere, keys included
    except UnicodeDecodeError as error:
        raise _refusal(f"invalid UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise _refusal("a string holds an unpaired surrogate") from None
    except json.JSONDecodeError as error:
        raise _refusal(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except _Unacceptable as error:
        raise _refusal(str(error)) from None
    if not isinstance(document, dict):
        found = "null" if document is None else _NAMES[type(document)]
        raise InvalidRequest(f"The request body must be a JSON object, but it is {found}.")
    return document


def check_content_type(headers: Headers) -> None:
    """Accept uncompressed `application/json` in UTF-8. `headers` have lower-case names.

    Raises `InvalidRequest` when there is no content type, `UnsupportedContentType` for another one, another
    charset or any content coding.
    """
    found = False
    for name, value in headers:
        if name == b"content-type":
            found = True
            if value != b"application/json":
                _check_media_type(value)
        elif name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise UnsupportedContentType("Compressed request bodies are not accepted; send the JSON uncompressed.")
    if not found:
        raise InvalidRequest("The request needs the header 'content-type: application/json'.")


def is_too_deep(text: bytes) -> bool:
    """Whether this JSON text nests deeper than `MAX_DEPTH`, has unbalanced brackets or more than `MAX_CONTAINERS`.

    Escapes and strings are cut out first, then each pass removes the innermost level; all passes run in C.
    """
    text = text.replace(b"\\\\", b"").replace(b'\\"', b"").translate(_BRACES_TO_BRACKETS, _NOT_STRUCTURE)
    brackets = b"".join(text.split(b'"')[::2])
    if len(brackets) > 2 * MAX_CONTAINERS:
        return True
    for _ in range(MAX_DEPTH):
        before = len(brackets)
        brackets = brackets.replace(b"[]", b"")
        if len(brackets) == before:
            break
    return bool(brackets)


def _check_depth(body: bytes) -> None:
    if is_too_deep(body):
        raise _refusal(
            f"its brackets do not match, or there are more than {MAX_DEPTH} levels or {MAX_CONTAINERS} containers"
        )


def _check_media_type(value: bytes) -> None:
    media_type, *parameters = value.decode("latin-1").lower().split(";")
    if media_type.strip() != "application/json":
        raise UnsupportedContentType("The content type must be 'application/json'.")
    for parameter in parameters:
        key, _, setting = parameter.strip().partition("=")
        if key == "charset" and setting.strip('"') not in ("utf-8", "utf8"):
            raise UnsupportedContentType("The charset must be UTF-8.")


def _refusal(why: str) -> InvalidRequest:
    return InvalidRequest(f"We could not parse the JSON body of your request: {why}.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Unacceptable(f"the key {repeated[:64]!a} appears twice in one object")
    return document


def _integer(digits: str) -> int:
    if len(digits) < _SURELY_64_BIT_CHARS:
        return int(digits)
    if len(digits) <= _MAX_INT_CHARS and -(2**63) <= (value := int(digits)) < 2**64:
        return value
    raise _Unacceptable("an integer does not fit 64 bits")


def _number(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise _Unacceptable("a number is out of range")
    return value


def _constant(name: str) -> NoReturn:
    raise _Unacceptable(f"{name} is not a JSON number")


_decoder = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_constant
)
