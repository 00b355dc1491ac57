"""What becomes of the promises while the provider fails: an outage for a tenth of the trace, and a rate limit."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from node.routing.profile import EngineProfile
from node.routing.values import Target
from node.simulate.baselines import make_policy
from node.simulate.providers import Provider
from node.simulate.replay import Promise, Replay, replay, summary
from node.simulate.values import TraceRequest

PATIENCE_S = 60.0  # `max_wait_s` as it is by default: without a cloud, some wait for so long and are refused
HEADER = ["trace", "load", "trouble", "in budget", "pinned", "cloud", "calls failed", "refused", "TTFT p99, s"]


def trouble_rows(
    name: str,
    load: float,
    trace: Sequence[TraceRequest],
    profile: EngineProfile,
    provider: Provider,
    promise: Promise,
) -> list[list[str]]:
    """A line without trouble, and one for each kind of it."""
    rows = []
    promise = replace(promise, patience_s=PATIENCE_S)
    untroubled = replay(trace, profile, provider, promise, make_policy("overflow"))
    kinds = [("none", provider), *_troubles(trace, provider, _ended(untroubled, Target.CLOUD))]
    for trouble, troubled in kinds:
        done = (
            untroubled if troubled is provider else replay(trace, profile, troubled, promise, make_policy("overflow"))
        )
        outcome = summary(trace, promise, done)
        rows.append(
            [
                name,
                f"{load:g}",
                trouble,
                _share(outcome.in_budget_share),
                _share(outcome.pinned_in_budget_share),
                _share(outcome.cloud_share),
                f"{done.failed_calls:,}",
                f"{_ended(done, Target.REFUSE):,}",
                f"{outcome.ttft_p99_s:.2f}",
            ]
        )
    return rows


def _troubles(trace: Sequence[TraceRequest], provider: Provider, calls: int) -> Iterator[tuple[str, Provider]]:
    """The provider out for a tenth of the trace, and limited to half the calls it had without trouble."""
    from_s, length_s = trace[0].arrival_s, trace[-1].arrival_s - trace[0].arrival_s
    yield "outage", replace(provider, outages=((from_s + 0.4 * length_s, from_s + 0.5 * length_s),))
    per_minute = max(1, round(calls / 2 / max(1.0, length_s / 60.0)))
    yield f"{per_minute:,} calls a minute", replace(provider, calls_per_minute=per_minute)


def _ended(done: Replay, target: Target) -> int:
    return sum(fate is not None and fate.target is target for fate in done.fates)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
