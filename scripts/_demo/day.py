"""The day: its chapters, and who asks what and when. Pure; all chance comes from the generator that is passed in."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

PROVIDER, DEAR_PROVIDER = "holysheep", "openai"
FULL_DAY_S = 120.0
STAYS, MAY_LEAVE = "STAYS-HERE", "MAY-LEAVE"
"""One of them is in every prompt, and so in the log of whichever provider hears it."""


class Act(StrEnum):
    """What happens to the node in a chapter, beside its traffic."""

    KILL_ENGINE = "kill_engine"
    PROVIDER_OUT = "provider_out"
    ALL_OUT = "all_out"
    ALL_BACK = "all_back"
    LOWER_BUDGET = "lower_budget"


@dataclass(frozen=True)
class Event:
    """An act, when it comes (0 to 1, of the chapter), and what is said of it."""

    at: float
    act: Act
    says: str


@dataclass(frozen=True)
class Chapter:
    """A part of the day.

    It takes `seconds` of a full day, and never less than `least_s`. `load` are corners of a line: moments (0 to 1) and
    what then arrives, as a multiple of what the engine can take.
    """

    name: str
    title: str
    look: str
    seconds: float
    least_s: float
    load: tuple[tuple[float, float], ...]
    events: tuple[Event, ...] = ()

    def lasts_s(self, day_s: float) -> float:
        """How long it takes in a day of `day_s`."""
        return max(self.least_s, self.seconds * day_s / FULL_DAY_S)

    def load_at(self, moment: float) -> float:
        """What arrives at `moment`, 0 to 1."""
        before, load = self.load[0]
        for at, following in self.load[1:]:
            if moment <= at:
                return load + (following - load) * (moment - before) / (at - before)
            before, load = at, following
        return load


CALM = 0.35
CHAPTERS = (
    Chapter(
        "calm",
        "A calm morning: a third of what the engine can take, and hardly anything leaves.",
        "One colour under `Requests answered per second`, local; next to nothing is spent.",
        15,
        2,
        ((0, CALM),),
    ),
    Chapter(
        "burst",
        "A burst, three times what the engine can take; then it is calm again.",
        "The queue grows, and what may leave goes at its last safe moment. `hr` stays. Then the overflow closes.",
        35,
        8,
        ((0, CALM), (0.15, 3), (0.55, 3), (0.65, CALM), (1, CALM)),
    ),
    Chapter(
        "engine killed",
        "The engine's process is killed, as a driver or the memory killer would.",
        "Engines: down, starting, ready. The cloud stands in; what is pinned waits for the engine, and never leaves.",
        30,
        3,
        ((0, CALM),),
        (Event(0.1, Act.KILL_ENGINE, "SIGKILL to the engine. The node goes on, and builds another one."),),
    ),
    Chapter(
        "outage",
        "Busy hours, and the providers fail.",
        "Providers: a breaker opens, the dearer one takes over. Then none is left, and requests stay or are refused.",
        24,
        9,
        ((0, 2.2),),
        (
            Event(
                0.2,
                Act.PROVIDER_OUT,
                f"{PROVIDER} answers 503 to everything: {DEAR_PROVIDER}, which is dearer, takes over.",
            ),
            Event(
                0.5, Act.ALL_OUT, f"{DEAR_PROVIDER} too: nothing can leave, and who cannot wait is refused, in words."
            ),
            Event(0.75, Act.ALL_BACK, "Both are back: a call at a time, and the breakers close."),
        ),
    ),
    Chapter(
        "budget spent",
        "As busy, and the budget comes to its end.",
        "`Budget left` goes to nothing. From then on nothing that costs leaves; pinned and local work goes on.",
        16,
        6,
        ((0, 2.2), (0.85, 2.2), (1, CALM)),
        (
            Event(
                0.1,
                Act.LOWER_BUDGET,
                "The day's budget is lowered, while the node runs, to little more than is spent.",
            ),
        ),
    ),
)
SHORTEST_DAY_S = sum(each.least_s for each in CHAPTERS)


@dataclass(frozen=True)
class Caller:
    """One of the node's callers: its share of the requests, and what its key says. `budget_ms` is its patience."""

    name: str
    share: float
    budget_ms: float
    priority: int = 0


CALLERS = (
    Caller("chat", 0.45, 1000),
    Caller("faq", 0.2, 1500),
    Caller("reports", 0.2, 5000, priority=-10),
    Caller("hr", 0.15, 3000, priority=10),
)
PRIVATE_SHARE = 0.1
"""Of the chats: their users have ticked the box that says that it stays here."""


