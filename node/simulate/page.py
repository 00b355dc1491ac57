"""A comparison as one HTML page, light or dark as preferred: pictures are SVG inside it, nothing is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from node.simulate.comparing import BINS, HEADER, Comparison, Run, answered_share, facts, rows, share_at, usd

_WIDTH = 720
_LABEL = 26  # a line of text in a picture, as high as it is on a small screen
_HUES = ("#2f75bd", "#c87420", "#3c8d5a", "#b0508a", "#7a6cc5", "#a5623a", "#2f8fa3", "#cf4a4a", "#808080", "#85852e")
_DASHES = ("none", "7 3", "2 3", "9 3 2 3")  # one line upon another is seen through it; hues alone are not for everyone

_STYLE = """
:root{color-scheme:light dark;--back:#fff;--text:#1d2126;--soft:#5c6670;--line:#e1e5e9;--local:#4d8fcc;--cloud:#d97b24;
--shade:#1d212640}
@media(prefers-color-scheme:dark){:root{--back:#15181c;--text:#e4e8ec;--soft:#98a3ae;--line:#2d343b;--local:#4f93d6;
--cloud:#e08c3c;--shade:#000}}
body{margin:2rem auto;max-width:960px;padding:0 1rem;background:var(--back);color:var(--text);
font:15px/1.5 system-ui,sans-serif;overflow-wrap:break-word}
h1{font-size:1.4rem;margin:0}h2{font-size:1.05rem;margin:2.2rem 0 .4rem}p,figcaption{margin:.2rem 0 .6rem;
color:var(--soft)}figure{margin:0}
.scroll{overflow-x:auto;margin-bottom:.6rem;background:linear-gradient(to left,var(--back) 50%,transparent)
right/40px 100% no-repeat local,linear-gradient(to left,var(--shade),transparent) right/14px 100% no-repeat}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;white-space:nowrap;width:100%}
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid var(--line);font-weight:400}
thead th{color:var(--soft);font-weight:500}
th:first-child{text-align:left;padding-left:0;position:sticky;left:0;background:var(--back)}
svg{display:block;width:100%;height:auto;font:11px system-ui,sans-serif}
svg text{fill:var(--text)}svg .soft{fill:var(--soft)}svg .rule{stroke:var(--line)}
svg .mark{stroke:var(--text);stroke-width:2}svg .promise{stroke:var(--soft);stroke-dasharray:4 3}
polyline,.key path{fill:none;stroke-width:2px;vector-effect:non-scaling-stroke}
.local{fill:var(--local);background:var(--local)}.cloud{fill:var(--cloud);background:var(--cloud)}
i{display:inline-block;width:10px;height:10px}
.key{color:var(--text);white-space:nowrap}.keys .key{margin-right:1rem}
.key svg{display:inline-block;width:26px;height:10px;margin-right:.3rem}
@media(max-width:600px){svg{font-size:22px}th,td{padding:.25rem .5rem}}
""".strip()

_COLUMNS = (
    "In budget: had their first token as promised, of those that may leave; pinned in: of those that may not. "
    "Cloud: sent away, of all. X bound: spend over the least any router could have spent. P50, p95, p99: time to first "
    "token of all, from arrival. Engine busy: of the time until the last answer."
)


def draw(comparison: Comparison) -> str:
    """The whole page."""
    title = f"{comparison.question.title} on {comparison.question.profile.name}"
    notes = "".join(f"<p>{escape(line)}</p>" for line in facts(comparison))
    return "\n".join(
        [
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>",
            f"<h1>{escape(title)}</h1>{notes}",
            _table(comparison),
            "<h2>Who answered, over time</h2>",
            _over_time(comparison),
            "<h2>Time to first token</h2>",
            _ttft(comparison),
            "<h2>Spend</h2>",
            _spend(comparison),
            "</main></body></html>\n",
        ]
    )


def _table(comparison: Comparison) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in HEADER)
    body = "".join(
        f'<tr><th scope="row">{escape(policy)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for policy, *cells in rows(comparison)
    )
    return (
        '<h2 id="table">Side by side</h2><div class="scroll" tabindex="0" role="region" aria-labelledby="table">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div><p>{_COLUMNS}</p>"
    )


def _figure(caption: str, height: float, said: Sequence[str], parts: Sequence[str]) -> str:
    """A picture below its `caption` (HTML). `said` is what it shows, a text per policy, for whoever cannot see it."""
    return (
        f"<figure><figcaption>{caption}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape("; ".join(said), quote=True)}">'
        f"{''.join(parts)}</svg></figure>"
    )


def _text(x: float, y: float, said: str, *, anchor: str = "start", soft: bool = False, centred: bool = False) -> str:
    style = (' class="soft"' if soft else "") + (' dy=".35em"' if centred else "")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(said)}</text>'


def _over_time(comparison: Comparison) -> str:
    """One stacked area per policy, all to the same scale."""
    trace, runs = comparison.question.trace, comparison.runs
    duration_s = trace[-1].arrival_s - trace[0].arrival_s
    most = max(1, *(here + away for run in runs for here, away in zip(run.local, run.cloud, strict=True)))
    row, high = _LABEL + 52, 46
    parts, said = [], []
    for number, run in enumerate(runs):
        floor = (number + 1) * row
        both = [here + away for here, away in zip(run.local, run.cloud, strict=True)]
        parts.append(_area("cloud", run, both, floor, high / most))
        parts.append(_area("local", run, run.local, floor, high / most))
        parts.append(f'<path class="rule" d="M0 {floor}H{_WIDTH}"/>')
        parts.append(_text(0, floor - high - 8, run.policy))
        said.append(f"{run.policy}: {sum(run.local):,} local, {sum(run.cloud):,} cloud")
    bottom = len(runs) * row + _LABEL
    peak = ""
    if duration_s > 0:
        peak = f"; {most * BINS / duration_s:,.1f} at the highest peak"
        for step, anchor in enumerate(("start", "middle", "middle", "middle", "end")):
            at_s = duration_s * step / 4
            parts.append(
                _text(_WIDTH * step / 4, bottom, f"{at_s:,.{_decimals(duration_s)}f} s", anchor=anchor, soft=True)
            )
    else:
        parts.append(_text(0, bottom, "all at once", soft=True))
    caption = f"Requests per second, by arrival: {_key('local')}, {_key('cloud')}{peak}"
    return _figure(caption, bottom + 8, said, parts)


def _key(kind: str) -> str:
    return f'<span class="key"><i class="{kind}"></i> {kind}</span>'


def _decimals(duration_s: float) -> int:
    """How many a time axis that long needs for its quarters to differ."""
    return 0 if duration_s >= 8 else 2


def _area(kind: str, run: Run, counts: Sequence[int], floor: float, scale: float) -> str:
    wide = _WIDTH / BINS
    outline = " ".join(
        f"{wide * place:.1f},{floor - scale * count:.1f}" for k, count in enumerate(counts) for place in (k, k + 1)
    )
    return (
        f'<polygon class="{kind}" points="0,{floor} {outline} {_WIDTH},{floor}">'
        f"<title>{escape(run.policy)}: {kind}</title></polygon>"
    )


def _ttft(comparison: Comparison) -> str:
    """Distributions on a logarithmic axis, from a thirtieth of the promise to ten times as long."""
    budget_s = comparison.question.promise.ttft_budget_s
    least, most = math.log10(budget_s / 30), math.log10(budget_s * 10)
    left, right, top, bottom = 76.0, _WIDTH - 34.0, _LABEL + 8.0, 310.0

    def x(seconds: float) -> float:
        share = (math.log10(max(seconds, 1e-9)) - least) / (most - least)
        return left + (right - left) * min(1.0, max(0.0, share))

    def y(share: float) -> float:
        return bottom - (bottom - top) * share

    parts, said, keys = [], [], []
    for percent in (0, 25, 50, 75, 100):
        parts.append(f'<path class="rule" d="M{left} {y(percent / 100):.1f}H{right}"/>')
        parts.append(_text(left - 8, y(percent / 100), f"{percent} %", anchor="end", soft=True, centred=True))
    for factor in (0.1, 0.3, 1, 3, 10):
        parts.append(
            _text(x(budget_s * factor), bottom + _LABEL, _seconds(budget_s * factor), anchor="middle", soft=True)
        )
    parts.append(f'<path class="promise" d="M{x(budget_s):.1f} {top - 6}V{bottom}"/>')
    parts.append(_text(x(budget_s), top - 12, "promise", anchor="middle", soft=True))
    for number, run in enumerate(comparison.runs):
        line = f'stroke="{_HUES[number % len(_HUES)]}" stroke-dasharray="{_DASHES[number % len(_DASHES)]}"'
        answered, last = answered_share(run), max(1, len(run.ttft_curve_s) - 1)
        curve = [
            (x(ttft_s), y(answered * step / last))
            for step, ttft_s in enumerate(run.ttft_curve_s)
            if ttft_s <= budget_s * 10
        ]
        if len(run.ttft_curve_s) > 0:
            curve.append((right, curve[-1][1] if curve else y(0)))
        points = " ".join(f"{across:.1f},{up:.1f}" for across, up in curve)
        parts.append(f'<polyline points="{points}" {line}><title>{escape(run.policy)}</title></polyline>')
        swatch = f'<svg viewBox="0 0 26 10" aria-hidden="true"><path d="M0 5H26" {line}/></svg>'
        keys.append(f'<span class="key">{swatch}{escape(run.policy)}</span> ')
        said.append(f"{run.policy}: {math.floor(100 * share_at(run, budget_s))} % within {_seconds(budget_s)}")
    caption = "Share of all requests, pinned ones too, that have their first token within this time"
    return _figure(f'{caption}<div class="keys">{"".join(keys)}</div>', bottom + _LABEL + 12, said, parts)


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s"


def _spend(comparison: Comparison) -> str:
    """A bar per policy, and the bound across each."""
    runs, bound = comparison.runs, comparison.bound
    most = max(comparison.most_nano_usd, 0 if bound is None else bound.spend_nano_usd)
    if most == 0:
        return "<p>Nothing was spent.</p>"
    row, high = _LABEL + 22, 14
    parts, said = [], []
    for number, run in enumerate(runs):
        top = number * row + _LABEL
        spent = f"{run.policy}: ${usd(run.outcome.spend_nano_usd, comparison.most_nano_usd)}"
        width = _WIDTH * run.outcome.spend_nano_usd / most
        parts.append(f'<path class="rule" d="M0 {top + high}H{_WIDTH}"/>')
        parts.append(f'<rect class="cloud" x="0" y="{top}" width="{width:.1f}" height="{high}"/>')
        parts.append(_text(0, top - 7, spent))
        said.append(spent)
        if bound is not None:
            at = min(_WIDTH - 1.0, max(1.0, _WIDTH * bound.spend_nano_usd / most))
            parts.append(f'<path class="mark" d="M{at:.1f} {top - 3}V{top + high + 3}"/>')
    caption = "What the cloud was paid"
    if bound is not None:
        caption += f"; the mark: the least any router could have spent, ${usd(bound.spend_nano_usd, most)}"
    return _figure(caption, len(runs) * row + 4, said, parts)
