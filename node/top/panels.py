"""What there is to see, panel by panel, as lines of a given width."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from rich.text import Text

from node.dashboard.feed import BudgetWindow, Change, GpuNow, ModelNow, Now, Point, ProviderNow
from node.top import charts
from node.top.figures import (
    NONE,
    clock,
    count,
    dollars,
    duration,
    number,
    part_of,
    per_second,
    seconds,
    share,
    size,
    words,
)
from node.top.glyphs import Glyphs
from node.top.lines import Column, columns_in, fitted, flow, head, row, said, title
from node.top.seen import Seen

RECENT: Final = 10
"""How many seconds "now" is the mean of: requests come in ones and twos."""

PLACES: Final[tuple[tuple[str, str, Callable[[Point], float], bool], ...]] = (
    ("local", "green", lambda point: point.local_per_s, True),
    ("premises", "magenta", lambda point: point.premises_per_s, False),
    ("cloud", "bright_blue", lambda point: point.cloud_per_s, True),
    ("cache", "cyan", lambda point: point.cache_per_s, True),
    ("nobody", "red", lambda point: point.unserved_per_s, False),
)
"""Who answered: a name, a colour, the rate, and whether it has a line though there was none."""

_FIRST_TOKENS: Final[tuple[tuple[str, str, Callable[[Point], float | None]], ...]] = (
    ("predicted", "dim", lambda point: point.predicted_ttft_s),
    ("measured", "green", lambda point: point.measured_ttft_s),
    ("all, p50", "cyan", lambda point: point.ttft_p50_s),
    ("all, p95", "yellow", lambda point: point.ttft_p95_s),
)
_WINDOWS: Final = {"hour": "this hour", "day": "today, UTC", "month": "this month"}
_STATE_TONE: Final = {
    "ready": "green",
    "starting": "yellow",
    "suspect": "yellow",
    "asleep": "yellow",
    "down": "bold red",
    "given_up": "bold red",
    "closed": "green",
    "half_open": "yellow",
    "open": "bold red",
    "isolated": "bold red",
}
_STATES: Final = {"closed": "in use", "open": "away", "isolated": "left alone"}
_CAUSES: Final = {
    "upstream_fault": "it kept failing",
    "local_fault": "it could not be reached",
    "operator": "by the operator",
}
_PROVIDER_COLUMNS: Final = (
    Column(head="provider", width=14),
    Column(head="zone", width=8, from_width=84),
    Column(head="standing"),
    Column(head="busy", width=4, right=True),
    Column(head="p50", width=7, right=True),
    Column(head="p95", width=7, right=True),
    Column(head="p99", width=7, right=True, from_width=72),
    Column(head="counts on", width=9, right=True, from_width=102),
    Column(head="answers", width=7, right=True, from_width=92),
    Column(head="tokens", width=7, right=True, from_width=110),
    Column(head="spent", width=10, right=True),
)


def tiles(seen: Seen, now: Now, width: int, glyphs: Glyphs, *, notes: bool) -> list[Text]:
    """What an operator looks at first, side by side: names, values, and a line of notes."""
    recent = list(seen.points)[-RECENT:]
    answered_per_s = _mean(recent, lambda point: sum(value(point) for name, _, value, _ in PLACES if name != "nobody"))
    total = now.totals
    answered = total.local + total.premises + total.cloud + total.cache
    promised = sum(point.promises for point in seen.points)
    kept = part_of(sum(point.promises_kept for point in seen.points), promised)
    in_budget = kept if promised else part_of(total.promises_kept, total.promises)
    since = "last 5 min" if promised else "since the start" if total.promises else "no stream yet"
    left, of, tone = _left(now.budget)
    each = width // 6
    parts = (
        ("Answered", per_second(answered_per_s), f"{number(_mean(recent, _tokens))} tok/s", "bold"),
        (
            "Stayed here" if each > len("Stayed here") else "Stayed",
            share(part_of(answered - total.cloud, answered)),
            f"{count(answered - total.cloud)} of {count(answered)}",
            "bold",
        ),
        ("In budget", share(in_budget), since, "bold yellow" if kept is not None and kept < 0.95 else "bold"),
        ("Spent", dollars(total.spent_nano_usd), f"in {duration(now.uptime_s)}", "bold"),
        ("Saved", dollars(total.cloud_nano_usd - total.spent_nano_usd), f"of {dollars(total.cloud_nano_usd)}", "bold"),
        ("Budget left" if each > len("Budget left") else "Left", left, of or "no budget", tone),
    )
    lines = [
        _joined([(name, "dim") for name, _, _, _ in parts], each, glyphs),
        _joined([(value, style) for _, value, _, style in parts], each, glyphs),
    ]
    return [*lines, _joined([(note, "dim") for _, _, note, _ in parts], each, glyphs)] if notes else lines


def traffic(seen: Seen, width: int, glyphs: Glyphs, *, height: int = 0) -> list[Text]:
    """Requests per second by who answered; as a stack of `height` lines too, if that is more than none."""
    span = max(1, width - 26)
    filled = _filled(seen, span)
    shown = [(each, charts.means(filled, each[2])) for each in PLACES]
    shown = [(each, values) for each, values in shown if each[3] or any(values)]
    recent = list(seen.points)[-RECENT:]
    lines = []
    if height:
        wide = _filled(seen, width)
        stacked = [(charts.means(wide, value), colour) for (_, colour, value, _), _ in shown]
        piles = zip(*(values for values, _ in stacked), strict=True)
        most = charts.nice_most((sum(one or 0.0 for one in pile) for pile in piles), 1)
        lines += charts.stack(stacked, most, height, glyphs)
        note = f"last 5 min, to {number(most)}/s"
    else:
        note = "last 5 min"
    most = charts.nice_most((one for _, values in shown for one in values), 0.1)
    lines.append(said((f"{'':9}{'':{span}}{'now':>8}{'mean':>8}", "dim")))
    for (name, colour, value, _), values in shown:
        figures = f"{per_second(_mean(recent, value)):>8}{per_second(_mean(list(seen.points), value)):>8}"
        lines.append(said((f"{name:9}", colour), charts.line(values, most, glyphs, colour), figures))
    return [title("Requests answered", note, width, glyphs), *lines]


def first_tokens(seen: Seen, width: int, glyphs: Glyphs) -> list[Text]:
    """Time to first token: predicted and measured in the engine, and of all streams."""
    span = max(1, width - 28)
    filled = _filled(seen, span)
    shown = [(name, colour, value, charts.means(filled, value)) for name, colour, value in _FIRST_TOKENS]
    most = charts.nice_most((one for *_, values in shown for one in values), 0.01)
    lines = [said((f"{'':10}{'':{span}}{'latest':>9}{'highest':>9}", "dim"))]
    for name, colour, value, values in shown:
        known = [one for point in seen.points if (one := value(point)) is not None]
        latest, highest = (known[-1], max(known)) if known else (None, None)
        figures = f"{seconds(latest):>9}{seconds(highest):>9}"
        lines.append(said((f"{name:10}", colour), charts.log_line(values, most, glyphs, colour), figures))
    return [title("Time to first token", "last 5 min, log", width, glyphs), *lines]


def models(seen: Seen, now: Now, width: int, glyphs: Glyphs, *, changes: int = 0, minutes: bool = False) -> list[Text]:
    """Every model with its engine and queue.

    `changes`: how many of each engine's changes of state are listed; `minutes`: queue, running and KV cache as lines.
    """
    lines = [title("Models", "", width, glyphs)]
    for model in now.models:
        lines += flow(_model(model, glyphs), width, indent=2)
        if minutes:
            lines += _minutes(seen, model.name, width, glyphs)
        if model.engine is not None:
            lines += _changes(model.engine.changes, seen.at_s, width, glyphs, changes)
    return lines


def providers(seen: Seen, now: Now, width: int, glyphs: Glyphs, *, changes: int = 0) -> list[Text]:
    """Every provider: how it stands, how fast its first tokens come, what it cost.

    `changes`: how many of the times are listed at which each of them was left alone or used again.
    """
    top = title("Providers", "first tokens and spend since the start", width, glyphs)
    if not now.providers:
        return [top, said(("No provider is configured: nothing can leave this machine.", "dim"))]
    columns = columns_in(_PROVIDER_COLUMNS, width)
    lines = [top, head(columns, glyphs)]
    for each in now.providers:
        lines.append(row(_provider(each), columns, glyphs))
        if len(each.changes) > 1:
            lines += _changes(each.changes, seen.at_s, width, glyphs, changes)
    return lines


def reasons(seen: Seen, width: int, glyphs: Glyphs) -> list[Text]:
    """How many of the last minutes' requests were answered by whom and why, the most frequent first."""
    counts: Counter[tuple[str, str]] = Counter()
    for point in seen.points:
        for place, of in point.reasons.items():
            counts.update({(place, reason): number for reason, number in of.items()})
    colours = {name: colour for name, colour, _, _ in PLACES}
    parts = [
        said((f"{place} ", colours.get(place, "")), f"{words(reason)} ", (count(number), "bold"))
        for (place, reason), number in counts.most_common()
    ]
    lines = flow(parts, width) if parts else [said(("No request has ended.", "dim"))]
    return [title("Why", "requests of the last 5 min", width, glyphs), *lines]


