"""The end of the day: tables, moments and promises, from what was seen. Pure."""

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from _harness.report import Bar, number, table
from _harness.stats import percentile

from _demo.books import Books
from _demo.screen import moment
from _demo.told import Change, End, Span, Told, engine_away, meanwhile, overflow
from node.dashboard.reasons import SENTENCES

_WIDTH = 110
_PLACES = ("local", "cloud", "cache", "nobody")


@dataclass(frozen=True)
class Seen:
    """All that a report is made from. Moments are seconds of the day; `engine` and `breakers` changed at them."""

    told: Sequence[Told]
    chapters: Mapping[str, tuple[float, float]]
    engine: Sequence[Change]
    breakers: Mapping[str, Sequence[Change]]
    books: Books
    lasted_s: float
    ended_early: bool
    broken: str | None = None

    def of(self, chapter: str) -> list[Told]:
        """The requests that were sent in it."""
        return [each for each in self.told if each.chapter == chapter]


def text(seen: Seen) -> str:
    """What is printed."""
    moments = "\n".join(textwrap.fill(line, _WIDTH, subsequent_indent="  ") for line in _moments(seen))
    parts = [_by_chapter(seen), _by_reason(seen), moments, _accounts(seen.books)]
    if seen.books.bills:
        parts[-1:] = [_bills(seen), *parts[-1:], _saved(seen.books)]
    return "\n\n".join(parts) + "\n"


def document(seen: Seen) -> dict[str, Any]:
    """The same for programs; money in nano-dollars, durations in seconds."""
    return {
        "lasted_s": seen.lasted_s,
        "ended_early": seen.ended_early,
        "broken": seen.broken,
        "chapters": [
            {
                "name": name,
                "from_s": from_s,
                "to_s": to_s,
                "answered_by": dict(Counter(each.where for each in seen.of(name))),
                "reasons": dict(Counter(each.reason or "none" for each in seen.of(name))),
                "ends": dict(Counter(each.end for each in seen.of(name))),
                "in_budget": _share_in_budget(seen.of(name)),
                "ttft_s": {
                    place: {f"p{q}": _ttft_s(seen.of(name), place, q) for q in (50, 95)} for place in ("local", "cloud")
                },
                "spent_nano_usd": sum(each.cost_nano_usd for each in seen.of(name)),
            }
            for name, (from_s, to_s) in seen.chapters.items()
        ],
        "overflow": [asdict(span) for span in overflow(seen.told)],
        "engine_away": [{**asdict(span), **_meanwhile(seen, span)} for span in engine_away(seen.engine, seen.lasted_s)],
        "breakers": {name: [asdict(change) for change in changes] for name, changes in seen.breakers.items()},
        "books": asdict(seen.books),
        "all_cloud_nano_usd": seen.books.all_cloud_nano_usd,
        "spent_nano_usd": seen.books.spent_nano_usd,
    }


def promises(seen: Seen) -> list[Bar]:
    """What has to hold whatever happened; of a day that was ended early, without what that alone may have caused.

    One that broke off is held to all but what the rest of it would have shown.
    """
    ends, books = Counter(each.end for each in seen.told), seen.books
    bars = [
        Bar("prompts that were to stay here, heard by a provider", books.stayed_heard, 0, "prompts", at_least=False),
        Bar("requests that hung, or were lost", ends[End.HUNG] + ends[End.LOST], 0, "requests", at_least=False),
        Bar("answers that broke off without a word", ends[End.SILENT], 0, "answers", at_least=False),
    ]
    if not seen.ended_early and seen.broken is None:
        bars.append(
            Bar("other prompts heard there, or nothing is proved", books.others_heard, 1, "prompts", at_least=True)
        )
    if not ends[End.CUT]:
        apart = books.apart_nano_usd
        bars.append(Bar("the ledger beside the clouds' own bills", apart, 0, "nano-dollars apart", at_least=False))
    return bars


_TELLING = ("cache", "local", "nobody", "cloud")


def examples(told: Sequence[Told], chapter: str) -> list[str]:
    """Up to two requests of the chapter that show what there was more of than in all before it, and why that was so."""
    of_it = [each for each in told if each.chapter == chapter and each.reason is not None and each.where != "cache"]
    before = Counter((each.where, each.reason) for each in told if each.chapter != chapter)
    kinds = Counter((each.where, each.reason) for each in of_it)
    new = [kind for kind, count in kinds.items() if count > before[kind]] or list(kinds)
    new.sort(key=lambda kind: (-_TELLING.index(kind[0]), -kinds[kind]))
    return [_example(next(each for each in reversed(of_it) if (each.where, each.reason) == kind)) for kind in new[:2]]


def _example(each: Told) -> str:
    went = f"answered by {each.backend}" if each.backend else f"refused with {each.status} {each.code}"
    first = "" if each.ttft_s is None else f", first token after {each.ttft_s:.2f} s of {each.budget_s:g} s"
    sentence = SENTENCES.get(each.reason or "", each.reason or "")
    return f"""      Why? …{(each.request_id or "")[-10:]} of {each.caller} was {went} ({each.reason}){first}.
           {sentence}"""


