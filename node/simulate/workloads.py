"""Workloads made up from a seed, of the kinds that published traces show, for whoever has none of those at hand.

Each kind imitates one trace: its burstiness, and the spread of its lengths. Measured over 2,100 s, mean of the seeds 0
to 19 (first line) beside the published trace (second line); IoD is the index of dispersion of counts (variance / mean)
over windows of 1, 10 and 60 s, 1 for Poisson; CV is that of the gaps; lengths are mean / p50 / p95:

| kind | imitates | requests/s | CV | IoD | prompt tokens | output tokens |
|---|---|---|---|---|---|---|
| `azure_code` | Azure 2023 code: on/off bursts, | 3.25 | 10.8 | 13.7 / 77 / 137 | 2030 / 1358 / 7344 | 27 / 13 / 93 |
| | long prompts, tiny outputs | 3.18 | 12.8 | 13.2 / 70 / 162 | 2033 / 1463 / 7328 | 27 / 13 / 87 |
| `batch_tenants` | ServeGen m-small d03h02: | 10.4 | 2.3 | 21.5 / 95 / 458 | 710 / 288 / 1845 | 66 / 13 / 270 |
| | a few tenants firing batches | 9.92 | 2.5 | 21.9 / 106 / 504 | 725 / 244 / 1883 | 66 / 10 / 270 |
| `poisson` | Azure 2023 conversation: | 6.00 | 1.04 | 1.2 / 3.3 / 13.4 | 1245 / 761 / 3953 | 203 / 176 / 455 |
| | near-Poisson, medium outputs | 5.87 | 1.08 | 1.3 / 3.5 / 15.6 | 1246 / 1024 / 4086 | 203 / 115 / 451 |
| `long_prompts` | Mooncake conversation: | 3.09 | 1.01 | 1.0 / 1.2 / 2.1 | 12965 / 7707 / 42129 | 344 / 326 / 736 |
| | very long prompts, reuse | 3.17 | 1.03 | 1.1 / 1.3 / 2.4 | 12934 / 7652 / 42140 | 345 / 356 / 708 |
| `reasoning` | ServeGen deepseek-r1 d00h10: | 4.85 | 1.26 | 2.1 / 4.4 / 14.4 | 2591 / 331 / 15080 | 1607 / 790 / 6441 |
| | long reasoning outputs | 4.84 | 1.20 | 2.2 / 4.6 / 15.1 | 2624 / 301 / 14171 | 1567 / 781 / 6504 |

`long_prompts` finds 34 % of its prompt tokens in the prefix cache (published: 35 %): a system prompt of one block in
every request, and most of the conversation in one of three. `batch_tenants` and `reasoning` name their `client`s.

The numbers come from `random.Random` and a few functions of it that are the same in Python 3.11 to 3.13, so a seed
stands for the same workload everywhere.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from node.errors import SettingsError
from node.simulate.trace import sped_up
from node.simulate.values import TraceRequest

BLOCK_TOKENS = 512


class WorkloadKind(StrEnum):
    """The kinds of workload that can be made."""

    AZURE_CODE = "azure_code"
    BATCH_TENANTS = "batch_tenants"
    POISSON = "poisson"
    LONG_PROMPTS = "long_prompts"
    REASONING = "reasoning"


def generate(kind: WorkloadKind, *, seconds: float, seed: int, rate: float | None = None) -> Iterator[TraceRequest]:
    """`seconds` of a workload of `kind`, sorted, one request at a time; the same for the same seed, anywhere.

    `rate` is the mean of requests/s to aim for, by default that of the imitated trace: time is compressed or
    stretched, as for a recorded trace, so that bursts keep their size. What a seed really gives differs, most for the
    burstier kinds. Raises `SettingsError` at once for seconds or a rate that are not finite and above 0.
    """
    for name, value in (("seconds", seconds), ("rate", rate)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise SettingsError(f"{name}: {value} is not a number above 0")
    speed = 1.0 if rate is None else rate / MEAN_RATES[kind]
    requests = _MAKERS[kind](f"{seed}/{kind}")
    made = itertools.takewhile(lambda request: request.arrival_s < seconds, sped_up(requests, speed))
    return (replace(request, arrival_s=math.floor(request.arrival_s * 1000) / 1000) for request in made)


class _Phase(NamedTuple):
    """For `seconds`, requests come at `rate` per second."""

    seconds: float
    rate: float


@dataclass(frozen=True, slots=True)
class _LogNormal:
    """Lengths around a median; `sigma` is the deviation of the logarithm."""

    median: float
    sigma: float

    def draw(self, rng: random.Random) -> float:
        return self.median * math.exp(self.sigma * rng.normalvariate())


@dataclass(frozen=True, slots=True)
class _Gamma:
    """Lengths around a mean; the larger `shape`, the closer to it (deviation: mean / sqrt(shape))."""

    mean: float
    shape: float

    def draw(self, rng: random.Random) -> float:
        return rng.gammavariate(self.shape, self.mean / self.shape)


@dataclass(frozen=True, slots=True)
class _Uniform:
    """Lengths from `low` to `high`, all alike."""

    low: float
    high: float

    def draw(self, rng: random.Random) -> float:
        return self.low + (self.high - self.low) * rng.random()


_Lengths = _LogNormal | _Gamma | _Uniform


def _azure_code(seed: str) -> Iterator[TraceRequest]:
    """Somebody works for some seconds at a pace of their own, and pauses for as long or for minutes.

    One prompt in sixteen fills the context of 7.4k tokens, as in the trace.
    """
    rng = random.Random(seed)
    pace, pause_s = _Gamma(11.5, 2.2), _LogNormal(6.9, 1.25)

    def phases() -> Iterator[_Phase]:
        while True:
            yield _Phase(pause_s.draw(rng), 0.0)
            yield _Phase(rng.expovariate(1 / 5.5), pace.draw(rng))

    full, usual, output = _Uniform(7300, 7437), _Gamma(1680, 1.2), _LogNormal(13, 1.2)
    for at_s in _poisson(phases(), rng):
        prompt = full if rng.random() < 1 / 16 else usual
        yield TraceRequest(at_s, _whole(prompt.draw(rng), 7437), _whole(output.draw(rng), 2000))


def _batch_tenants(seed: str) -> Iterator[TraceRequest]:
    """Five tenants, each with lengths of its own; the largest fires batches during campaigns of some minutes."""
    return heapq.merge(
        *(_tenant(tenant, random.Random(f"{seed}/{tenant.name}")) for tenant in _TENANTS),
        key=lambda request: request.arrival_s,
    )


@dataclass(frozen=True, slots=True)
class _Tenant:
    """Fires batches of `batch` requests on average, `rate` requests/s in the mean, in campaigns or all the time."""

    name: str
    rate: float
    batch: float
    campaigns: bool
    prompt: _Lengths
    output: _Lengths


_TENANTS = (
    _Tenant("classify", 6.45, 12.0, True, _LogNormal(250, 0.2), _Gamma(10.6, 8.0)),
    _Tenant("extract", 1.90, 3.0, False, _Gamma(1790, 400.0), _Gamma(256, 120.0)),
    _Tenant("summarise", 1.36, 1.0, False, _Gamma(1499, 300.0), _Gamma(75, 100.0)),
    _Tenant("rewrite", 0.20, 1.0, False, _Gamma(390, 20.0), _Gamma(19, 30.0)),
    _Tenant("chat", 0.02, 1.0, False, _LogNormal(70, 1.4), _Gamma(320, 1.0)),
)


def _tenant(tenant: _Tenant, rng: random.Random) -> Iterator[TraceRequest]:
    def phases() -> Iterator[_Phase]:
        if not tenant.campaigns:
            yield _Phase(math.inf, tenant.rate / tenant.batch)
        # A third of the time at three times the rate; where in a cycle the workload begins is chance.
        campaign_s, pause_s, left_s = _Uniform(200, 400), _Uniform(400, 800), 900 * rng.random()
        yield _Phase(max(0.0, left_s - 300), 0.0)
        left_s = min(left_s, 300)
        while True:
            yield _Phase(left_s, 3 * tenant.rate / tenant.batch)
            yield _Phase(pause_s.draw(rng), 0.0)
            left_s = campaign_s.draw(rng)

    for at_s in _in_batches(_poisson(phases(), rng), tenant.batch, 0.5, rng):
        prompt_tokens, output_tokens = _whole(tenant.prompt.draw(rng), 32_000), _whole(tenant.output.draw(rng), 8000)
        yield TraceRequest(at_s, prompt_tokens, output_tokens, client=tenant.name)


def _near_poisson(seed: str) -> Iterator[TraceRequest]:
    """Many people chat: Poisson, with a mean that wanders by a fifth within minutes."""
    rng = random.Random(seed)
    prompt, output = _LogNormal(760, 1.0), _Gamma(203, 2.4)
    for at_s in _poisson(_wandering(5.87, 0.23, rng), rng):
        yield TraceRequest(at_s, _whole(prompt.draw(rng), 14_000), _whole(output.draw(rng), 2000))


def _long_prompts(seed: str) -> Iterator[TraceRequest]:
    """Conversations over long documents: the system prompt is always cached, in one of three most of the rest too."""
    rng = random.Random(seed)
    opening, follow_up = _LogNormal(6500, 1.0), _LogNormal(10_400, 1.02)
    short, usual = _Gamma(15, 1.5), _Gamma(390, 4.0)
    for at_s in _poisson(_wandering(3.17, 0.1, rng), rng):
        follows = rng.random() < 0.35
        prompt_tokens = max(890, _whole((follow_up if follows else opening).draw(rng), 126_000))
        known = rng.betavariate(1.6, 0.7) if follows else 0.0
        blocks = max(1, math.floor(known * prompt_tokens / BLOCK_TOKENS))
        output = short if rng.random() < 0.12 else usual
        yield TraceRequest(at_s, prompt_tokens, _whole(output.draw(rng), 2000), blocks * BLOCK_TOKENS)


def _reasoning(seed: str) -> Iterator[TraceRequest]:
    """Questions in small bunches; one in seven about a document, one in ten a problem of thousands of tokens."""
    rng = random.Random(seed)
    ask = ("ask", _LogNormal(300, 1.45), _LogNormal(660, 0.75))
    document = ("document", _LogNormal(12_500, 0.45), _LogNormal(1000, 0.6))
    problem = ("problem", _LogNormal(62, 0.5), _LogNormal(6300, 0.65))
    bunch = 1.65
    for at_s in _in_batches(_poisson(_wandering(4.84 / bunch, 0.24, rng), rng), bunch, 0.8, rng):
        kind = rng.random()
        name, prompt, output = document if kind < 0.14 else problem if kind < 0.24 else ask
        yield TraceRequest(at_s, _whole(prompt.draw(rng), 60_000), _whole(output.draw(rng), 30_000), client=name)


MEAN_RATES = {
    WorkloadKind.AZURE_CODE: 3.18,
    WorkloadKind.BATCH_TENANTS: 9.93,
    WorkloadKind.POISSON: 5.87,
    WorkloadKind.LONG_PROMPTS: 3.17,
    WorkloadKind.REASONING: 4.84,
}
_MAKERS: dict[WorkloadKind, Callable[[str], Iterator[TraceRequest]]] = {
    WorkloadKind.AZURE_CODE: _azure_code,
    WorkloadKind.BATCH_TENANTS: _batch_tenants,
    WorkloadKind.POISSON: _near_poisson,
    WorkloadKind.LONG_PROMPTS: _long_prompts,
    WorkloadKind.REASONING: _reasoning,
}


def _poisson(phases: Iterator[_Phase], rng: random.Random) -> Iterator[float]:
    """Arrival times, Poisson within each phase."""
    start_s = 0.0
    for phase in phases:
        at_s = start_s
        start_s += phase.seconds
        while phase.rate > 0:
            at_s += rng.expovariate(phase.rate)
            if at_s >= start_s:
                break
            yield at_s


def _wandering(mean_rate: float, deviation: float, rng: random.Random) -> Iterator[_Phase]:
    """Half minutes whose rate wanders around `mean_rate`: log-normal by `deviation`, with a memory of four minutes."""
    kept = math.exp(-30 / 240)
    drift = rng.normalvariate()
    while True:
        yield _Phase(30.0, mean_rate * math.exp(deviation * drift - deviation**2 / 2))
        drift = kept * drift + math.sqrt(1 - kept**2) * rng.normalvariate()


def _in_batches(starts_s: Iterator[float], mean_size: float, spread_s: float, rng: random.Random) -> Iterator[float]:
    """Times at which requests come: each start and, within `spread_s`, a geometric number more; `mean_size` in all."""
    waiting: list[float] = []
    for start_s in starts_s:
        while waiting and waiting[0] <= start_s:
            yield heapq.heappop(waiting)
        heapq.heappush(waiting, start_s)
        while rng.random() >= 1 / mean_size:
            heapq.heappush(waiting, start_s + spread_s * rng.random())
    while waiting:
        yield heapq.heappop(waiting)


def _whole(length: float, most: int) -> int:
    """`length` as tokens: at least 1, at most `most`."""
    return min(max(1, round(length)), most)
