"""A provider's statement laid beside our own rows: what each billed item is, what differs, and how sure that is.

 1. By id, where the statement has one that we know.
 2. By model, tokens and time: the item nearest in time to a call with the very same tokens. `SURE` where no other call
    could be meant, `LIKELY` where several could: then the totals are right, and two equal calls may be exchanged.
 3. By model and time, for calls whose tokens the provider has not told us (orphaned, cut): within what was reserved,
    and no more prompt than was sent. `LIKELY` where it can be one caller's calls only, else `GUESS`; and `GUESS` where
    the prompt is far shorter than what was sent.

A guess is shown and never written. An item whose id was billed before in the same statement is a duplicate, and never
laid to a call.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection, bindparam, select, update

from node.store.schema import State, calls
from node.store.statement import Item

# A clock that is a little off, and a bill that is dated when it was written.
SLACK_US: Final = 120_000_000
# How long a call may have been under way at the provider after we lost sight of it.
LONGEST_US: Final = 3_600_000_000
# Rendering adds tokens to a prompt that nobody sees.
_PROMPT_SLACK_TOKENS: Final = 1024
# Text has three to six bytes per token in any tongue; a prompt with fewer tokens than this allows was another one.
_MOST_BYTES_PER_TOKEN: Final = 16


class Sureness(StrEnum):
    """How sure it is that an item is that call."""

    ID = "id"
    SURE = "sure"
    LIKELY = "likely"
    GUESS = "guess"


class Difference(StrEnum):
    """What is to be looked at."""

    UNKNOWN = "billed, not ours"
    DUPLICATE = "billed again, not ours"
    UNBILLED = "ours, not billed"
    AMOUNT = "other amount"
    ORPHAN = "orphan, billed"
    ORPHAN_UNBILLED = "orphan, not billed"


@dataclass(frozen=True, slots=True)
class Ours:
    """One attempt of ours at that provider."""

    id: str
    request_id: str
    caller: str
    served_model: str
    state: str
    at_us: int
    ended_us: int | None
    reserved_nano_usd: int
    charged_nano_usd: int
    prompt_tokens: int | None
    completion_tokens: int | None
    estimated: bool
    usage_suspect: bool
    prompt_bytes: int

    @property
    def has_own_count(self) -> bool:
        """Whether its tokens are not the provider's word."""
        return self.prompt_tokens is None or self.estimated or self.usage_suspect


@dataclass(frozen=True, slots=True)
class Match:
    """An item and the call that it bills."""

    item: Item
    ours: Ours
    sureness: Sureness

    @property
    def difference(self) -> Difference | None:
        """What differs, if anything."""
        if self.ours.state == State.ORPHANED:
            return Difference.ORPHAN
        return Difference.AMOUNT if self.item.nano_usd != self.ours.charged_nano_usd else None


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """Every item and every call, once."""

    matches: tuple[Match, ...]
    unknown: tuple[Item, ...]
    duplicates: tuple[Item, ...]
    unbilled: tuple[Ours, ...]

    @property
    def billed_nano_usd(self) -> int:
        """What the statement comes to."""
        not_ours = (*self.unknown, *self.duplicates)
        return sum(each.item.nano_usd for each in self.matches) + sum(each.nano_usd for each in not_ours)

    @property
    def charged_nano_usd(self) -> int:
        """What we count for the same time."""
        return sum(each.ours.charged_nano_usd for each in self.matches) + sum(
            each.charged_nano_usd for each in self.unbilled
        )


