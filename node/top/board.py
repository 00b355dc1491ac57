"""Which panels are on the screen, where, and what stands there while there are no figures."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from rich.text import Text

from node.dashboard.feed import Now
from node.routing.values import Zone
from node.top import panels
from node.top.figures import clock, count, duration
from node.top.glyphs import Glyphs
from node.top.lines import beside, fitted, flow, halves, said, title, wrapped
from node.top.seen import Kind, Seen, Trouble

LEAST_WIDTH: Final = 60
LEAST_HEIGHT: Final = 16
_WIDE: Final = 116
_TALL: Final = 36
_EVERY_CHANGE: Final = 100
_TROUBLE: Final = {
    Kind.LOCKED: "locked",
    Kind.BUSY: "no place",
    Kind.FOREIGN: "no node",
    Kind.VERSION: "another version",
}

KEYS: Final = (
    ("1 2 3 4", "overview; models and their history; providers and money; decisions"),
    ("up down", "another decision (page up, page down, home, end); scrolls views 2, 3"),
    ("enter", "all of the decision under the cursor, or less of it"),
    ("/", "filter: who=local why=last_moment ended=failed, or part of a text"),
    ("w", "only what the next one answered; esc: no filter"),
    ("space", "hold everything still, and go on"),
    ("r", "try to connect at once"),
    ("q", "leave; so does Ctrl-C"),
)


class View(IntEnum):
    """What the screen is given to, by the key that shows it."""

    OVERVIEW = 1
    MODELS = 2
    PROVIDERS = 3
    DECISIONS = 4


def heading(seen: Seen, width: int, glyphs: Glyphs, *, held: Seen | None, waits_s: float | None) -> Text:
    """The first line: which node, and how the feed stands.

    `held` is what the screen is held at: only what became of the feed is told as it is. `waits_s`: until the next try
    to connect.
    """
    figures = held or seen
    place = figures.url.partition("://")[2]
    parts = [said(("Spillway", "bold"), f" {figures.hello.node}" if figures.hello else ""), said(place)]
    if figures.now is not None:
        parts.append(said(f"up {duration(figures.now.uptime_s)}"))
        parts.append(said(f"{count(figures.now.inside)} inside"))
    left = Text(f" {glyphs.dot} ").join(parts)
    right = said(_standing(seen, held, waits_s))
    return said(fitted(left, max(0, width - right.cell_len - 1), glyphs), " ", right)


def _standing(seen: Seen, held: Seen | None, waits_s: float | None) -> tuple[str, str]:
    if seen.trouble is not None:
        again = "trying again" if waits_s is None or waits_s < 1 else f"again in {waits_s:.0f} s"
        gone = "no node" if seen.hello is None else f"gone since {clock(seen.at_s)}"
        return f"{_TROUBLE.get(seen.trouble.kind, gone)}, {again}", "bold red"
    if seen.hello is None:
        return "connecting", "yellow"
    if held is not None:
        return f"held at {clock(held.at_s)}", "bold yellow"
    return f"live {clock(seen.at_s)}", "green"


def notices(seen: Seen, width: int, *, held: Seen | None) -> list[Text]:
    """What has to be said above the figures, which are those of `held` if the screen is held."""
    figures = held or seen
    said_: list[tuple[str, str]] = []
    if seen.trouble is not None:
        said_.append((f"{seen.trouble.said} These figures are of {clock(figures.at_s)}.", "bold red"))
    elif figures.now is not None:
        said_ += _of_now(figures.now)
    if figures.now is not None and (pretended := _emulated(figures.now)):
        said_.append((pretended, "dim"))
    return [line for text, style in said_ for line in wrapped(text, width, style)]


def _emulated(now: Now) -> str | None:
    clouds = [each for each in now.providers if each.zone == Zone.CLOUD]
    names = [each.name for each in clouds if each.emulated]
    if not names:
        return None
    who = "The cloud is an emulator" if len(names) == len(clouds) else f"Emulated is {', '.join(names)},"
    return f"{who} on this machine: its answers and its bill are made up."


def _of_now(now: Now) -> list[tuple[str, str]]:
    found = []
    if now.draining:
        found.append((f"The node is shutting down: {now.inside} requests are still being answered.", "bold yellow"))
    elif not now.ready:
        found.append(
            ("Not ready: an engine starts for the first time, or is away with no provider in its place.", "bold yellow")
        )
    if now.strain != "calm":
        found.append((f"The machine is {now.strain}: the node holds fewer requests.", "bold yellow"))
    if now.ledger_down_because is not None:
        found.append((f"Nothing that costs leaves: {now.ledger_down_because}", "bold red"))
    return found


def board(seen: Seen, now: Now, view: View, width: int, height: int, glyphs: Glyphs) -> list[Text]:
    """All panels of a view but the decisions."""
    if view is View.MODELS:
        every = panels.models(seen, now, width, glyphs, changes=_EVERY_CHANGE, minutes=True)
        return every + panels.gpus(now, width, glyphs)
    if view is View.PROVIDERS:
        return [
            *panels.providers(seen, now, width, glyphs, changes=_EVERY_CHANGE),
            *panels.money(now, width, glyphs),
        ]
    if view is View.DECISIONS:
        return panels.reasons(seen, width, glyphs)
    tall = height >= _TALL
    chart = 6 if tall else 0
    left, right = halves(width)
    lines = panels.tiles(seen, now, width, glyphs, notes=tall)
    if width >= _WIDE:
        busy = [
            *panels.traffic(seen, left, glyphs, height=chart),
            *panels.models(seen, now, left, glyphs, changes=4 if tall else 2),
            *panels.gpus(now, left, glyphs),
        ]
        rest = [
            *panels.first_tokens(seen, right, glyphs),
            *panels.providers(seen, now, right, glyphs),
            *panels.money(now, right, glyphs),
        ]
        return lines + beside(busy, rest, width, glyphs)
    if not tall:
        charts = beside(panels.traffic(seen, left, glyphs), panels.first_tokens(seen, right, glyphs), width, glyphs)
        gpus = panels.gpus(now, width, glyphs) if now.gpus else []  # that there are none is told where there is room
        here = panels.models(seen, now, width, glyphs) + gpus
        return [*lines, *charts, *here, *panels.providers(seen, now, width, glyphs)]
    lines += panels.traffic(seen, width, glyphs, height=chart) + panels.first_tokens(seen, width, glyphs)
    lines += panels.models(seen, now, width, glyphs, changes=2) + panels.gpus(now, width, glyphs)
    return lines + panels.providers(seen, now, width, glyphs) + panels.money(now, width, glyphs)


def message(seen: Seen, width: int, glyphs: Glyphs) -> list[Text]:
    """What stands in the place of figures that there are none of."""
    trouble = seen.trouble or Trouble(
        kind=Kind.ABSENT,
        said=f"Connecting to {seen.url}",
        advice=("A node that is busy starting answers in a moment.",),
    )
    lines = [Text(), *wrapped(trouble.said, width, "bold"), Text()]
    for each in trouble.advice:
        lines += flow([Text(word) for word in f"{glyphs.dot} {each}".split(" ")], width, between=" ", indent=2)
    return lines


def keys(width: int, glyphs: Glyphs) -> list[Text]:
    """The help."""
    lines = [title("Keys", "? or esc: back", width, glyphs)]
    for key, does in KEYS:
        lines += flow([said((f"{key:9}", "bold")), *map(Text, does.split())], width, between=" ", indent=10)
    lines += [
        Text(),
        title("What is meant", "", width, glyphs),
        *wrapped(
            "Requests count in the second in which they end, by who answered: this node's engine (local), a provider "
            "on the premises, one in the cloud, the answer cache, nobody (refused, failed, or left).",
            width,
        ),
        *wrapped(
            "Time to first token counts from arrival. Predicted and measured: the engine's answers; p50 and p95: of "
            "all streamed answers of a second. In budget: streams that began within theirs.",
            width,
        ),
        *wrapped(
            "Saved: what the same tokens cost at each model's first cloud equivalent, less what was spent. What is "
            "reserved counts as spent of a budget. A dash: not known. An exclamation mark: late.",
            width,
        ),
    ]
    return lines


def too_small(width: int, height: int) -> list[Text]:
    """What a terminal says that nothing fits in."""
    return wrapped(f"This terminal is {width}x{height}; {LEAST_WIDTH}x{LEAST_HEIGHT} are needed. q leaves.", width)