def money(now: Now, width: int, glyphs: Glyphs) -> list[Text]:
    """What was spent and saved, and each window of the budget."""
    total = now.totals
    facts = [
        said(("spent ", "dim"), (dollars(total.spent_nano_usd), "bold")),
        said(("saved ", "dim"), (dollars(total.cloud_nano_usd - total.spent_nano_usd), "bold")),
        said(("all in the cloud ", "dim"), dollars(total.cloud_nano_usd)),
        said(("at list prices ", "dim"), dollars(total.reference_nano_usd)),
        said(("tokens ", "dim"), count(total.prompt_tokens), f" {glyphs.arrow} ", count(total.completion_tokens)),
    ]
    lines = [title("Money", "since the node started", width, glyphs), *flow(facts, width)]
    if now.ledger_down_because is not None:
        lines += flow([said(("ledger down: ", "bold red"), now.ledger_down_because)], width)
    if now.budget is None:
        return [*lines, said(("Budget not known: the ledger cannot be read.", "yellow"))]
    if not now.budget:
        return [*lines, said(("No budget is set (budget.hour_usd, day_usd, month_usd).", "dim"))]
    for each in now.budget:
        lines += flow(_window(each, glyphs), width, indent=2)
    return lines


def _mean(points: Sequence[Point], value: Callable[[Point], float]) -> float | None:
    """None where there is no point: then nothing is known, not even that there was no request."""
    return sum(value(point) for point in points) / len(points) if points else None