def our_calls(connection: Connection, provider: str, since_us: int | None, until_us: int | None) -> list[Ours]:
    """Our attempts at `provider` that began in that time."""
    query = select(*(calls.c[name] for name in Ours.__dataclass_fields__)).where(calls.c.backend == provider)
    if since_us is not None:
        query = query.where(calls.c.hour >= since_us // 3_600_000_000, calls.c.at_us >= since_us)
    if until_us is not None:
        query = query.where(calls.c.hour <= until_us // 3_600_000_000, calls.c.at_us < until_us)
    return [Ours(*row) for row in connection.execute(query.order_by(calls.c.at_us, calls.c.id))]


def reconcile(
    items: Sequence[Item], ours: Sequence[Ours], *, since_us: int | None, until_us: int | None, slack_us: int = SLACK_US
) -> Reconciliation:
    """Which item bills which call; see the top of this file. Calls from before or after may be billed, but need not."""
    table = _Table(items, ours, slack_us)
    table.by_id()
    table.by_tokens()
    table.by_time()
    return Reconciliation(
        tuple(sorted(table.matches, key=lambda match: match.item.line)),
        tuple(sorted(table.items.values(), key=lambda item: item.line)),
        tuple(table.duplicates),
        tuple(
            each
            for each in table.ours.values()
            if each.state != State.RELEASED
            and each.charged_nano_usd > 0
            and (since_us is None or since_us <= each.at_us)
            and (until_us is None or each.at_us < until_us)
        ),
    )


def write(connection: Connection, found: Reconciliation) -> tuple[int, int]:
    """Keep what the provider billed, and settle orphans at it; how many of each. Guesses are left out.

    Written twice, it changes nothing more. To be called in a transaction.
    """
    sure = [match for match in found.matches if match.sureness is not Sureness.GUESS]
    for some in _batches(sure):
        connection.execute(_BILLED, [{"the_id": each.ours.id, "billed": each.item.nano_usd} for each in some])
    orphans = [match for match in sure if match.ours.state == State.ORPHANED]
    for some in _batches(orphans):
        connection.execute(
            _SETTLED,
            [
                {
                    "the_id": each.ours.id,
                    "charged": each.item.nano_usd,
                    "prompt": each.item.prompt_tokens,
                    "completion": each.item.completion_tokens,
                }
                for each in some
            ],
        )
    return len(sure), len(orphans)


_BILLED: Final = update(calls).where(calls.c.id == bindparam("the_id")).values(billed_nano_usd=bindparam("billed"))
_SETTLED: Final = (
    update(calls)
    .where(calls.c.id == bindparam("the_id"), calls.c.state == State.ORPHANED)
    .values(
        state=State.SETTLED,
        charged_nano_usd=bindparam("charged"),
        prompt_tokens=bindparam("prompt"),
        completion_tokens=bindparam("completion"),
    )
)


def _batches(matches: list[Match]) -> Iterable[list[Match]]:
    return (matches[at : at + 1000] for at in range(0, len(matches), 1000))


class _Table:
    """What is left to be matched."""

    def __init__(self, items: Sequence[Item], ours: Sequence[Ours], slack_us: int) -> None:
        self.items = {item.line: item for item in items}
        self.ours = {each.id: each for each in ours}
        self._request_of = {each.id: each.request_id for each in ours} | {
            each.request_id: each.request_id for each in ours
        }
        self.duplicates = self._without_duplicates()
        self.matches: list[Match] = []
        self._slack_us = slack_us
        names = sorted({each.served_model for each in ours}, key=len, reverse=True)
        # A statement may name the dated version of a model: gpt-4.1-2025-04-14.
        self._model = {
            model: next((name for name in names if model == name or model.startswith(f"{name}-")), None)
            for model in {item.model for item in items}
            if model is not None
        }

    def _without_duplicates(self) -> list[Item]:
        """Takes out items whose id was billed before. A request's own id may stand once per attempt of it."""
        attempts = Counter(each.request_id for each in self.ours.values() if each.state != State.RELEASED)
        seen: Counter[str] = Counter()
        duplicates = []
        for item in sorted(self.items.values(), key=lambda item: item.line):
            if item.id is None:
                continue
            seen[item.id] += 1
            if seen[item.id] > max(1, attempts[item.id]):
                duplicates.append(self.items.pop(item.line))
        return duplicates

    def by_id(self) -> None:
        requests: dict[str, list[Ours]] = defaultdict(list)
        for each in self.ours.values():
            requests[each.request_id].append(each)
        for item in list(self.items.values()):
            if item.id is None:
                continue
            known = self.ours.get(item.id)
            if known is None and len(left := requests.get(item.id, [])) == 1:
                known = self.ours.get(left[0].id)
            if known is not None:
                self._take(item, known, Sureness.ID)

    def by_tokens(self) -> None:
        def key_of_item(item: Item) -> Any:
            return (self._model.get(item.model or ""), item.prompt_tokens, item.completion_tokens)

        def key_of_ours(each: Ours) -> Any:
            return None if each.has_own_count else (each.served_model, each.prompt_tokens, each.completion_tokens)

        self._pair(key_of_item, key_of_ours, lambda item, each: True, lambda several: Sureness.LIKELY)

    def by_time(self) -> None:
        def can_be(item: Item, each: Ours) -> bool:
            return item.nano_usd <= each.reserved_nano_usd and (
                item.prompt_tokens is None or item.prompt_tokens <= each.prompt_bytes + _PROMPT_SLACK_TOKENS
            )

        def fits(item: Item, each: Ours) -> bool:
            return can_be(item, each) and (
                item.prompt_tokens is None or item.prompt_tokens * _MOST_BYTES_PER_TOKEN >= each.prompt_bytes
            )

        def key_of_item(item: Item) -> Any:
            return None if item.at_us is None else self._model.get(item.model or "")

        def key_of_ours(each: Ours) -> Any:
            return each.served_model if each.has_own_count else None

        self._pair(
            key_of_item,
            key_of_ours,
            fits,
            lambda several: Sureness.LIKELY if len({each.caller for each in several}) == 1 else Sureness.GUESS,
            alone=Sureness.LIKELY,
        )
        self._pair(key_of_item, key_of_ours, can_be, lambda several: Sureness.GUESS, alone=Sureness.GUESS)

    def _pair(
        self,
        key_of_item: Callable[[Item], Any],
        key_of_ours: Callable[[Ours], Any],
        fits: Callable[[Item, Ours], bool],
        among: Callable[[list[Ours]], Sureness],
        alone: Sureness = Sureness.SURE,
    ) -> None:
        candidates: dict[Any, list[Ours]] = defaultdict(list)
        for each in self.ours.values():
            if (key := key_of_ours(each)) is not None:
                candidates[key].append(each)
        for item in sorted(self.items.values(), key=lambda item: item.at_us or 0):
            here = candidates.get(key_of_item(item), [])
            able = [
                each for each in here if self._may_name(item, each) and self._in_time(item, each) and fits(item, each)
            ]
            if not able:
                continue
            left = [each for each in able if each.id in self.ours]
            if left:
                nearest = min(left, key=lambda each: self._apart_us(item, each))
                self._take(item, nearest, alone if len(able) == 1 else among(able))

    def _take(self, item: Item, each: Ours, sureness: Sureness) -> None:
        self.matches.append(Match(item, each, sureness))
        del self.items[item.line], self.ours[each.id]

    def _may_name(self, item: Item, each: Ours) -> bool:
        """An item with an id of ours is one of that request's attempts, and no other's."""
        return item.id is None or self._request_of.get(item.id, each.request_id) == each.request_id

    def _in_time(self, item: Item, each: Ours) -> bool:
        if item.at_us is None:
            return True
        until_us = each.at_us + LONGEST_US
        if each.ended_us is not None:
            until_us = min(until_us, each.ended_us)
        return each.at_us - self._slack_us <= item.at_us + item.within_us and item.at_us <= until_us + self._slack_us

    def _apart_us(self, item: Item, each: Ours) -> int:
        """Bills are dated at the end of a call, or at its beginning."""
        if item.at_us is None:
            return 0
        moments = (each.at_us, each.at_us if each.ended_us is None else each.ended_us)
        return min(abs(moment - min(max(moment, item.at_us), item.at_us + item.within_us)) for moment in moments)
