"""msgspec's verdicts on a decoded document, in OpenAI's words and with OpenAI's `param`."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from node.errors import InvalidRequest, UnsupportedMedia

_T = TypeVar("_T")
_WHERE = re.compile(r"^(?P<what>.*?)(?: - at `(?:key` in `)?\$?\.?(?P<path>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<field>[^`]*)`$")
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<field>.*)`$", re.DOTALL)
_MEDIA_TYPES = frozenset(
    {"video_url", "audio_url", "file", "image_embeds", "audio_embeds", "video_embeds", "prompt_embeds", "input_image"}
)
_MAX_MESSAGE_CHARS = 200


def convert(document: Any, to: type[_T], at: str = "") -> _T:
    """`document` (plain JSON values) as the struct `to`.

    `at` is where the document sits in the request, for `param`. Raises `InvalidRequest`, or `UnsupportedMedia`
    where a message carries a kind of media nobody here reads.
    """
    try:
        return msgspec.convert(document, to)
    except msgspec.ValidationError as error:
        raise _refusal(str(error), at) from None


def _refusal(text: str, at: str) -> InvalidRequest:
    match = _WHERE.match(text)
    what, path = (match["what"], match["path"] or "") if match else (text, "")
    path = path.removesuffix("[...]")  # msgspec's word for a value under a key it does not name
    param = _join(at, path)
    if missing := _MISSING.match(what):
        param = _join(param, missing["field"])
        return InvalidRequest(f"Missing required parameter: '{param}'.", param=param)
    if unknown := _UNKNOWN.match(what):
        param = _join(param, unknown["field"][:64])
        return InvalidRequest(f"Unknown parameter: '{param}'.", param=param)
    value = what.removeprefix("Invalid value ").strip("'")
    if param.endswith(".type") and ".content[" in param and value in _MEDIA_TYPES:
        return UnsupportedMedia(
            f"Content of type '{value}' is not accepted; send text, or images and sound as data inside the request.",
            param=param,
        )
    what = what.replace("`", "")
    what = what[:1].lower() + what[1:_MAX_MESSAGE_CHARS]
    return InvalidRequest(
        f"Invalid value for '{param}': {what}." if param else f"Invalid request: {what}.", param=param or None
    )


def _join(at: str, path: str) -> str:
    return f"{at}.{path}" if at and path and not path.startswith("[") else at + path