@dataclass(frozen=True)
class Request:
    """One request: when it arrives (seconds from the beginning of its stretch), whose it is, and its body."""

    at_s: float
    caller: str
    pinned: bool
    budget_s: float
    body: Mapping[str, Any]


_QUESTIONS = (
    "What is Spillway?",
    "When does a request go to the cloud?",
    "What does overflow mean?",
    "Which model is this?",
    "What is a latency budget?",
    "Who pays for the cloud?",
    "What is 3 + 4?",
    "Say hello.",
)
_FAQ = ("What is Spillway?", "Which model is this?", "What does overflow mean?", "What is a latency budget?")
_PERSONAL = (
    "Write to ada@example.com that her leave is approved",
    "Pay the refund to DE89 3704 0044 0532 0130 00",
    "Answer the complaint of grace@example.com about her payslip",
)
_TURNS, _OPEN_CHATS = 4, 6


class Crowd:
    """The callers. Chats go on from one stretch to the next, and no two prompts that may not be cached are alike."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._count = 0
        self._chats: list[list[dict[str, str]]] = []

    def requests(self, rate_at: Callable[[float], float], lasts_s: float) -> list[Request]:
        """What arrives in `lasts_s`; `rate_at(s)` is in requests per second."""
        return [self.request(at_s) for at_s in arrivals(rate_at, lasts_s, self._rng)]

    def request(self, at_s: float) -> Request:
        """The next one."""
        (caller,) = self._rng.choices(CALLERS, [each.share for each in CALLERS])
        self._count += 1
        match caller.name:
            case "chat":
                return self._chat(caller, at_s)
            case "faq":
                return self._faq(caller, at_s)
            case "reports":
                return self._reports(caller, at_s)
            case _:
                return self._hr(caller, at_s)

    def _chat(self, caller: Caller, at_s: float) -> Request:
        private = self._rng.random() < PRIVATE_SHARE
        if private or len(self._chats) < _OPEN_CHATS or self._rng.random() < 0.3:
            messages = [_user(self._tagged(self._rng.choice(_QUESTIONS), STAYS if private else MAY_LEAVE))]
        else:
            chat = self._chats.pop(self._rng.randrange(len(self._chats)))
            messages = [*chat, _user(self._rng.choice(_QUESTIONS))]
        if not private and len(messages) < 2 * _TURNS:
            self._chats.append([*messages, {"role": "assistant", "content": "Spillway is an inference node."}])
        wishes = {"require_local": True} if private else {"ttft_budget_ms": caller.budget_ms}
        return _request(at_s, caller, private, messages, 60, wishes=wishes)

    def _faq(self, caller: Caller, at_s: float) -> Request:
        return _request(at_s, caller, False, [_user(f"{self._rng.choice(_FAQ)} ({MAY_LEAVE})")], 40, temperature=0)

    def _reports(self, caller: Caller, at_s: float) -> Request:
        ask = self._tagged("Please explain the queue, a token, the engine and the bill", MAY_LEAVE)
        return _request(at_s, caller, False, [_user(ask)], 90)

    def _hr(self, caller: Caller, at_s: float) -> Request:
        return _request(at_s, caller, True, [_user(self._tagged(self._rng.choice(_PERSONAL), STAYS))], 50)

    def _tagged(self, text: str, tag: str) -> str:
        return f"{text} ({tag} {self._count})"


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


_NO_WISHES: Mapping[str, Any] = MappingProxyType({})


def _request(
    at_s: float,
    caller: Caller,
    pinned: bool,
    messages: Sequence[Mapping[str, str]],
    max_tokens: int,
    *,
    temperature: float = 0.7,
    wishes: Mapping[str, Any] = _NO_WISHES,
) -> Request:
    body = {
        "model": "demo",
        "messages": messages,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
        "spillway": dict(wishes),
    }
    return Request(at_s, caller.name, pinned, caller.budget_ms / 1000, body)


def arrivals(rate_at: Callable[[float], float], lasts_s: float, rng: random.Random) -> Iterator[float]:
    """Moments of a Poisson process whose rate changes, by thinning (Lewis and Shedler, 1979)."""
    most = max(rate_at(lasts_s * step / 100) for step in range(101))
    at_s = 0.0
    while most > 0 and (at_s := at_s + rng.expovariate(most)) < lasts_s:
        if rng.random() * most < rate_at(at_s):
            yield at_s