def _tokens(point: Point) -> float:
    return point.tokens_per_s


def _filled(seen: Seen, width: int) -> Sequence[charts.Column]:
    interval_s = 1.0 if seen.hello is None else seen.hello.interval_s
    return charts.columns(seen.points, width, seen.at_s or 0.0, interval_s)


def _joined(cells: Sequence[tuple[str, str]], width: int, glyphs: Glyphs) -> Text:
    return Text().join(fitted(said(cell), width - 1, glyphs) + Text(" ") for cell in cells)


def _left(budget: tuple[BudgetWindow, ...] | None) -> tuple[str, str, str]:
    """Of the tightest window: what is left, of what, and a style."""
    if budget is None:
        return NONE, "ledger unread", "bold yellow"
    if not budget:
        return NONE, "", "bold"
    tightest = min(budget, key=lambda each: each.limit_nano_usd - each.spent_nano_usd)
    left = max(0, tightest.limit_nano_usd - tightest.spent_nano_usd)
    return dollars(left), f"of {dollars(tightest.limit_nano_usd)}", f"bold {_tone(_used(tightest))}".strip()


def _used(window: BudgetWindow) -> float:
    return window.spent_nano_usd / window.limit_nano_usd if window.limit_nano_usd else 1.0


def _tone(used: float | None, warn: float = 0.7, bad: float = 0.9) -> str:
    return "" if used is None else "red" if used > bad else "yellow" if used > warn else ""


