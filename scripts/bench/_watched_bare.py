"""`spillway serve` of a node that keeps no metrics and feeds no dashboard: what the watched bench measures against."""

from node.cli import main
from node.dashboard.decisions import DecisionLog
from node.dashboard.sampler import Sampler
from node.dispatch.outcome import Outcome
from node.metrics.requests import RequestMetrics


def nothing(self: DecisionLog | RequestMetrics, outcome: Outcome) -> None:
    """Instead of taking it in."""


def rest(self: Sampler) -> None:
    """Instead of beginning to look."""


if __name__ == "__main__":
    DecisionLog.add = nothing  # type: ignore[method-assign]
    RequestMetrics.add = nothing  # type: ignore[method-assign]
    Sampler.start = rest  # type: ignore[method-assign]
    raise SystemExit(main())
