"""Images and sound inside a request. Nothing is ever fetched: a reference to anything outside is refused."""

from __future__ import annotations

import binascii
import re
from typing import Final

from node.errors import UnsupportedMedia

_DATA_URL = re.compile(r"data:image/(png|jpeg|webp|gif);base64,", re.IGNORECASE)
_SIGNATURES: Final[dict[str, tuple[bytes, ...]]] = {
    "png": (b"\x89PNG\r\n\x1a\n",),
    "jpeg": (b"\xff\xd8\xff",),
    "gif": (b"GIF87a", b"GIF89a"),
    "webp": (b"RIFF",),
    "wav": (b"RIFF",),
    "mp3": (b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"\xff\xfa"),
}


def check_image(url: str, max_bytes: int, param: str) -> None:
    """Accept a `data:` URL of a PNG, JPEG, WebP or GIF image of at most `max_bytes` once decoded.

    Raises `UnsupportedMedia` for any other address or content.
    """
    match = _DATA_URL.match(url)
    if match is None:
        raise UnsupportedMedia(
            "Images must be sent inside the request as 'data:image/png;base64,...' (or jpeg, webp, gif); "
            "the server does not fetch addresses.",
            param=param,
        )
    _check(url[match.end() :], match[1].lower(), max_bytes, param)


def check_audio(data: str, audio_format: str, max_bytes: int, param: str) -> None:
    """Accept base64 sound in the named format (`wav` or `mp3`). Raises `UnsupportedMedia`."""
    _check(data, audio_format, max_bytes, param)


def _check(encoded: str, kind: str, max_bytes: int, param: str) -> None:
    if len(encoded) > (max_bytes + 2) // 3 * 4:
        raise UnsupportedMedia(f"The {kind} data is larger than {max_bytes} bytes.", param=param)
    try:
        content = binascii.a2b_base64(encoded, strict_mode=True)
    except ValueError:  # binascii.Error, or a character that is not ASCII
        raise UnsupportedMedia(f"The {kind} data is not valid base64.", param=param) from None
    if not content.startswith(_SIGNATURES[kind]):
        raise UnsupportedMedia(f"The data is not a {kind} file.", param=param)
