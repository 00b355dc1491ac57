"""What personal data looks like: built-in detectors, each a pattern that finds candidates and a check that decides.

Patterns are plain ASCII and linear: no text makes them slow. Checks are `python-stdnum`'s where there is a checksum. A
detector may overlook what is written in an unusual way; it must seldom see what is not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import lru_cache
from itertools import accumulate
from typing import Final

from stdnum import iban, luhn, numdb
from stdnum.be import nn
from stdnum.br import cpf
from stdnum.ch import ssn as ahv
from stdnum.cn import ric
from stdnum.de import idnr
from stdnum.es import dni, nie
from stdnum.exceptions import ValidationError
from stdnum.fi import hetu
from stdnum.fr import nir
from stdnum.in_ import aadhaar
from stdnum.it import codicefiscale
from stdnum.kr import rrn
from stdnum.no import fodselsnummer
from stdnum.pl import pesel
from stdnum.se import personnummer
from stdnum.us import ssn


class Detector(StrEnum):
    """The built-in detectors, by the name that settings, headers and audit rows have."""

    EMAIL = "email"
    PAYMENT_CARD = "payment_card"
    IBAN = "iban"
    NATIONAL_ID = "national_id"


def finds(detector: Detector, text: str) -> bool:
    """Whether there is at least one in `text`."""
    return next(_FINDERS[detector](text), None) is not None


_ALNUM = "A-Za-z0-9"
_EMAIL = re.compile(
    rf"(?<=[{_ALNUM}_.%+'-])@((?:[{_ALNUM}](?:[{_ALNUM}-]{{0,62}})\.){{1,8}}([A-Za-z]{{2,24}}))(?![{_ALNUM}-])"
)
# `icon@2x.png`, `theme@dark.css`: never top-level domains.
_FILE_ENDINGS = frozenset(
    {"css", "gif", "html", "jpeg", "jpg", "js", "json", "jsx", "pdf", "png", "scss", "svg", "ts", "tsx", "txt", "webp"}
)
_CARD = re.compile(
    r"(?<![0-9A-Za-z_])(?<![0-9]\.)"
    r"(?:[2-6][0-9]{12,18}|[2-6][0-9]{3}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{3})?"
    r"|3[47][0-9]{2}([ -])[0-9]{6}\2[0-9]{5}|3[0689][0-9]{2}([ -])[0-9]{6}\3[0-9]{4})"
    r"(?![0-9A-Za-z_]|\.[0-9]|-[0-9])"
)
# Ahead of the place only, so that one which begins within another word's reach is seen too.
_IBAN = re.compile(r"(?<![0-9A-Za-z])(?=([A-Za-z]{2}[0-9]{2}(?:[ -]?[0-9A-Za-z]){11,30}))")


def _emails(text: str) -> Iterator[str]:
    if "@" not in text:
        return
    for match in _EMAIL.finditer(text):
        labels = match[1].split(".")
        # `package@1.0.0-beta.rc` is a version.
        version = len(labels) > 2 and labels[0].isdigit() and labels[1].isdigit()
        if not version and labels[-1].lower() not in _FILE_ENDINGS:
            yield match[0]


def _cards(text: str) -> Iterator[str]:
    for match in _CARD.finditer(text):
        digits = match[0].replace(" ", "").replace("-", "")
        if len(digits) in _lengths_of(digits) and luhn.is_valid(digits) and len(set(digits)) > 1:
            yield match[0]


def _lengths_of(digits: str) -> tuple[int, ...]:
    """How long a card number with these first digits may be, by the schemes' ranges; nothing for nobody's."""
    two, three, four = int(digits[:2]), int(digits[:3]), int(digits[:4])
    if digits[0] == "4":
        return (13, 16, 19)
    if 51 <= two <= 55 or 2221 <= four <= 2720 or 2200 <= four <= 2204:
        return (16,)
    if two in (34, 37):
        return (15,)
    if 300 <= three <= 305 or two in (36, 38, 39):
        return (14,)
    if 3528 <= four <= 3589 or four == 6011 or 644 <= three <= 649 or two in (60, 62, 65, 81):
        return (16, 19)
    return ()


def _ibans(text: str) -> Iterator[str]:
    for match in _IBAN.finditer(text):
        # What follows after a gap may be the next word.
        groups = re.split(r"[ -]", match[1])
        ends = list(accumulate(map(len, groups)))
        length = _iban_length(groups[0][:2].upper())
        if length in ends:
            candidate = "".join(groups)[:length].upper()
            if _is_97(candidate) and iban.is_valid(candidate):
                yield candidate


@lru_cache(maxsize=1024)
def _iban_length(country: str) -> int | None:
    """How long this country's are, from `stdnum`'s table; None where there are none."""
    known = numdb.get("iban").info(country)[0][1].get("bban")
    return None if known is None else 4 + sum(map(int, re.findall(r"([0-9]+)!", known)))


def _is_97(candidate: str) -> bool:
    """ISO 7064's check, which 96 of 97 fail, before `stdnum` looks at the country's form."""
    return int("".join(str(int(each, 36)) for each in candidate[4:] + candidate[:4])) % 97 == 1


def _bounded(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![{_ALNUM}_])(?<![0-9][.,/-])(?:{pattern})(?![{_ALNUM}_]|[.,/-][0-9])")


def _is_chinese(number: str) -> bool:
    """Check digit and date; `stdnum` looks up the birthplace too, and stumbles over those it has only in part."""
    try:
        ric.get_birth_date(number)
    except ValidationError:
        return False
    return bool(ric.calc_check_digit(number) == number[-1])


# One pass finds what could be any of them; most text has nothing of the kind.
_NATIONAL = re.compile(
    rf"(?<![{_ALNUM}_])"
    r"(?:[0-9][0-9A-Z .+-]{6,}|[XYZ]-?[0-9]{7}-?[A-Z]|[A-Z]{6}[0-9L-V]{2}[A-Z][0-9A-Z]+)"
)
# Without their separators most of these are just numbers; where a check digit alone would hold every tenth number for
# one, the form it is written in is asked for too.
_NATIONAL_IDS: Final[tuple[tuple[re.Pattern[str], Callable[[str], bool]], ...]] = (
    (_bounded(r"[0-9]{3}-[0-9]{2}-[0-9]{4}"), ssn.is_valid),
    (_bounded(r"[0-9]{2} ?[0-9]{3} ?[0-9]{3} ?[0-9]{3}"), idnr.is_valid),
    (_bounded(r"[12] ?[0-9]{2} ?[0-9]{2} ?[0-9][0-9AB] ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}"), nir.is_valid),
    (_bounded(r"[0-9]{8}-?[A-Z]"), dni.is_valid),
    (_bounded(r"[XYZ]-?[0-9]{7}-?[A-Z]"), nie.is_valid),
    (
        _bounded(r"[A-Z]{6}[0-9L-V]{2}[A-Z][0-9L-V]{2}[A-Z][0-9L-V]{3}[A-Z]"),
        codicefiscale.is_valid,
    ),
    (_bounded(r"[0-9]{11}"), pesel.is_valid),
    (_bounded(r"[0-9]{6} ?[0-9]{5}"), fodselsnummer.is_valid),
    (_bounded(r"(?:[0-9]{2})?[0-9]{6}[-+][0-9]{4}"), personnummer.is_valid),
    (_bounded(r"[0-9]{6}[-+A-FU-Y][0-9]{3}[0-9A-Z]"), hetu.is_valid),
    (_bounded(r"[0-9]{2}\.[0-9]{2}\.[0-9]{2}-[0-9]{3}\.[0-9]{2}"), nn.is_valid),
    (_bounded(r"756\.?[0-9]{4}\.?[0-9]{4}\.?[0-9]{2}"), ahv.is_valid),
    (_bounded(r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}"), cpf.is_valid),
    (_bounded(r"[2-9][0-9]{3}[ -][0-9]{4}[ -][0-9]{4}"), aadhaar.is_valid),
    (_bounded(r"[1-9][0-9]{5}(?:19|20)[0-9]{9}[0-9X]"), _is_chinese),
    (_bounded(r"[0-9]{6}-[0-9]{7}"), rrn.is_valid),
)


def _national_ids(text: str) -> Iterator[str]:
    for place in _NATIONAL.finditer(text):
        for pattern, is_valid in _NATIONAL_IDS:
            for match in pattern.finditer(text, place.start(), place.end() + 2):  # with what must not follow
                if is_valid(match[0]):
                    yield match[0]


_FINDERS: Final[dict[Detector, Callable[[str], Iterator[str]]]] = {
    Detector.EMAIL: _emails,
    Detector.PAYMENT_CARD: _cards,
    Detector.IBAN: _ibans,
    Detector.NATIONAL_ID: _national_ids,
}
