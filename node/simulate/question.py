"""What `spillway simulate` is asked: the trace, the engine, the providers and the promise that its options describe."""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from node.errors import SettingsError
from node.money import FREE
from node.progress import Progress
from node.routing.values import Zone
from node.simulate.comparing import Question, pick_pinned
from node.simulate.formats.convert import convert
from node.simulate.offered import speed_for
from node.simulate.option_values import number, price_of, whole, window_of
from node.simulate.profiles import find_profile
from node.simulate.providers import Provider
from node.simulate.replay import Promise
from node.simulate.trace import capped, sped_up
from node.simulate.values import TraceRequest
from node.simulate.workloads import WorkloadKind, generate
from node.wall_clock import wall_us

if TYPE_CHECKING:
    from node.simulate.formats.ledger import LedgerTrace
    from node.store.database import Place

_MOST_REQUESTS = 2_000_000
_DEFAULT_BUDGET_S = 1.0
_PROVIDER_KEYS = ("weight", "zone", "prices", "ttft-ms", "sigma")
_SEEDS_APART = 1_000_003  # so that no two providers draw the same times


def question_of(options: argparse.Namespace, ledger: Place | None, progress: Progress) -> Question:
    """The question, its trace read; `ledger` is where that comes from, None for the options' own. `SettingsError`."""
    profile = find_profile(options.profile)
    seed = whole("--seed", options.seed)
    history = None if ledger is None else _history(options, ledger)
    budget_s = _DEFAULT_BUDGET_S
    if options.ttft_budget_ms is not None:
        budget_s = number("--ttft-budget-ms", options.ttft_budget_ms, above=0) / 1000
    elif history is not None and history.ttft_budget_s is not None:
        budget_s = history.ttft_budget_s
    provider = Provider(
        price=price_of(options.prices),
        ttft_median_s=number("--provider-ttft-ms", options.provider_ttft_ms, above=0) / 1000,
        ttft_sigma=number("--provider-sigma", options.provider_sigma, least=0, most=5),
        seed=seed,
    )
    provider, *others = _providers(options.provider or (), provider)
    if options.bound and (others or provider.zone is Zone.PREMISES):
        raise SettingsError("--bound: is reckoned for one provider, in the cloud")
    pinned_share = None
    if options.pinned_share is not None:
        pinned_share = number("--pinned-share", options.pinned_share, least=0, most=1)
    speed = 1.0 if options.speed is None else number("--speed", options.speed, above=0)
    load = None if options.load is None else number("--load", options.load, above=0)
    name = "the ledger" if options.trace is None else options.trace
    fitting = capped(_requests(options, seed) if history is None else history.requests, profile.context_tokens)
    trace = list(itertools.islice(progress.counting(fitting), _MOST_REQUESTS + 1))
    if len(trace) > _MOST_REQUESTS:
        part = "--from-s and --seconds" if history is None else "--since and --until"
        raise SettingsError(f"{name}: more than {_MOST_REQUESTS:,} requests; take a part of it with {part}")
    if not trace:
        raise SettingsError(f"{name}: no requests in this part of it")
    pinned = pick_pinned(len(trace), pinned_share or 0.0, seed)
    if history is not None and pinned_share is None:
        pinned = history.pinned
    if load is not None:
        progress.now(f"looking for the speed that offers a load of {load:g}")
        try:
            speed = speed_for(trace, profile, load)
        except ValueError as error:
            raise SettingsError(f"--load {options.load}: {error}") from error
    return Question(
        title="ledger" if options.trace is None else Path(options.trace).name,
        trace=list(sped_up(trace, speed)),
        speed=speed,
        capped=fitting.count,
        profile=profile,
        provider=provider,
        promise=Promise(ttft_budget_s=budget_s, pinned=pinned),
        seed=seed,
        others=tuple(others),
    )


