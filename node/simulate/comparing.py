"""Several policies on one trace, side by side: what `spillway simulate` shows, as values, a table and JSON."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from node.money import NANO_PER_USD, Price
from node.progress import Progress
from node.routing.profile import EngineProfile
from node.routing.values import Target
from node.simulate.baselines import make_policy
from node.simulate.offered import offered_load
from node.simulate.optimum import Bound, lower_bound
from node.simulate.providers import Provider
from node.simulate.replay import Outcome, Promise, Replay, replay, summary
from node.simulate.trace import CapCount
from node.simulate.values import TraceRequest

BINS = 120
_CURVE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be simulated. `title` names the trace, `capped` says how much of it had to be cut to fit.

    `others` are providers beside `provider`.
    """

    title: str
    trace: Sequence[TraceRequest]
    speed: float
    capped: CapCount
    profile: EngineProfile
    provider: Provider
    promise: Promise
    seed: int
    others: tuple[Provider, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One policy's replay, made small enough to keep.

    `local` and `cloud` count, in `BINS` equal parts of the trace, the requests that arrived in each, by who answered.
    `ttft_curve_s` are the TTFTs at equal steps from the least to the greatest; those refused are not in it.
    `late_nano_usd` is what the spillable requests that were late here would have cost, `pinned_late_nano_usd` what the
    pinned ones would have.
    """

    policy: str
    outcome: Outcome
    local: tuple[int, ...]
    cloud: tuple[int, ...]
    ttft_curve_s: tuple[float, ...]
    late_nano_usd: int
    pinned_late_nano_usd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The answer: the offered load, a run per policy in the order asked for, and the bound if it was asked for."""

    question: Question
    load: float
    runs: tuple[Run, ...]
    bound: Bound | None

    @property
    def most_nano_usd(self) -> int:
        """The most any of the policies spent."""
        return max(run.outcome.spend_nano_usd for run in self.runs)

    def over_bound(self, run: Run) -> float | None:
        """What the run spent over the least any router could have; None where that is not known, or is nothing."""
        if self.bound is None or self.bound.spend_nano_usd == 0:
            return None
        return run.outcome.spend_nano_usd / self.bound.spend_nano_usd


def pick_pinned(requests: int, share: float, seed: int) -> frozenset[int]:
    """Which requests are pinned: each with probability `share`, the same ones for the same seed."""
    rng = random.Random(f"{seed}/pinned")
    return frozenset(index for index in range(requests) if rng.random() < share)


def run_policy(question: Question, policy: str, arrived: Callable[[int], None] = lambda _: None) -> Run:
    """The trace through one policy; `arrived` is told of each request. Raises `SettingsError` for an unknown one."""
    done = replay(
        question.trace,
        question.profile,
        question.provider,
        question.promise,
        make_policy(policy),
        question.others,
        arrived=arrived,
    )
    late, pinned_late = late_nano_usd(question, done)
    local, cloud = _over_time(question.trace, done)
    return Run(
        policy=policy,
        outcome=summary(question.trace, question.promise, done),
        local=local,
        cloud=cloud,
        ttft_curve_s=_curve([fate.ttft_s for fate in done.fates if fate is not None and fate.ttft_s is not None]),
        late_nano_usd=late,
        pinned_late_nano_usd=pinned_late,
    )


def compare(
    question: Question, policies: Sequence[str], *, bound: bool, progress: Progress | None = None
) -> Comparison:
    """Every policy on the same trace with the same cloud.

    Raises `SettingsError` for an unknown policy (before anything is run), and with `bound` where scipy is missing.
    """
    for policy in policies:
        make_policy(policy)
    found: Bound | None = None
    if bound:
        if progress is not None:
            progress.now("the least any router could have spent")
        found = lower_bound(
            question.trace,
            question.profile,
            question.provider.price,
            ttft_budget_s=question.promise.ttft_budget_s,
            pinned=question.promise.pinned,
        )
    runs = []
    for number, policy in enumerate(policies, 1):
        if progress is None:
            runs.append(run_policy(question, policy))
            continue
        progress.now(f"policy {number} of {len(policies)}: {policy}", total=len(question.trace), unit="requests")
        runs.append(run_policy(question, policy, progress.at))
    return Comparison(
        question=question, load=offered_load(question.trace, question.profile), runs=tuple(runs), bound=found
    )


def late_nano_usd(question: Question, done: Replay) -> tuple[int, int]:
    """Cloud price of the requests that missed their budget here, spillable and pinned, for `Bound.allowing`."""
    late = pinned = 0
    for index, (request, fate) in enumerate(zip(question.trace, done.fates, strict=True)):
        if fate is not None and fate.target is Target.CLOUD:
            continue
        if fate is None or fate.ttft_s is None or fate.ttft_s > question.promise.ttft_budget_s:
            cost = question.provider.price.cost_of_nano_usd(request.prompt_tokens, request.output_tokens)
            if index in question.promise.pinned:
                pinned += cost
            else:
                late += cost
    return late, pinned


def _over_time(trace: Sequence[TraceRequest], done: Replay) -> tuple[tuple[int, ...], tuple[int, ...]]:
    local, cloud = [0] * BINS, [0] * BINS
    first_s, last_s = trace[0].arrival_s, trace[-1].arrival_s
    scale = BINS / (last_s - first_s) if last_s > first_s else 0.0
    for request, fate in zip(trace, done.fates, strict=True):
        if fate is not None and fate.target in (Target.LOCAL, Target.CLOUD):
            place = min(BINS - 1, int((request.arrival_s - first_s) * scale))
            (cloud if fate.target is Target.CLOUD else local)[place] += 1
    return tuple(local), tuple(cloud)


def _curve(ttfts_s: list[float]) -> tuple[float, ...]:
    ttfts_s.sort()
    if not ttfts_s:
        return ()
    last = len(ttfts_s) - 1
    return tuple(ttfts_s[round(step * last / _CURVE)] for step in range(_CURVE + 1))


def answered_share(run: Run) -> float:
    """The share of requests that got a first token at all."""
    return (sum(run.local) + sum(run.cloud)) / max(1, run.outcome.requests)


def sent_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """A header, and a row per policy: which share of the requests went to each provider. Empty where there is one."""
    question = comparison.question
    if not question.others:
        return []
    names = [each.name for each in (question.provider, *question.others)]
    shares = [
        (run.policy, *(_percent(run.outcome.sent.get(name, 0) / run.outcome.requests) for name in names))
        for run in comparison.runs
    ]
    return [("sent to", *names), *shares]


HEADER = ("policy", "in budget", "pinned in", "cloud", "spend $", "x bound", "p50 s", "p95 s", "p99 s", "engine busy")


def rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """A row of texts per policy, under `HEADER`."""
    most = comparison.most_nano_usd
    return [
        (
            run.policy,
            _percent(run.outcome.in_budget_share),
            _percent(run.outcome.pinned_in_budget_share),
            _percent(run.outcome.cloud_share),
            usd(run.outcome.spend_nano_usd, most),
            "-" if (ratio := comparison.over_bound(run)) is None else f"{ratio:.2f}",
            f"{run.outcome.ttft_p50_s:.2f}",
            f"{run.outcome.ttft_p95_s:.2f}",
            f"{run.outcome.ttft_p99_s:.2f}",
            _percent(run.outcome.utilisation),
        )
        for run in comparison.runs
    ]


def facts(comparison: Comparison) -> list[str]:
    """What was simulated, in a few lines of text."""
    question, bound = comparison.question, comparison.bound
    trace, promise, provider = question.trace, question.promise, question.provider
    duration_s = trace[-1].arrival_s - trace[0].arrival_s
    load = f"load {comparison.load:.2f}" if math.isfinite(comparison.load) else "all at once"
    told = [
        f"{question.title}: {len(trace):,} {'request' if len(trace) == 1 else 'requests'} in {duration_s:,.0f} s, "
        f"speed {question.speed:.3g}, {load} on {question.profile.name}",
        f"promise: first token in {promise.ttft_budget_s:g} s; {len(promise.pinned):,} pinned"
        + ("" if question.others else f"; cloud {_figures(provider)}"),
    ]
    if question.others:
        told += [
            f"{each.name} ({each.zone}, weight {each.weight:g}): {_figures(each)}"
            for each in (provider, *question.others)
        ]
    if question.capped.capped:
        told.append(
            f"cut to fit {question.profile.context_tokens:,} tokens of context: {question.capped.capped:,} requests"
        )
    if bound is not None:
        told.append(
            f"the least any router could have spent: ${usd(bound.spend_nano_usd, bound.all_cloud_nano_usd)} "
            f"(all to the cloud: ${usd(bound.all_cloud_nano_usd, bound.all_cloud_nano_usd)})"
        )
    return told


def text(comparison: Comparison) -> str:
    """The table for a terminal, what was simulated above it."""
    tables = [[HEADER, *rows(comparison)], sent_rows(comparison)]
    return "\n".join([*facts(comparison), *(line for table in tables if table for line in ("", *lines(table)))])


def lines(table: Sequence[tuple[str, ...]]) -> Iterable[str]:
    """The rows of a table, the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        yield "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()


def as_json(comparison: Comparison, explanation: dict[str, object] | None = None) -> bytes:
    """Everything as one JSON document: dollars as numbers, shares as fractions, seconds.

    `explanation` stands in it as it is.
    """
    question, bound = comparison.question, comparison.bound
    document: dict[str, Any] = {
        "trace": {
            "name": question.title,
            "requests": len(question.trace),
            "speed": question.speed,
            "offered_load": _finite(comparison.load),
            "capped": asdict(question.capped),
        },
        "profile": asdict(question.profile),
        "promise": {
            "ttft_budget_s": question.promise.ttft_budget_s,
            "pinned": len(question.promise.pinned),
        },
        "provider": _provider_json(question.provider),
        "others": [_provider_json(each) for each in question.others],
        "seed": question.seed,
        "bound": None
        if bound is None
        else {
            "spend_usd": bound.spend_nano_usd / NANO_PER_USD,
            "upper_usd": bound.upper_nano_usd / NANO_PER_USD,
            "all_cloud_usd": bound.all_cloud_nano_usd / NANO_PER_USD,
            "pinned_late_usd": bound.pinned_late_nano_usd / NANO_PER_USD,
        },
        "policies": [_run_json(comparison, run) for run in comparison.runs],
        "explanation": explanation,
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def _provider_json(provider: Provider) -> dict[str, Any]:
    return {
        "name": provider.name,
        "zone": provider.zone,
        "weight": provider.weight,
        "ttft_median_s": provider.ttft_median_s,
        "ttft_sigma": provider.ttft_sigma,
        "input_usd_per_mtok": float(provider.price.input_usd_per_mtok),
        "output_usd_per_mtok": float(provider.price.output_usd_per_mtok),
    }


def _run_json(comparison: Comparison, run: Run) -> dict[str, Any]:
    outcome, bound = run.outcome, comparison.bound
    figures = {key: _finite(value) for key, value in asdict(outcome).items() if key != "spend_nano_usd"}
    allowed = None
    if bound is not None:
        allowed = bound.allowing(late_nano_usd=run.late_nano_usd, pinned_late_nano_usd=run.pinned_late_nano_usd)
    return {
        "policy": run.policy,
        **figures,
        "spend_usd": outcome.spend_nano_usd / NANO_PER_USD,
        "over_bound": comparison.over_bound(run),
        "bound_allowing_late_usd": None if allowed is None else allowed / NANO_PER_USD,
        "arrivals_local": run.local,
        "arrivals_cloud": run.cloud,
    }


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _percent(share: float | None) -> str:
    """Rounded down to a tenth, so that 99.9 % is never shown as all of it."""
    return "-" if share is None else f"{math.floor(share * 1000 + 1e-9) / 10:.1f} %"


def usd(nano_usd: int, most_nano_usd: int) -> str:
    """Dollars with the decimals that suit the largest figure beside them."""
    most = most_nano_usd / NANO_PER_USD
    decimals = 2 if most >= 10 else 3 if most >= 0.5 else 6
    return f"{nano_usd / NANO_PER_USD:,.{decimals}f}"


def _figures(provider: Provider) -> str:
    return (
        f"TTFT: median {provider.ttft_median_s:g} s, sigma {provider.ttft_sigma:g}; "
        f"price: ${_price(provider.price)} per million tokens, input/output"
    )


def _price(price: Price) -> str:
    return f"{price.input_usd_per_mtok}/{price.output_usd_per_mtok}"


def share_at(run: Run, ttft_s: float) -> float:
    """The share of all requests that had their first token within `ttft_s`, from the kept curve."""
    if not run.ttft_curve_s:
        return 0.0
    return bisect_right(run.ttft_curve_s, ttft_s) / len(run.ttft_curve_s) * answered_share(run)