def _by_chapter(seen: Seen) -> str:
    rows = [_chapter_row(name, seen.of(name)) for name in seen.chapters]
    rows.append(_chapter_row("all", seen.told))
    header = ["chapter", "requests", *_PLACES, "in time", "local p50, p95 s", "cloud p50, p95 s", "spent $"]
    return table(header, rows)


def _chapter_row(name: str, members: Sequence[Told]) -> list[str]:
    counted, share = Counter(each.where for each in members), _share_in_budget(members)
    return [
        name,
        str(len(members)),
        *(str(counted[place]) for place in _PLACES),
        "-" if share is None else f"{share:.1%}",
        *(
            f"{number(_ttft_s(members, place, 50))}, {number(_ttft_s(members, place, 95))}"
            for place in ("local", "cloud")
        ),
        f"{sum(each.cost_nano_usd for each in members) / 1e9:.5f}",
    ]


def _share_in_budget(members: Iterable[Told]) -> float | None:
    """Of those that were answered."""
    answered = [each.in_budget for each in members if each.ttft_s is not None]
    return sum(answered) / len(answered) if answered else None


def _ttft_s(members: Iterable[Told], place: str, q: float) -> float | None:
    return percentile([each.ttft_s for each in members if each.where == place and each.ttft_s is not None], q)


def _by_reason(seen: Seen) -> str:
    """Who answered and why, by chapter."""
    names = list(seen.chapters)
    counted = Counter(
        (each.backend or "nobody", each.reason or each.code or each.end, each.chapter) for each in seen.told
    )
    kinds = Counter((each.backend or "nobody", each.reason or each.code or each.end) for each in seen.told)
    rows = [
        [f"{backend}: {reason}", *(str(counted[backend, reason, name] or "") for name in names), str(count)]
        for (backend, reason), count in sorted(kinds.items(), key=lambda kind: (_rank(kind[0][0]), -kind[1]))
    ]
    return table(["answered by: why", *names, "all"], rows)


def _rank(backend: str) -> int:
    return {"local": 0, "cache": 1, "nobody": 3}.get(backend, 2)


def _moments(seen: Seen) -> list[str]:
    lines = [
        f"Overflow open from {moment(span.from_s)} to {moment(span.to_s)}: {span.count} requests left because of load."
        for span in overflow(seen.told)
    ]
    for span in engine_away(seen.engine, seen.lasted_s):
        of_it, away_s = _meanwhile(seen, span), span.to_s - span.from_s
        lines.append(
            f"Engine away from {moment(span.from_s)} for {away_s:.1f} s. Of {of_it['requests']} requests open then "
            f"the cloud answered {of_it['cloud']}, the cache {of_it['cache']}, the next engine {of_it['waited']}; "
            f"{of_it['broken']} broke off and were told so, {of_it['refused']} were refused."
        )
    for name, changes in seen.breakers.items():
        opened = [moment(change.at_s) for change in changes if change.state == "open"]
        closed = [moment(change.at_s) for change in changes[1:] if change.state == "closed"]
        trips = next((each.trips for each in seen.books.accounts if each.provider == name), 0)
        if trips:
            lines.append(
                f"Breaker of {name}: {_times(trips)} open, first at {opened[0] if opened else '?'}"
                + (f", closed again at {closed[-1]}." if closed else ", and not closed again.")
            )
    return lines or ["Nothing overflowed, nothing failed."]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _meanwhile(seen: Seen, span: Span) -> dict[str, int]:
    """What became of those that were open while the engine was away."""
    of_it = meanwhile(seen.told, span)
    return {
        "requests": len(of_it),
        "cloud": sum(each.whole and each.where == "cloud" for each in of_it),
        "waited": sum(each.whole and each.where == "local" for each in of_it),
        "cache": sum(each.whole and each.where == "cache" for each in of_it),
        "broken": sum(each.end is End.BROKEN for each in of_it),
        "refused": sum(each.end is End.REFUSED for each in of_it),
    }


def _bills(seen: Seen) -> str:
    rows = []
    for each in seen.books.bills:
        members = [told for told in seen.told if told.caller == each.caller]
        left, share = sum(told.where == "cloud" for told in members), _share_in_budget(members)
        in_time = "-" if share is None else f"{share:.1%}"
        pinned = sum(told.pinned for told in members)
        rows.append(
            [
                each.caller,
                *(str(count) for count in (len(members), pinned, left)),
                in_time,
                *(_usd(nano_usd) for nano_usd in (each.spent_nano_usd, each.all_cloud_nano_usd)),
            ]
        )
    return table(["caller", "requests", "pinned", "to the cloud", "in time", "spent $", "all in the cloud $"], rows)


def _accounts(books: Books) -> str:
    rows = [
        [each.provider, str(each.calls), _usd(each.ledger_nano_usd), _usd(each.billed_nano_usd), str(each.trips)]
        for each in books.accounts
    ]
    return table(["provider", "calls billed", "the ledger says $", "its own bill says $", "breaker opened"], rows)


def _saved(books: Books) -> str:
    spent, whole = books.spent_nano_usd, books.all_cloud_nano_usd
    share = f", {1 - spent / whole:.0%} less" if whole > spent else ""
    return f"Spent ${_usd(spent)}; all of it in the cloud would have cost ${_usd(whole)}{share}."


def _usd(nano_usd: int | None) -> str:
    return "?" if nano_usd is None else f"{nano_usd / 1e9:.9f}"