def _providers(specs: Sequence[str], like: Provider) -> list[Provider]:
    """Those described, `like` in what is left out; `like` itself where none is."""
    if not specs:
        return [like]
    found = [_provider(text, replace(like, seed=like.seed + _SEEDS_APART * at)) for at, text in enumerate(specs)]
    names = [each.name for each in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise SettingsError(f"--provider {twice}: described twice")
    return found


def _provider(text: str, like: Provider) -> Provider:
    name, *words = text.split() or [""]
    given = dict(word.partition("=")[::2] for word in words)
    if unknown := next((key for key in given if key not in _PROVIDER_KEYS), None):
        raise SettingsError(f"--provider {name}: {unknown}: the keys are {', '.join(_PROVIDER_KEYS)}, each KEY=VALUE")
    if not name or "=" in name:
        raise SettingsError(f"--provider {text!r}: begins with a name, such as 'gpu-2 zone=premises'")
    if given.get("zone", Zone.CLOUD) not in list(Zone):
        raise SettingsError(f"--provider {name}: zone: expected {' or '.join(Zone)}, got {given['zone']!r}")
    provider = replace(like, name=name, zone=Zone(given.get("zone", Zone.CLOUD)))
    if provider.zone is Zone.PREMISES:
        provider = replace(provider, price=FREE)
    if "prices" in given:
        provider = replace(provider, price=price_of(given["prices"], f"--provider {name}: prices"))
    if "weight" in given:
        provider = replace(provider, weight=number(f"--provider {name}: weight", given["weight"], above=0))
    if "ttft-ms" in given:
        median_s = number(f"--provider {name}: ttft-ms", given["ttft-ms"], above=0) / 1000
        provider = replace(provider, ttft_median_s=median_s)
    if "sigma" in given:
        sigma = number(f"--provider {name}: sigma", given["sigma"], least=0, most=5)
        provider = replace(provider, ttft_sigma=sigma)
    return provider


def _history(options: argparse.Namespace, ledger: Place) -> LedgerTrace:
    from node.simulate.formats.ledger import read_ledger  # which loads all of the database's library
    from node.store.moments import since_us, until_us
    from node.store_place import beside

    if options.from_s != "0" or options.seconds is not None or options.traces is not None:
        raise SettingsError("--from-s, --seconds and --traces are for a TRACE; of a ledger, take --since and --until")
    now_us = wall_us()
    since = None if options.since is None else since_us(options.since, now_us)
    until = None if options.until is None else until_us(options.until, now_us)
    with beside(ledger) as database, database.reading() as connection:
        history = read_ledger(connection, since, until, _MOST_REQUESTS + 1)
    if history.budgets > 1 and options.ttft_budget_ms is None:
        print(
            f"{history.budgets} different TTFT budgets; all are taken for the middle one, {history.ttft_budget_s:g} s",
            file=sys.stderr,
        )
    return history


def _requests(options: argparse.Namespace, seed: int) -> Iterator[TraceRequest]:
    """The trace asked for, by name of a workload or as a file; a file of a workload's name has to be `./NAME`."""
    if options.traces is None and options.trace in list(WorkloadKind):
        window = window_of(options, seconds=600.0)
        made = generate(WorkloadKind(options.trace), seconds=window.start_s + window.seconds, seed=seed)
        return (request for request in made if request.arrival_s >= window.start_s)
    path = Path(options.trace) if options.traces is None else _within(options.traces, options.trace)
    if not path.exists():
        raise SettingsError(
            f"{options.trace}: neither a file nor a kind of workload; kinds are {', '.join(WorkloadKind)}"
        )
    return convert(path, window=window_of(options, seconds=math.inf), seed=seed or None)


def _within(folder: Path, name: str) -> Path:
    """The trace called `name` in `folder`. Raises `SettingsError` naming those that are there."""
    if not folder.is_dir():
        raise SettingsError(f"--traces {folder}: there is no such folder")
    for ending in ("", ".csv", ".csv.gz"):
        if (path := folder / f"{name}{ending}").exists():
            return path
    there = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    shown = ", ".join(there[:20]) + (", ..." if len(there) > 20 else "")
    raise SettingsError(f"{folder}: no trace {name!r}; there are {shown or 'none'}")
