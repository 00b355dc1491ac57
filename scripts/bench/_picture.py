"""Draw a measured burst: first tokens per second over time, by who answered, beside what arrives.

Reads what `burst --json` wrote.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from _svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, picture, text

STEP_S = 0.05
Row = dict[str, Any]

LAYERS: tuple[tuple[str, str, Callable[[Row], bool]], ...] = (
    ("local, pinned", "#1f5fa8", lambda row: row["backend"] == "local" and row["pinned"]),
    ("local", "#5b9bd5", lambda row: row["backend"] == "local" and not row["pinned"]),
    ("cloud", "#f2994a", lambda row: row["backend"] not in ("local", None)),
)
ARRIVING = "arriving"
WINDOW_S = 0.5


def per_s(times_s: Sequence[float], at_s: float) -> float:
    """How many of these fall into the window around `at_s`, per second."""
    return sum(1 for each in times_s if abs(each - at_s) <= WINDOW_S / 2) / WINDOW_S


def draw(document: dict[str, Any]) -> str:
    rows = [row for row in document["timeline"] if row["burst"] == 0 and row["first_token_s"] and row["end_s"]]
    end_s = max(row["first_token_s"] for row in rows)
    times = [index * STEP_S for index in range(int(end_s / STEP_S) + 8)]
    series = [
        (name, colour, [per_s([row["first_token_s"] for row in rows if picks(row)], at) for at in times])
        for name, colour, picks in LAYERS
    ]
    arriving = [per_s([row["arrival_s"] for row in rows], at) for at in times]
    top = max(*arriving, *(sum(values[i] for _, _, values in series) for i in range(len(times))))
    top = (int(top) // 20 + 1) * 20

    def x(at_s: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * at_s / times[-1]

    def y(count: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * count / top

    parts = []
    for tick in range(0, top + 1, 20):
        parts.append(f'<path class="rule" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(text(LEFT - 8, y(tick) + 4, str(tick), anchor="end"))
    below = [0.0] * len(times)
    for name, colour, values in series:
        above = [base + value for base, value in zip(below, values, strict=True)]
        up = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in zip(times, above, strict=True))
        down = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in reversed(list(zip(times, below, strict=True))))
        parts.append(f'<polygon points="{up} {down}" fill="{colour}"><title>{name}</title></polygon>')
        below = above
    line = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in zip(times, arriving, strict=True))
    parts.append(f'<polyline class="line" points="{line}" fill="none" stroke-dasharray="5 3"/>')
    for tick in range(int(times[-1]) + 1):
        parts.append(text(x(tick), HEIGHT - BOTTOM + 18, f"{tick} s", anchor="middle"))
    at = float(LEFT)
    for name, colour, _ in LAYERS:
        parts.append(f'<rect x="{at}" y="16" width="12" height="12" fill="{colour}"/>')
        parts.append(text(at + 18, 27, name, kind="text"))
        at += 40 + 7.2 * len(name)
    parts.append(f'<path class="line" d="M{at} 22h14" stroke-dasharray="5 3"/>')
    parts.append(text(at + 18, 27, ARRIVING, kind="text"))
    parts.append(text(LEFT, HEIGHT - 8, f"requests per second; {len(rows)} arrive in 5 s, each is answered"))
    return picture("A burst: first tokens per second, local and cloud, beside the requests that arrive", parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measured", type=Path, help="what scripts/bench/burst --json wrote")
    parser.add_argument("picture", type=Path, help="the SVG to write")
    options = parser.parse_args()
    options.picture.write_text(draw(json.loads(options.measured.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
