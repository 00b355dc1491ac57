"""Draw what fixed queue depths do beside the node's own policy: promises kept over spend, on two kinds of workload.

All of it comes from `spillway simulate` on workloads made up from a seed, whose tables are printed: the figures, and so
the picture, are the same on every machine.
"""

import argparse
import io
import json
import math
import sys
import tempfile
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from _harness import options
from _harness.process import CannotRun
from _svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, picture, text

from node.cli import main as spillway

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "depths.svg"
WORKLOADS = (("batch_tenants", "a few callers fire batches"), ("long_prompts", "prompts of 13,000 tokens"))
DEPTHS = (0, 1, 2, 4, 8, 16, 32, 64, 128)
LABELLED = {0: "depth 0", 8: "depth 8", 32: "32", 128: "128"}
NODE, ON_ARRIVAL = "overflow", "predicted:0.5"
POLICIES = (NODE, ON_ARRIVAL, *(f"depth:{depth}" for depth in DEPTHS), "cloud")
SECONDS = 900
SETTING = ("--profile", "gpu-large", "--load", "1", "--pinned-share", "0.2")
GAP = 56
CAPTION = "up: first token within 1 s, of what may leave; across: spend, as a share of sending all of that away"
ORANGE, BLUE, GREEN = "#d9771f", "#3f83c9", "#3c9a63"

Figures = dict[str, dict[str, Any]]


def simulated(workload: str, seconds: float) -> Figures:
    """What `spillway simulate` has in its JSON for each policy, by name. Raises CannotRun when it refuses."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        asked = [each for policy in POLICIES for each in ("--policy", policy)]
        said = io.StringIO()
        with redirect_stderr(said):
            code = spillway(["simulate", workload, "--seconds", f"{seconds:g}", *SETTING, *asked, "--json", str(path)])
        if code:
            raise CannotRun(said.getvalue())
        return {each["policy"]: each for each in json.loads(path.read_text())["policies"]}


def draw(found: dict[str, Figures]) -> str:
    """The picture of `found`, by workload."""
    shares = [spend_share(figures, policy) for figures in found.values() for policy in POLICIES if policy != "cloud"]
    most_percent = math.ceil(max(shares) * 5) * 20
    across = (WIDTH - LEFT - RIGHT - GAP) / len(WORKLOADS)
    parts = [*_legend()]
    for number, (workload, described) in enumerate(WORKLOADS):
        left = LEFT + number * (across + GAP)
        parts.append(text(left, TOP + 10, workload, kind="text"))
        parts.append(text(left + 8 + 7.2 * len(workload), TOP + 10, described))
        parts += _panel(found[workload], left, across / most_percent, most_percent)
    parts.append(text(LEFT, HEIGHT - 8, CAPTION))
    return picture(
        "Share of requests with their first token in time over spend, for two workloads: fixed queue depths from 0 to "
        f"{max(DEPTHS)}, a prediction on arrival, and Spillway",
        parts,
    )


def _legend() -> list[str]:
    marks = [
        (_dot(LEFT + 6, 22), "fixed queue depths"),
        (_diamond(LEFT + 176, 22), "predicted, on arrival"),
        (_disc(LEFT + 346, 22), "Spillway: predicted, at the last safe moment"),
    ]
    said = [text(LEFT + 18 + 170 * number, 27, name, kind="text") for number, (_, name) in enumerate(marks)]
    return [mark for mark, _ in marks] + said


def spend_share(figures: Figures, policy: str) -> float:
    """What the policy spent, of what sending away all that may leave costs."""
    return float(figures[policy]["spend_usd"] / figures["cloud"]["spend_usd"])


def _panel(figures: Figures, left: float, per_percent: float, most_percent: int) -> list[str]:
    top = TOP + 40

    def at(policy: str) -> tuple[float, float]:
        return left + per_percent * 100 * spend_share(figures, policy), y(figures[policy]["in_budget_share"])

    def y(share: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - top) * share

    parts = []
    for percent in (0, 25, 50, 75, 100):
        parts.append(f'<path class="rule" d="M{left:.1f} {y(percent / 100):.1f}h{per_percent * most_percent:.1f}"/>')
        if left == LEFT:
            parts.append(text(left - 8, y(percent / 100) + 4, f"{percent} %", anchor="end"))
    for percent in range(0, most_percent + 1, 20):
        x = left + per_percent * percent
        parts.append(
            text(x, HEIGHT - BOTTOM + 18, f"{percent} %", anchor="middle" if percent < most_percent else "end")
        )
    curve = [at(f"depth:{depth}") for depth in DEPTHS]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in curve)
    parts.append(f'<polyline points="{points}" fill="none" stroke="{ORANGE}" stroke-width="1.5"/>')
    for depth, (x, height) in zip(DEPTHS, curve, strict=True):
        parts.append(_dot(x, height))
        if depth in LABELLED:
            below = depth == min(DEPTHS)
            place = (x + 8, height + 14) if below else (x - 7, height - 6)
            parts.append(text(*place, LABELLED[depth], kind="text", anchor="start" if below else "end"))
    return [*parts, _diamond(*at(ON_ARRIVAL)), _disc(*at(NODE))]


def _dot(x: float, y: float) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{ORANGE}"/>'


def _diamond(x: float, y: float) -> str:
    return f'<path d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z" fill="{GREEN}"/>'


def _disc(x: float, y: float) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6.5" fill="{BLUE}"/>'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "picture", type=Path, nargs="?", default=PICTURE, help="the SVG to write (default: docs/depths.svg)"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each workload (default: %(default)s)")
    asked = parser.parse_args()
    asked.picture.write_text(draw({workload: simulated(workload, asked.seconds) for workload, _ in WORKLOADS}))
    print(f"written: {asked.picture}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(options.main(main))