def _meter(name: str, used: float | None, value: str, glyphs: Glyphs, tone: str = "", width: int = 10) -> Text:
    return said((f"{name} ", "dim"), charts.bar(used, width, glyphs, tone or "green"), " ", (value, tone))


def _model(model: ModelNow, glyphs: Glyphs) -> list[Text]:
    engine = model.engine
    if engine is None:
        return [
            said((model.name, "bold"), "  ", ("no engine here", "dim")),
            said(("queue ", "dim"), count(model.queued)),
            said(("the cloud serves it", "dim")),
        ]
    state = "given_up" if engine.given_up else engine.state
    name = said((model.name, "bold"), "  ", (words(state), _STATE_TONE.get(state, "yellow")))
    parts = [
        said(name, (f" for {duration(engine.since_s)}", "dim")),
        said(("running ", "dim"), f"{count(engine.running)} of {count(engine.max_sequences)}"),
        said(("waiting ", "dim"), count(engine.waiting)),
        said(("queue ", "dim"), count(model.queued)),
        _meter(
            "KV", engine.kv_cache_usage, share(engine.kv_cache_usage), glyphs, _tone(engine.kv_cache_usage, 0.85, 0.95)
        ),
        said(("per token ", "dim"), seconds(engine.tpot_s)),
    ]
    if engine.deaths or engine.hangs:
        hung = f", {engine.hangs} hung" if engine.hangs else ""
        parts.append(said(("failures ", "dim"), (f"{engine.deaths}{hung}", "yellow")))
    if engine.rebuild_in_s is not None:
        parts.append(said(f"started anew in {duration(engine.rebuild_in_s)}"))
    if engine.why is not None and state in ("down", "given_up", "suspect"):
        parts.append(said((engine.why, "red")))
    return parts


def _minutes(seen: Seen, model: str, width: int, glyphs: Glyphs) -> list[Text]:
    """The last minutes of one model. What its engine does is not known while there is none."""
    filled = _filled(seen, max(1, width - 30))

    def queued(point: Point) -> float | None:
        return point.models[model].queued if model in point.models else None

    def running(point: Point) -> float | None:
        return point.models[model].running if model in point.models else None

    def kv(point: Point) -> float | None:
        return point.models[model].kv_cache_usage if model in point.models else None

    kinds: tuple[tuple[str, str, Callable[[Point], float | None], Callable[[float | None], str], float], ...] = (
        ("queue", "yellow", queued, number, 4),
        ("running", "green", running, number, 4),
        ("KV cache", "cyan", kv, share, 1),
    )
    lines = []
    for name, colour, value, form, least in kinds:
        values = charts.means(filled, value)
        known = [one for point in seen.points if (one := value(point)) is not None]
        if not known:
            continue  # no engine here
        most = charts.nice_most(values, least)
        highest = f"{form(max(known)):>9}"
        lines.append(
            said((f"  {name:10}", colour), charts.line(values, most, glyphs, colour), highest, (" highest", "dim"))
        )
    return lines


