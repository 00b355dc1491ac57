"""Reads the node's parts into the feed's values. Measures nothing: what others have counted is laid side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from node.dashboard.decisions import DecisionLog, Ended, rounded, some_of_each
from node.dashboard.feed import (
    BudgetWindow,
    DecisionRow,
    EngineNow,
    GpuNow,
    ModelNow,
    ModelPoint,
    Now,
    Point,
    ProviderNow,
    Totals,
)
from node.dashboard.history import History, provider_state
from node.dispatch.lane import Lane
from node.dispatch.outcome import Ending
from node.dispatch.providers import Providers
from node.local.supervisor import Supervisor
from node.routing.policy import LOCAL
from node.routing.values import Zone
from node.store import totals
from node.watch.strain import Strain
from node.watch.values import GpuWatchState

_MOST_PER_TICK: Final = 40
_CACHE: Final = "cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the numbers come from; built in `node.app`. What a reload exchanges is asked for anew each time.

    `readiness` is what `/readyz` answers; `budget` is as of its last look.
    """

    totals: totals.Totals
    lanes: Mapping[str, Lane]
    engines: Mapping[str, Supervisor]
    histories: Mapping[str, History]
    providers: Callable[[], Providers]
    gpus: Callable[[], GpuWatchState]
    readiness: Callable[[], Mapping[str, Any]]
    ledger: Callable[[], Mapping[str, Any]]
    strain: Callable[[], Strain]
    inside: Callable[[], int]
    budget: Callable[[], tuple[BudgetWindow, ...] | None]
    clock: Callable[[], float]
    unix_s: Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one look at everything gave."""

    point: Point
    now: Now
    decisions: tuple[DecisionRow, ...]
    skipped: int


class Reader:
    """Each `read` tells of the time since the one before."""

    def __init__(self, sources: Sources, decisions: DecisionLog) -> None:
        self._sources = sources
        self._decisions = decisions
        self._started_s = self._read_s = sources.clock()
        self._seen = decisions.added
        self._before = self._totals()
        self._provider_histories: dict[str, History] = {}

    def read(self) -> Reading:
        """Look at everything, once."""
        now_s = self._sources.clock()
        passed_s = max(1e-3, now_s - self._read_s)
        added = self._decisions.added - self._seen
        ended = self._decisions.newest(added)
        sums, before = self._totals(), self._before
        self._read_s, self._seen, self._before = now_s, self._decisions.added, sums
        self._note_providers(now_s)
        now = self.now(sums)
        shown = some_of_each(ended, _MOST_PER_TICK)
        return Reading(
            point=self._point(sums, before, passed_s, ended, now),
            now=now,
            decisions=tuple(each.row for each in shown),
            skipped=added - len(shown),
        )

    def now(self, sums: Totals | None = None) -> Now:
        """How all stands at this moment."""
        sources, ready = self._sources, self._sources.readiness()
        gpus, ledger = sources.gpus(), sources.ledger()
        return Now(
            uptime_s=round(sources.clock() - self._started_s, 1),
            ready=ready["ready"],
            draining=ready["draining"],
            inside=sources.inside(),
            totals=sums or self._totals(),
            models=tuple(self._model(name, lane) for name, lane in sources.lanes.items()),
            providers=self._providers(),
            budget=sources.budget(),
            gpus=None if gpus.gpus is None else tuple(
                GpuNow(
                    index=gpu.index,
                    name=gpu.name,
                    vram_total_bytes=gpu.vram_total_bytes,
                    vram_used_bytes=gpu.vram_used_bytes,
                    utilisation=gpu.utilisation,
                    temperature_c=gpu.temperature_c,
                    power_w=gpu.power_w,
                    problem=gpu.problem,
                )
                for gpu in gpus.gpus
            ),
            no_gpu_because=gpus.reason,
            ledger_down_because=ledger["reason"],
            strain=sources.strain().level.value,
        )  # fmt: skip

    def _totals(self) -> Totals:
        sums = self._sources.totals
        by_place = dict.fromkeys(("local", "premises", "cloud", "cache"), 0)
        for backend, line in sums.by_backend.items():
            by_place[self._place(backend)] += line.requests
        return Totals(
            requests=sums.all.requests,
            **by_place,
            unserved=sums.all.requests - sum(by_place.values()),
            prompt_tokens=sums.all.prompt_tokens,
            completion_tokens=sums.all.completion_tokens,
            spent_nano_usd=sums.all.spent_nano_usd,
            reference_nano_usd=sums.all.reference_nano_usd,
            cloud_nano_usd=sums.all.cloud_nano_usd,
            promises=sums.streamed,
            promises_kept=sums.streamed_in_budget,
        )

    def _place(self, backend: str) -> str:
        if backend in (LOCAL, _CACHE):
            return "local" if backend == LOCAL else "cache"
        # A provider that a reload took away was in the cloud, as far as anybody knows.
        state = self._sources.providers().states.get(backend)
        return "premises" if state is not None and state.zone is Zone.PREMISES else "cloud"

    def _reasons(self, ended: Iterable[Ended]) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        counted = Counter((each.row.backend, each.row.reason) for each in ended if each.row.reason is not None)
        for (backend, reason), count in counted.items():
            place = found.setdefault("nobody" if backend is None else self._place(backend), {})
            place[reason] = place.get(reason, 0) + count
        return found

    def _point(self, sums: Totals, before: Totals, passed_s: float, ended: Iterable[Ended], now: Now) -> Point:
        def per_s(name: str) -> float:
            change: int = getattr(sums, name) - getattr(before, name)
            return round(change / passed_s, 2)

        begun = [each for each in ended if each.row.ttft_s is not None and each.row.ending != Ending.REFUSED]
        ttfts = sorted(each.row.ttft_s for each in begun if each.row.ttft_s is not None)
        here = [each for each in begun if each.row.backend == LOCAL]
        return Point(
            at_s=round(self._sources.unix_s(), 2),
            local_per_s=per_s("local"),
            premises_per_s=per_s("premises"),
            cloud_per_s=per_s("cloud"),
            cache_per_s=per_s("cache"),
            unserved_per_s=per_s("unserved"),
            tokens_per_s=per_s("completion_tokens"),
            predicted_ttft_s=_median(each.predicted_s for each in here if each.predicted_s is not None),
            measured_ttft_s=_median(each.took_s for each in here if each.took_s is not None),
            ttft_p50_s=_median(ttfts),
            ttft_p95_s=rounded(ttfts[min(len(ttfts) - 1, int(0.95 * len(ttfts)))]) if ttfts else None,
            promises=sums.promises - before.promises,
            promises_kept=sums.promises_kept - before.promises_kept,
            reasons=self._reasons(ended),
            models={
                model.name: ModelPoint(
                    queued=model.queued,
                    running=None if model.engine is None else model.engine.running,
                    kv_cache_usage=None if model.engine is None else model.engine.kv_cache_usage,
                )
                for model in now.models
            },
        )

    def _model(self, name: str, lane: Lane) -> ModelNow:
        supervisor = self._sources.engines.get(name)
        if supervisor is None or lane.engine is None:
            return ModelNow(name=name, queued=lane.depth)
        load, life = lane.engine.load(lane.in_flight), supervisor.document()
        return ModelNow(
            name=name,
            queued=lane.depth,
            engine=EngineNow(
                state=life["state"],
                since_s=life["since_s"],
                starts=life["starts"],
                deaths=life["deaths"],
                hangs=life["hangs"],
                given_up=life["given_up"],
                why=life["why"],
                rebuild_in_s=life["rebuild_in_s"],
                running=load.running,
                waiting=load.waiting,
                in_flight=load.in_flight,
                max_sequences=load.max_sequences,
                kv_cache_usage=rounded(load.kv_cache_usage),
                tpot_s=rounded(load.tpot_s, 5),
                changes=self._sources.histories[name].changes(),
            ),
        )

    def _note_providers(self, now_s: float) -> None:
        for name, state in self._sources.providers().states.items():
            history = self._provider_histories.setdefault(name, History(self._sources.unix_s))
            history.note(*provider_state(state.standing, now_s))

    def _providers(self) -> tuple[ProviderNow, ...]:
        providers, now_s = self._sources.providers(), self._sources.clock()
        lines, nothing = self._sources.totals.by_backend, totals.Line()
        shown = []
        for name, standing in providers.document(now_s).items():
            ttft, line = providers.states[name].ttft, lines.get(name, nothing)
            history = self._provider_histories.get(name)
            shown.append(
                ProviderNow(
                    name=name,
                    **standing,
                    ttft_p50_s=rounded(ttft.measured_s(now_s, 0.5)),
                    ttft_p95_s=rounded(ttft.measured_s(now_s, 0.95)),
                    ttft_p99_s=rounded(ttft.measured_s(now_s, 0.99)),
                    counted_on_s=round(ttft.high_s(now_s), 4),
                    requests=line.requests,
                    prompt_tokens=line.prompt_tokens,
                    completion_tokens=line.completion_tokens,
                    spent_nano_usd=line.spent_nano_usd,
                    changes=() if history is None else history.changes(),
                )
            )
        return tuple(shown)

    def newest(self, count: int) -> tuple[DecisionRow, ...]:
        """The last decisions, newest first."""
        return tuple(each.row for each in self._decisions.newest(count))


def _median(values: Iterable[float]) -> float | None:
    known = list(values)
    return rounded(median(known)) if known else None
