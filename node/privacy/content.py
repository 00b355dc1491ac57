"""Content rules: a request whose text matches one is pinned to the premises. They can only tighten.

Everything that would be sent is looked at: each string of the body, the names in schemas, long numbers. Many strings
are JSON themselves (tool arguments and results), so they are read a second time with the escapes of JSON decoded, and
again for JSON within that. No parser does it, so that broken JSON hides nothing either. What cannot be looked at
(images, sound, token ids), or not for long enough, is pinned too.
"""

from __future__ import annotations

import asyncio
import re
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import regex

from node.errors import SettingsError
from node.privacy.detectors import Detector, finds
from node.regexes import fault
from node.settings import ContentRulesSettings

TOO_LONG: Final = "too_long"
UNREADABLE: Final = "unreadable"
_SLICE_CHARS: Final = 8192
# As long as the longest thing a detector knows; of what a pattern matches, the part in one slice has to do.
_OVERLAP_CHARS: Final = 512
# A few characters stand for a whole phrase and would be written out.
_MOST_GROWN: Final = 4
# JSON, and JSON in its strings, three deep.
_LAYERS: Final = 4
_ESCAPES_AT_ONCE: Final = 256
_BREATH_S: Final = 0.01
_PATTERN_WITHIN_S: Final = 0.02
_RULE_NAME: Final = re.compile("[a-z0-9_-]{1,24}")
_TAKEN: Final = frozenset({*(each.value for each in Detector), "words", TOO_LONG, UNREADABLE})
_LEAST_NUMBER: Final = 10**7
# Invisible within a word: zero width, joiners, soft hyphen, direction marks, byte order mark.
_INVISIBLE: Final = dict.fromkeys([0xAD, 0x34F, 0x180E, *range(0x200B, 0x2010), *range(0x202A, 0x202F), 0x2060, 0xFEFF])
_LIKE_JSON: Final = re.compile(r"\s*+[\[{]")
_ESCAPE: Final = re.compile(r"""\\(?:u([0-9A-Fa-f]{4})|(["\\/bfnrt]))|\"""")
_MEANINGS: Final = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


@dataclass(frozen=True, slots=True)
class _Rule:
    name: str
    matches: Callable[[str], bool]


class ContentRules:
    """The rules of the settings. Raises `SettingsError` for a pattern or a name that will not do."""

    def __init__(self, settings: ContentRulesSettings) -> None:
        self._max_chars = settings.max_chars
        self._rules = [_detector(each) for each in dict.fromkeys(settings.detect)]
        if settings.words:
            self._rules.append(_Rule("words", _words(settings.words)))
        self._rules += [_Rule(name, _pattern(name, text)) for name, text in settings.patterns.items()]

    @property
    def names(self) -> tuple[str, ...]:
        """The rules there are; none: nothing is looked at."""
        return tuple(rule.name for rule in self._rules)

    async def match(self, body: dict[str, Any], *, unreadable: bool) -> str | None:
        """The first rule that the body of a request matches, None for none.

        `unreadable` says that there is something in it besides text. The event loop gets its turn every few
        milliseconds, however long the text is.
        """
        if not self._rules:
            return None
        if unreadable:
            return UNREADABLE
        texts = list(_texts(body))
        if sum(map(len, texts)) + len(texts) - 1 > self._max_chars:
            return TOO_LONG
        texts += _joined(body)
        turns = _Turns()
        if rule := await self._match_text("\n".join(texts), turns):
            return rule
        layer = "\n".join(text for text in texts if "\\" in text or _LIKE_JSON.match(text))
        for _ in range(_LAYERS):
            below = await _unescaped(layer, turns)
            if below == layer:
                break
            if rule := await self._match_text(below, turns):
                return rule
            layer = below
        return None

    async def _match_text(self, text: str, turns: _Turns) -> str | None:
        for raw in _slices(text):
            piece = raw if raw.isascii() else _readable(raw)
            if len(piece) > _MOST_GROWN * len(raw):
                return TOO_LONG
            for rule in self._rules:
                await turns.give()
                if rule.matches(piece):
                    return rule.name
        return None


