"""What is wrong with an answer, judged by what the providers know that they said and sent. No I/O."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from _faults_clients import Heard

EMULATED = "Emulated answer"
"""How everything that a provider says here begins; the engine's model has never seen it."""

_ERROR_FIELDS = {"message", "type", "param", "code"}


class Wrong(StrEnum):
    """Each is a promise that was broken."""

    HUNG = "hung"
    SPLICED = "spliced"
    TRUNCATED = "silently truncated"
    MALFORMED = "malformed"
    PIN_BROKEN = "pinned, and left"
    KEY_SHOWN = "provider key shown"


@dataclass(frozen=True)
class Said:
    """One call that a provider worked on: all it was to say, and the switch that spoilt it, if one did."""

    provider: str
    text: str
    switch: str | None


@dataclass(frozen=True)
class Evidence:
    """What the providers know of one request: how often it arrived, and every call that was worked on."""

    arrivals: int = 0
    said: tuple[Said, ...] = ()


def gather(
    logs: Mapping[str, Iterable[Mapping[str, Any]]], bills: Mapping[str, Iterable[Mapping[str, Any]]]
) -> dict[str, Evidence]:
    """The evidence on each request by its marker, from every provider's log (with prompts) and bill (with answers)."""
    arrivals: dict[str, int] = {}
    said: dict[str, list[Said]] = {}
    for provider, log in logs.items():
        markers = {}
        for record in log:
            if (marker := _marker(record)) is not None:
                arrivals[marker] = arrivals.get(marker, 0) + 1
                markers[record["request_id"].removeprefix("hs_req_")] = marker
        for record in bills[provider]:
            if (marker := markers.get(_number(record["id"]))) is not None:
                said.setdefault(marker, []).append(Said(provider, record["answers"][0], record["switch"]))
    return {marker: Evidence(count, tuple(said.get(marker, ()))) for marker, count in arrivals.items()}


def judge(heard: Heard, evidence: Evidence, key: str) -> list[Wrong]:
    """Everything that is wrong with one answer. `key` is the providers', which must not show."""
    wrong = []
    if heard.hung:
        wrong.append(Wrong.HUNG)
    if heard.asked.pinned and evidence.arrivals:
        wrong.append(Wrong.PIN_BROKEN)
    if key in heard.raw_error or key in heard.text:
        wrong.append(Wrong.KEY_SHOWN)
    if not heard.left and not heard.hung and not _well_formed(heard):
        wrong.append(Wrong.MALFORMED if heard.error is not None else Wrong.TRUNCATED)
    if heard.status == 200 and (found := _content(heard, evidence)) is not None:
        wrong.append(found)
    return wrong


def _number(billed_id: str) -> str:
    """The call's number in the log: its provider's seed, another one after each start, and its own."""
    return billed_id.rpartition("emulated")[2].replace("x", "_")


def _marker(record: Mapping[str, Any]) -> str | None:
    prompts: Sequence[str] = record["prompts"]
    _, opened, rest = prompts[-1].rpartition("(")
    return rest.removesuffix(")") if opened else None


def _well_formed(heard: Heard) -> bool:
    """Whether the answer came to an end that a client can tell, good or bad."""
    if heard.broken is not None or not heard.done or heard.request_id is None:
        return False
    if heard.status in (429, 503) and not (heard.retry_after or "").isdecimal():
        return False
    if heard.error is not None:
        return set(heard.error) == _ERROR_FIELDS and bool(heard.error["message"]) and bool(heard.error["code"])
    return heard.status == 200 and heard.finish is not None


def _content(heard: Heard, evidence: Evidence) -> Wrong | None:
    """Whether the text of a 200 is one backend's alone, and all of it unless the answer says that it is not."""
    if len(heard.identities) > 1 or any(model != heard.asked.model for _, model in heard.identities):
        return Wrong.SPLICED
    if heard.backend == "local":
        return _from_engine(heard)
    text = heard.text.rstrip()
    said = [each for each in evidence.said if each.provider == heard.backend]
    if heard.whole:
        if any(text == each.text.rstrip() for each in said):
            return None
        return Wrong.TRUNCATED if any(each.text.startswith(text) for each in said) else Wrong.SPLICED
    begun = any(
        each.text.startswith(text) or (each.switch == "endless" and text.startswith(each.text)) for each in said
    )
    return None if begun or not text else Wrong.SPLICED


def _from_engine(heard: Heard) -> Wrong | None:
    if EMULATED in heard.text:
        return Wrong.SPLICED
    if not heard.whole:
        return None
    if heard.completion_tokens is None or (
        heard.finish == "length" and heard.completion_tokens != heard.asked.max_tokens
    ):
        return Wrong.TRUNCATED
    return None
