"""One decision as a line of the list, and all that is known of it."""

from __future__ import annotations

from typing import Final

from rich.text import Text

from node.dashboard.feed import DecisionRow
from node.dashboard.reasons import SENTENCES
from node.top.figures import NONE, clock, count, dollars, seconds, words
from node.top.glyphs import Glyphs
from node.top.lines import Column, columns_in, flow, row, said

COLUMNS: Final = (
    Column(head="ended at", width=8),
    Column(head="request", width=7),
    Column(head="model", width=12, from_width=96),
    Column(head="by", width=11),
    Column(head="why"),
    Column(head="queue", width=6, right=True, from_width=72),
    Column(head="TTFT of ms", width=11, right=True),
    Column(head="tokens", width=11, right=True, from_width=84),
    Column(head="price", width=10, right=True),
)
_SENTENCE_WIDTH: Final = 50
_ID_END: Final = 6
_PLACE: Final = {"local": "green", "cache": "cyan"}


def columns(width: int) -> list[tuple[int, Column, int]]:
    """What a list of `width` shows of each decision."""
    return columns_in(COLUMNS, width)


def as_line(each: DecisionRow, shown: list[tuple[int, Column, int]], glyphs: Glyphs) -> Text:
    """One line of the list. Request ids are alike at their beginnings, so it is their end that tells them apart."""
    room = next(width for _, column, width in shown if column.head == "why")
    cells = [
        said(clock(each.at_s)),
        said((f"{glyphs.more}{each.request_id[-_ID_END:]}", "dim")),
        said(each.model),
        said(who(each)),
        said((why(each, room), "" if each.ending == "done" else "yellow")),
        said(seconds(each.queue_s)),
        said(first_token(each)),
        said(tokens(each, glyphs)),
        said(dollars(each.cost_nano_usd)),
    ]
    return row(cells, shown, glyphs)


def details(each: DecisionRow, width: int, glyphs: Glyphs) -> list[Text]:
    """All that is known of one."""
    went = each.model if each.served_model in (None, each.model) else f"{each.model} {glyphs.arrow} {each.served_model}"
    sentence = reason_sentence(each)
    attempts = f", {each.attempts} attempts" if each.attempts != 1 else ""
    budget = f" of {seconds(each.ttft_budget_s)}" if each.ttft_budget_s else ""
    parts = [
        said((each.request_id, "bold")),
        said(("key ", "dim"), each.tenant),
        said(("model ", "dim"), went),
        said(("by ", "dim"), who(each)),
        said(f"{words(each.ending)} after {seconds(each.total_s)}{attempts}"),
        said(("why ", "dim"), f"{words(each.reason)}. {sentence}" if sentence else words(each.reason)),
    ]
    if each.pinned_by is not None:
        parts.append(said(("pinned by ", "dim"), each.pinned_by))
    if each.error_code is not None:
        parts.append(said(("error ", "dim"), (words(each.error_code), "red")))
    parts += [
        said(("queue ", "dim"), seconds(each.queue_s)),
        said(("predicted ", "dim"), seconds(each.predicted_ttft_s)),
        said(("first token ", "dim"), seconds(each.ttft_s), budget if each.ttft_s is not None else ""),
        said(("tokens ", "dim"), tokens(each, glyphs)),
        said(("price ", "dim"), dollars(each.cost_nano_usd)),
        said(("at list ", "dim"), dollars(each.reference_nano_usd)),
    ]
    return flow(parts, width)


def who(each: DecisionRow) -> tuple[str, str]:
    """Who answered, and a colour for it."""
    return ("nobody", "red") if each.backend is None else (each.backend, _PLACE.get(each.backend, "bright_blue"))


def why(each: DecisionRow, room: int) -> str:
    """The reason: in a sentence where there is room for one, else its name; how it ended, if that was not well."""
    code = each.reason or each.error_code
    said_why = words(code) if code is not None else ""
    if room >= _SENTENCE_WIDTH and (sentence := reason_sentence(each)):
        said_why = sentence
    if each.ending == "done":
        return said_why or NONE
    return f"{words(each.ending)}: {said_why}" if said_why else words(each.ending)


def reason_sentence(each: DecisionRow) -> str:
    """Why, in words; nothing for a reason that this program does not know."""
    return "" if each.reason is None else SENTENCES.get(each.reason, "")


def first_token(each: DecisionRow) -> tuple[str, str]:
    """First token against its budget, in ms, with a mark where it was late; what was not streamed has none."""
    if each.ttft_s is None:
        return NONE, "dim"
    late = bool(each.ttft_budget_s) and each.ttft_s > each.ttft_budget_s
    budget = f"/{1000 * each.ttft_budget_s:.0f}" if each.ttft_budget_s else ""
    return f"{1000 * each.ttft_s:.0f}{'!' if late else ''}{budget}", "yellow" if late else ""


def tokens(each: DecisionRow, glyphs: Glyphs) -> str:
    """In, and out."""
    if each.prompt_tokens is None and each.completion_tokens is None:
        return NONE
    return f"{count(each.prompt_tokens)} {glyphs.arrow} {count(each.completion_tokens)}".replace(" k", "k")