class _Turns:
    """Gives the event loop its turn when enough time went by since the last."""

    def __init__(self) -> None:
        self._next_s = time.monotonic() + _BREATH_S

    async def give(self) -> None:
        if time.monotonic() >= self._next_s:
            await asyncio.sleep(0)
            self._next_s = time.monotonic() + _BREATH_S


def _texts(value: Any) -> Iterator[str]:
    """Everything in it that says something: strings, names and long numbers."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, int) and abs(value) >= _LEAST_NUMBER:
        yield str(value)


def _joined(body: dict[str, Any]) -> Iterator[str]:
    """The text of each message that comes in parts as one: the model reads on from part to part.

    Without anything between them, and with a blank, for what is split where it has one. Then what is split over two,
    without the others: what touches it there would hide it. Together that is four times the text at most.
    """
    for message in body.get("messages") or ():
        if not isinstance(parts := message.get("content"), list):
            continue
        texts = [text for part in parts if (text := part.get("text") or part.get("refusal"))]
        if len(texts) < 2:
            continue
        yield "".join(texts)
        yield " ".join(texts)
        for one, other in pairwise(texts):
            if min(len(one), len(other)) < _OVERLAP_CHARS:  # else it has neither beginning nor end in common with them
                yield one[-_OVERLAP_CHARS:] + other[:_OVERLAP_CHARS]


async def _unescaped(text: str, turns: _Turns) -> str:
    """The text with the escapes of JSON decoded once, and each of its strings on a line. Never longer than before."""
    pieces, end = [], 0
    for number, match in enumerate(_ESCAPE.finditer(text)):
        code, letter = match.groups()
        pieces.append(text[end : match.start()])
        # A quote that is not escaped is the edge of a string.
        pieces.append(chr(int(code, 16)) if code else _MEANINGS[letter] if letter else "\n")
        end = match.end()
        if not number % _ESCAPES_AT_ONCE:
            await turns.give()
    pieces.append(text[end:])
    plain = "".join(pieces)
    # Joins surrogate pairs. Half of one is nobody's letter.
    return plain if plain.isascii() else plain.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _readable(text: str) -> str:
    """Full-width digits and unusual blanks as plain ones, and nothing invisible in between."""
    return unicodedata.normalize("NFKC", text).translate(_INVISIBLE)


def _slices(text: str) -> Iterator[str]:
    """Pieces that overlap. A match at the edge of one is seen whole in the next."""
    if len(text) <= _SLICE_CHARS + _OVERLAP_CHARS:
        yield text
        return
    for start in range(0, len(text), _SLICE_CHARS):
        yield text[start : start + _SLICE_CHARS + _OVERLAP_CHARS]


def _detector(which: Detector) -> _Rule:
    return _Rule(which.value, lambda text: finds(which, text))


def _words(words: tuple[str, ...]) -> Callable[[str], bool]:
    folded = sorted({_readable(word).casefold() for word in words}, key=len, reverse=True)
    found = re.compile(rf"(?<!\w)(?:{'|'.join(map(_loosely, folded))})(?!\w)")
    return lambda text: found.search(text.casefold()) is not None


def _loosely(phrase: str) -> str:
    """The words of a phrase, whatever blanks are between them."""
    return r"\s{1,8}".join(map(re.escape, phrase.split()))


def _pattern(name: str, text: str) -> Callable[[str], bool]:
    where = f"privacy.content_rules.patterns.{name}"
    if not _RULE_NAME.fullmatch(name) or name in _TAKEN:
        raise SettingsError(
            f"{where}: a rule's name has 1 to 24 of a-z, 0-9, _ and -, and is none of {', '.join(sorted(_TAKEN))}"
        )
    if why := fault(text):
        raise SettingsError(f"{where}: the regular expression {why}")
    try:
        compiled = regex.compile(text)
    except regex.error as error:
        raise SettingsError(f"{where}: is not a regular expression: {error}") from error
    if compiled.search(""):
        raise SettingsError(f"{where}: matches nothing at all, and so every request")

    def matches(piece: str) -> bool:
        try:
            return compiled.search(piece, timeout=_PATTERN_WITHIN_S) is not None
        except TimeoutError:
            return True  # nobody knows whether it is in there

    return matches
