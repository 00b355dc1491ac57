"""A comparison as one HTML page, light or dark as preferred: pictures are SVG inside it, nothing is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from node.simulate.comparing import BINS, HEADER, Comparison, Run, answered_share, facts, rows, usd

_WIDTH = 900
_LEFT, _RIGHT = 150, 20
_HUES = ("#2f6fb3", "#d9822b", "#3c8d5a", "#a3507f", "#7a6cc5", "#b0552f", "#4a8fa0", "#8a8a2e", "#6b6b6b", "#c04a5a")

_STYLE = """
:root{color-scheme:light dark;--back:#fff;--text:#1d2126;--soft:#5c6670;--line:#e1e5e9;--local:#4d8fcc;--cloud:#ee9440}
@media(prefers-color-scheme:dark){:root{--back:#15181c;--text:#e4e8ec;--soft:#98a3ae;--line:#2d343b;--local:#4f93d6;
--cloud:#e08c3c}}
body{margin:2rem auto;max-width:960px;padding:0 1rem;background:var(--back);color:var(--text);
font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.4rem;margin:0}h2{font-size:1.05rem;margin:2.2rem 0 .4rem}p{margin:.2rem 0;color:var(--soft)}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;white-space:nowrap}
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid var(--line)}th{color:var(--soft);font-weight:500}
th:first-child,td:first-child{text-align:left}svg{width:100%;height:auto;font:12px system-ui,sans-serif}
svg text{fill:var(--text)}svg .soft{fill:var(--soft)}svg .rule{stroke:var(--line)}
.local{fill:var(--local);background:var(--local)}.cloud{fill:var(--cloud);background:var(--cloud)}
i{display:inline-block;width:10px;height:10px}
""".strip()


def draw(comparison: Comparison) -> str:
    """The whole page."""
    title = f"{comparison.question.title} on {comparison.question.profile.name}"
    notes = "".join(f"<p>{escape(line)}</p>" for line in facts(comparison))
    return "\n".join(
        [
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>{notes}",
            _table(comparison),
            "<h2>Who answered, over time</h2><p>Requests per second by arrival: "
            '<i class="local"></i> local, <i class="cloud"></i> cloud</p>',
            _over_time(comparison),
            "<h2>Time to first token</h2><p>Share of all requests answered within; the dashed line is the promise</p>",
            _ttft(comparison),
            "<h2>Spend</h2>" + ("" if comparison.bound is None else "<p>Dashed: the least any router could have</p>"),
            _spend(comparison),
            "</body></html>\n",
        ]
    )


def _table(comparison: Comparison) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in HEADER)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows(comparison))
    return (
        '<h2>Side by side</h2><div class="scroll"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _svg(height: float, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(label, quote=True)}">'
        f"{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, said: str, *, anchor: str = "start", soft: bool = False) -> str:
    style = ' class="soft"' if soft else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(said)}</text>'


def _over_time(comparison: Comparison) -> str:
    """One stacked area per policy, all to the same scale."""
    trace, runs = comparison.question.trace, comparison.runs
    duration_s = trace[-1].arrival_s - trace[0].arrival_s
    most = max(1, *(here + away for run in runs for here, away in zip(run.local, run.cloud, strict=True)))
    row, high = 62, 50
    parts = []
    for number, run in enumerate(runs):
        floor = number * row + high + 6
        both = [here + away for here, away in zip(run.local, run.cloud, strict=True)]
        parts.append(_area("cloud", run, [0] * BINS, both, floor, high / most))
        parts.append(_area("local", run, [0] * BINS, list(run.local), floor, high / most))
        parts.append(f'<path class="rule" d="M{_LEFT} {floor}H{_WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 12, floor - high / 2 + 4, run.policy, anchor="end"))
    bottom = len(runs) * row + 22
    for step in range(5):
        at = _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / 4
        parts.append(_text(at, bottom, f"{duration_s * step / 4:,.0f} s", anchor="middle", soft=True))
    if duration_s > 0:
        parts.append(_text(_LEFT - 12, bottom, f"peak {most * BINS / duration_s:,.1f}/s", anchor="end", soft=True))
    return _svg(bottom + 8, "Requests answered locally and by the cloud over time, by policy", parts)


def _area(kind: str, run: Run, low: Sequence[int], high: Sequence[int], floor: float, scale: float) -> str:
    step = (_WIDTH - _LEFT - _RIGHT) / (BINS - 1)
    up = " ".join(f"{_LEFT + step * k:.1f},{floor - scale * value:.1f}" for k, value in enumerate(high))
    down = " ".join(f"{_LEFT + step * k:.1f},{floor - scale * low[k]:.1f}" for k in reversed(range(BINS)))
    return f'<polygon class="{kind}" points="{up} {down}"><title>{escape(run.policy)}: {kind}</title></polygon>'


def _ttft(comparison: Comparison) -> str:
    """Distributions on a logarithmic axis, from a thirtieth of the promise to ten times as long."""
    budget_s = comparison.question.promise.ttft_budget_s
    least, most = math.log10(budget_s / 30), math.log10(budget_s * 10)
    height, top, bottom = 300.0, 12.0, 34.0

    def x(seconds: float) -> float:
        share = (math.log10(max(seconds, 1e-9)) - least) / (most - least)
        return 50 + (_WIDTH - 50 - _RIGHT - 130) * min(1.0, max(0.0, share))

    def y(share: float) -> float:
        return height - bottom - (height - top - bottom) * share

    parts = []
    for percent in (0, 25, 50, 75, 100):
        parts.append(f'<path class="rule" d="M50 {y(percent / 100):.1f}H{x(10**most):.1f}"/>')
        parts.append(_text(42, y(percent / 100) + 4, f"{percent} %", anchor="end", soft=True))
    for factor in (0.1, 0.25, 0.5, 1, 2, 5, 10):
        at = x(budget_s * factor)
        parts.append(_text(at, height - 12, f"{budget_s * factor:.3g} s", anchor="middle", soft=True))
    at = x(budget_s)
    parts.append(f'<path d="M{at:.1f} {top}V{height - bottom}" stroke="var(--soft)" stroke-dasharray="4 3"/>')
    for number, run in enumerate(comparison.runs):
        hue = _HUES[number % len(_HUES)]
        answered, last = answered_share(run), max(1, len(run.ttft_curve_s) - 1)
        points = " ".join(
            f"{x(ttft_s):.1f},{y(answered * step / last):.1f}"
            for step, ttft_s in enumerate(run.ttft_curve_s)
            if ttft_s <= budget_s * 10
        )
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{hue}" stroke-width="{2.5 if number == 0 else 1.5}">'
            f"<title>{escape(run.policy)}</title></polyline>"
        )
        beside = _WIDTH - 130
        parts.append(f'<rect x="{beside}" y="{top + 20 * number}" width="12" height="12" fill="{hue}"/>')
        parts.append(_text(beside + 18, top + 20 * number + 11, run.policy))
    return _svg(max(height, top + 20 * len(comparison.runs) + 8), "Distribution of the time to first token", parts)


def _spend(comparison: Comparison) -> str:
    """A bar per policy, and the bound across them."""
    runs, bound = comparison.runs, comparison.bound
    most = max(1, *(run.outcome.spend_nano_usd for run in runs), 0 if bound is None else bound.spend_nano_usd)
    across = _WIDTH - _LEFT - _RIGHT - 90
    parts = []
    for number, run in enumerate(runs):
        top = number * 28 + 4
        width = across * run.outcome.spend_nano_usd / most
        parts.append(f'<rect class="cloud" x="{_LEFT}" y="{top}" width="{width:.1f}" height="18"/>')
        parts.append(_text(_LEFT - 12, top + 13, run.policy, anchor="end"))
        said = f"${usd(run.outcome.spend_nano_usd, comparison.most_nano_usd)}"
        parts.append(_text(_LEFT + width + 8, top + 13, said))
    height = len(runs) * 28 + 8
    if bound is not None:
        at = _LEFT + across * bound.spend_nano_usd / most
        parts.append(f'<path d="M{at:.1f} 0V{height}" stroke="var(--text)" stroke-dasharray="4 3"/>')
    return _svg(height, "What each policy spent", parts)