def _changes(changes: Sequence[Change], now_s: float | None, width: int, glyphs: Glyphs, most: int) -> list[Text]:
    """The newest first, each with how long it lasted."""
    lines = []
    ends_s = [*(each.at_s for each in changes[1:]), now_s]
    for change, end_s in [*zip(changes, ends_s, strict=True)][::-1][:most]:
        why = said(": ", _CAUSES.get(change.why, change.why)) if change.why is not None else Text()
        name = (_STATES.get(change.state, words(change.state)), _STATE_TONE.get(change.state, "yellow"))
        lasted = "" if end_s is None else f" for {duration(end_s - change.at_s)}"
        lines.append(fitted(said("  ", (clock(change.at_s), "dim"), " ", name, (lasted, "dim"), why), width, glyphs))
    return lines


def gpus(now: Now, width: int, glyphs: Glyphs) -> list[Text]:
    """The GPUs, or why there are none; they go below the models."""
    if now.gpus is None:
        return [fitted(said(("GPU not known  ", "yellow"), (now.no_gpu_because or "", "dim")), width, glyphs)]
    if not now.gpus:
        return [fitted(said("no GPU  ", (now.no_gpu_because or "", "dim")), width, glyphs)]
    return [line for each in now.gpus for line in flow(_gpu(each, glyphs), width, indent=2)]


def _gpu(gpu: GpuNow, glyphs: Glyphs) -> list[Text]:
    name = said((f"GPU {gpu.index} ", "bold"), gpu.name or "")
    if gpu.problem is not None:
        return [name, said((gpu.problem, "red"))]
    total, used = gpu.vram_total_bytes, gpu.vram_used_bytes
    part = part_of(used, total) if used is not None and total is not None else None
    unit = "" if total is None else size(total)[-len(" GiB") :]  # said once, if both have it
    parts = [name, _meter("VRAM", part, f"{size(used).removesuffix(unit)} of {size(total)}", glyphs)]
    busy = [
        None if gpu.utilisation is None else f"{share(gpu.utilisation)} busy",
        None if gpu.temperature_c is None else f"{gpu.temperature_c} C",
        None if gpu.power_w is None else f"{gpu.power_w:.0f} W",
    ]
    return [*parts, *(said(each) for each in busy if each is not None)]


def standing(provider: ProviderNow) -> tuple[str, str]:
    """How a provider stands, for how long already, when it is tried again, and a style for all that."""
    since = "" if provider.not_closed_for_s is None else f" {duration(provider.not_closed_for_s)}"
    if provider.isolated_by is not None:
        return f"left alone{since}, {_CAUSES.get(provider.isolated_by, words(provider.isolated_by))}", "bold red"
    if provider.breaker != "closed":
        again = f"try in {seconds(provider.tried_in_s)}" if provider.tried_in_s else "trying"
        cause = f", {_CAUSES.get(provider.opened_by, words(provider.opened_by))}" if provider.opened_by else ""
        return f"{words(provider.breaker)}{since}, {again}{cause}", _STATE_TONE.get(provider.breaker, "yellow")
    if provider.paused_s > 0:
        return f"paused for {seconds(provider.paused_s)}", "yellow"
    return "breaker closed", "green"


def _provider(each: ProviderNow) -> list[Text]:
    return [
        said((each.name, "bold")),
        said(("emulator", "yellow") if each.emulated else each.zone),
        said(standing(each)),
        said(count(each.in_flight)),
        said(seconds(each.ttft_p50_s)),
        said(seconds(each.ttft_p95_s)),
        said(seconds(each.ttft_p99_s)),
        said(seconds(each.counted_on_s)),
        said(count(each.requests)),
        said(count(each.prompt_tokens + each.completion_tokens)),
        said(dollars(each.spent_nano_usd)),
    ]


def _window(each: BudgetWindow, glyphs: Glyphs) -> list[Text]:
    used = _used(each)
    left = max(0, each.limit_nano_usd - each.spent_nano_usd)
    name = f"{_WINDOWS.get(each.window, each.window):10}"
    return [
        _meter(name, used, f"{dollars(left)} left of {dollars(each.limit_nano_usd)}", glyphs, _tone(used)),
        said((f"ends in {duration(each.ends_in_s)}", "dim")),
    ]
