"""`spillway simulate` and `spillway trace`: what they take, and what they do with it.

A bad value is a `SettingsError`, told in one line; files appear whole or not at all, after all has been reckoned.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING

from node.errors import SettingsError
from node.progress import Progress
from node.wall_clock import wall_us

if TYPE_CHECKING:
    from node.money import Price
    from node.simulate.comparing import Question
    from node.simulate.formats.convert import Window
    from node.simulate.formats.ledger import LedgerTrace
    from node.simulate.providers import Provider
    from node.simulate.values import TraceRequest
    from node.store.database import Place

COMMANDS = ("simulate", "trace")
DEFAULT_POLICIES = ("overflow", "predicted:0.5", "depth:8", "spillover:8", "vllm", "aimd", "local", "cloud")
_KINDS = ("azure_code", "batch_tenants", "poisson", "long_prompts", "reasoning")
_DEFAULT_PROFILE = "gpu-medium"
_DEFAULT_PRICES = "holysheep/gemini-2.5-flash"
_MOST_REQUESTS = 2_000_000
_DEFAULT_BUDGET_S = 1.0
_PROVIDER_KEYS = ("weight", "zone", "prices", "ttft-ms", "sigma")
_SEEDS_APART = 1_000_003  # so that no two providers draw the same times

_SIMULATE = """\
Replay a trace of requests through the node's own routing, beside other policies, without an engine and without a
cloud: what each would have cost, and whether the promise would have been kept. Nothing is sent anywhere.

TRACE is a file (Spillway's CSV, Azure, Mooncake, BurstGPT) or a folder (ServeGen), or a made-up workload:
azure_code, batch_tenants, poisson, long_prompts, reasoning."""

_SIMULATE_EXAMPLES = """\
policies:
  overflow          the node's own, with its default settings
  local, cloud      everything here; everything that may leave, leaves
  depth:N           the cloud while more than N requests wait in the engine
  spillover:N       llama-swap's selector
  vllm[:REQUESTS]   vLLM's admission limits, the cloud for what they refuse
  aimd              a share of the traffic, cut when answers come late
  predicted:F       the cloud when the TTFT predicted on arrival is over F times the budget
  article[:USD]     local if an idle engine would be in time, else the cloud at up to USD

examples:
  spillway simulate azure_code --load 1.5 --bound
  spillway simulate --from-ledger --since 24h --profile mine.json --html yesterday.html
  spillway simulate azure_code --provider 'gpu-2 zone=premises weight=2' --provider 'holysheep ttft-ms=400'
  spillway simulate monday.csv --profile gpu-small --ttft-budget-ms 3000
  spillway simulate batch_tenants --load 1 --policy overflow --explain depth
  spillway simulate code_bursty --traces ~/traces --load 1.5 --pinned-share 0.2
  spillway simulate AzureLLMInferenceTrace_conv.csv --speed 4 --policy overflow --policy depth:4 --prices 0.8,2.5

What the columns mean: docs/simulate.md. Exit code 1, and one line, for whatever is wrong."""

_TRACE_EXAMPLES = """\
examples:
  spillway trace convert AzureLLMInferenceTrace_code.csv code.csv.gz
  spillway trace convert conversation_trace.jsonl hour.csv --from-s 600 --seconds 3600
  spillway trace generate batch_tenants --seconds 3600 --seed 7 -o tenants.csv"""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Registers `simulate` and `trace`."""
    _add_simulate(commands)
    trace = commands.add_parser(
        "trace",
        help="convert published traces, or make up workloads",
        description="Traces for `spillway simulate`: arrival times and lengths, no text.",
        epilog=_TRACE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = trace.add_subparsers(dest="action", required=True, metavar="ACTION")
    convert = actions.add_parser(
        "convert",
        help="a published trace as Spillway's CSV",
        description="Read a trace in any known format (told by its content: Spillway, Azure, Mooncake, BurstGPT, "
        "a folder of ServeGen) and write it as Spillway's CSV, packed if DEST ends in .gz. Ten million rows "
        "take time, not memory.",
    )
    convert.add_argument("source", type=Path, metavar="SRC", help="the published file or folder")
    convert.add_argument("destination", type=Path, metavar="DEST", help="the file to write; replaced if it is there")
    _add_window(convert)
    convert.add_argument("--context", metavar="TOKENS", help="cut prompts and answers to fit this context")
    convert.add_argument("--seed", metavar="N", help="for formats that need chance (default: the format's own)")
    generate = actions.add_parser(
        "generate",
        help="a made-up workload of a known kind",
        description="Write a workload made up from a seed, of the kind of a published trace: "
        f"{', '.join(_KINDS)}. The same seed gives the same workload anywhere.",
    )
    generate.add_argument("kind", metavar="KIND", help=", ".join(_KINDS))
    generate.add_argument("--seconds", metavar="S", default="3600", help="how long (default: %(default)s)")
    generate.add_argument("--seed", metavar="N", default="0", help="default: %(default)s")
    generate.add_argument("--rate", metavar="R", help="mean requests per second (default: the published trace's)")
    generate.add_argument("-o", "--output", type=Path, metavar="FILE", required=True, help="the file to write")


def _add_simulate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "simulate",
        help="replay a trace: what would this setting have cost?",
        description=_SIMULATE,
        epilog=_SIMULATE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("trace", metavar="TRACE", nargs="?", help="file, folder or kind of workload")
    parser.add_argument(
        "--from-ledger", action="store_true", help="instead of TRACE: what this node's ledger has seen; it is only read"
    )
    parser.add_argument("--since", metavar="WHEN", help="of the ledger: a day, a UTC time, or how long ago (7d)")
    parser.add_argument("--until", metavar="WHEN", help="of the ledger: the same; a day alone is included")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings that say where the ledger is")
    parser.add_argument("--traces", type=Path, metavar="DIR", help="where TRACE is, with or without .csv or .csv.gz")
    parser.add_argument(
        "--profile",
        metavar="NAME|FILE",
        default=_DEFAULT_PROFILE,
        help="the engine: gpu-small, gpu-medium, gpu-large, or a calibrated profile (default: %(default)s)",
    )
    parser.add_argument(
        "--policy", action="append", metavar="P", help=f"repeatable (default: {' '.join(DEFAULT_POLICIES)})"
    )
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--load", metavar="L", help="speed the trace up or down until it offers L times what fits")
    pace.add_argument("--speed", metavar="S", help="divide all arrival times by S (default: 1)")
    _add_window(parser)
    parser.add_argument("--ttft-budget-ms", metavar="MS", help="the promise (default: 1000; a ledger's own)")
    parser.add_argument(
        "--provider-ttft-ms", metavar="MS", default="350", help="the cloud's median TTFT (default: %(default)s)"
    )
    parser.add_argument(
        "--provider-sigma", metavar="X", default="0.35", help="its spread, of the logarithm (default: %(default)s)"
    )
    parser.add_argument(
        "--provider",
        action="append",
        metavar="SPEC",
        help="instead of that one cloud, repeatable: 'NAME weight=2 zone=premises prices=0,0 ttft-ms=200 sigma=0.2'; "
        "what is left out is as above, on the premises for nothing",
    )
    parser.add_argument(
        "--pinned-share", metavar="X", help="share of requests that never leave (default: 0; of a ledger: those pinned)"
    )
    parser.add_argument(
        "--prices",
        metavar="P",
        default=_DEFAULT_PRICES,
        help="INPUT,OUTPUT in dollars per million tokens, or a MODEL of the price files (default: %(default)s)",
    )
    parser.add_argument("--seed", metavar="N", default="0", help="of all chance (default: %(default)s)")
    parser.add_argument("--bound", action="store_true", help="reckon the least any router could have spent (scipy)")
    parser.add_argument(
        "--explain",
        metavar="OTHER",
        help="why the first policy paid more, or less, than OTHER: a policy, depth (the best fixed one), clairvoyant",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with pictures, all in one file")


def _add_window(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from-s", metavar="S", default="0", help="leave out what comes before (default: %(default)s)")
    parser.add_argument("--seconds", metavar="S", help="how much of the trace (default: all; of a workload: 600)")


def run(options: argparse.Namespace, ledger: Place | None = None) -> int:
    """Does what the command line says and gives the exit code. `ledger` is where `--from-ledger` reads.

    Raises `SettingsError`.
    """
    if options.command == "simulate":
        return _simulate(options, ledger)
    return _convert(options) if options.action == "convert" else _generate(options)


def _simulate(options: argparse.Namespace, ledger: Place | None) -> int:
    from node.simulate import comparing, explained, explaining, page
    from node.simulate.baselines import make_policy
    from node.simulate.profiles import write_whole

    for path in (options.json, options.html):
        _check_writable(path)
    if (options.trace is None) == (ledger is None):
        raise SettingsError("give a TRACE or --from-ledger" + ("" if options.trace is None else ", not both"))
    policies = tuple(dict.fromkeys(options.policy or DEFAULT_POLICIES))
    for policy in policies:
        make_policy(policy)
    if options.explain is not None:
        explaining.check(options.explain)
    with Progress(f"reading {options.trace or 'the ledger'}", unit="requests") as progress:
        question = _question(options, ledger, progress)
        found = comparing.compare(question, policies, bound=options.bound, progress=progress)
        why = None
        if options.explain is not None:
            why = explaining.explain(question, policies[0], options.explain, progress)
    told = None if why is None else explained.as_json(why)
    document = comparing.as_json(found, told) if options.json else b""
    picture = page.draw(found).encode() if options.html else b""
    print(comparing.text(found))
    if why is not None:
        print(f"\n{explained.text(why)}")
    for path, content in ((options.json, document), (options.html, picture)):
        if path is not None:
            write_whole(path, content)
            print(f"written: {path}", file=sys.stderr)
    return 0


def _question(options: argparse.Namespace, ledger: Place | None, progress: Progress) -> Question:
    from node.routing.values import Zone
    from node.simulate.comparing import Question, pick_pinned
    from node.simulate.offered import speed_for
    from node.simulate.profiles import find_profile
    from node.simulate.providers import Provider
    from node.simulate.replay import Promise
    from node.simulate.trace import capped, sped_up

    profile = find_profile(options.profile)
    seed = _whole("--seed", options.seed)
    history = None if ledger is None else _history(options, ledger)
    budget_s = _DEFAULT_BUDGET_S
    if options.ttft_budget_ms is not None:
        budget_s = _number("--ttft-budget-ms", options.ttft_budget_ms, above=0) / 1000
    elif history is not None and history.ttft_budget_s is not None:
        budget_s = history.ttft_budget_s
    provider = Provider(
        price=_price(options.prices),
        ttft_median_s=_number("--provider-ttft-ms", options.provider_ttft_ms, above=0) / 1000,
        ttft_sigma=_number("--provider-sigma", options.provider_sigma, least=0, most=5),
        seed=seed,
    )
    provider, *others = _providers(options.provider or (), provider)
    if options.bound and (others or provider.zone is Zone.PREMISES):
        raise SettingsError("--bound: is reckoned for one provider, in the cloud")
    pinned_share = None
    if options.pinned_share is not None:
        pinned_share = _number("--pinned-share", options.pinned_share, least=0, most=1)
    speed = 1.0 if options.speed is None else _number("--speed", options.speed, above=0)
    load = None if options.load is None else _number("--load", options.load, above=0)
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
    from node.money import FREE
    from node.routing.values import Zone

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
        provider = replace(provider, price=_price(given["prices"], f"--provider {name}: prices"))
    if "weight" in given:
        provider = replace(provider, weight=_number(f"--provider {name}: weight", given["weight"], above=0))
    if "ttft-ms" in given:
        median_s = _number(f"--provider {name}: ttft-ms", given["ttft-ms"], above=0) / 1000
        provider = replace(provider, ttft_median_s=median_s)
    if "sigma" in given:
        sigma = _number(f"--provider {name}: sigma", given["sigma"], least=0, most=5)
        provider = replace(provider, ttft_sigma=sigma)
    return provider


def _history(options: argparse.Namespace, ledger: Place) -> LedgerTrace:
    from node.simulate.formats.ledger import read_ledger
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
    from node.simulate.formats.convert import convert
    from node.simulate.workloads import WorkloadKind, generate

    if options.traces is None and options.trace in _KINDS:
        window = _window(options, seconds=600.0)
        made = generate(WorkloadKind(options.trace), seconds=window.start_s + window.seconds, seed=seed)
        return (request for request in made if request.arrival_s >= window.start_s)
    path = Path(options.trace) if options.traces is None else _within(options.traces, options.trace)
    if not path.exists():
        raise SettingsError(f"{options.trace}: neither a file nor a kind of workload; kinds are {', '.join(_KINDS)}")
    return convert(path, window=_window(options, seconds=math.inf), seed=seed or None)


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


def _convert(options: argparse.Namespace) -> int:
    from node.simulate.formats.convert import convert
    from node.simulate.trace import capped, write_trace

    seed = None if options.seed is None else _whole("--seed", options.seed)
    context = None if options.context is None else _whole("--context", options.context)
    converted = convert(options.source, window=_window(options, seconds=math.inf), seed=seed)
    with Progress(f"converting {options.source}", unit="requests") as progress:
        if context is None:
            written, cut = write_trace(options.destination, progress.counting(converted)), 0
        else:
            fitting = capped(converted, context)
            written, cut = write_trace(options.destination, progress.counting(fitting)), fitting.count.capped
    notes = f", {converted.skipped:,} rows without lengths skipped" if converted.skipped else ""
    notes += f", {cut:,} cut to fit {context:,} tokens" if cut else ""
    print(f"{options.destination}: {written:,} requests, from {converted.format}{notes}")
    return 0


def _generate(options: argparse.Namespace) -> int:
    from node.simulate.trace import write_trace
    from node.simulate.workloads import WorkloadKind, generate

    if options.kind not in _KINDS:
        raise SettingsError(f"{options.kind}: not a kind of workload; there are {', '.join(_KINDS)}")
    seconds = _number("--seconds", options.seconds, above=0)
    rate = None if options.rate is None else _number("--rate", options.rate, above=0)
    seed = _whole("--seed", options.seed)
    made = generate(WorkloadKind(options.kind), seconds=seconds, seed=seed, rate=rate)
    with Progress(f"making {options.output}", unit="requests") as progress:
        written = write_trace(options.output, progress.counting(made))
    print(f"{options.output}: {written:,} requests in {seconds:,.0f} s of {options.kind}")
    return 0


def _window(options: argparse.Namespace, *, seconds: float) -> Window:
    from node.simulate.formats.convert import Window

    start_s = _number("--from-s", options.from_s, least=0)
    if options.seconds is not None:
        seconds = _number("--seconds", options.seconds, above=0)
    return Window(start_s=start_s, seconds=seconds)


def _price(text: str, key: str = "--prices") -> Price:
    """`INPUT,OUTPUT`, or a model of the price files that ship, with its provider before it where several have it."""
    from node.catalogue_files import default_models_dir, load_prices
    from node.money import Price

    if "," in text:
        try:
            input_usd, output_usd = (Decimal(part.strip()) for part in text.split(","))
        except (InvalidOperation, ValueError):
            raise SettingsError(f"{key} {text!r}: expected INPUT,OUTPUT in dollars, such as 0.80,2.50") from None
        if not all(usd.is_finite() and 0 <= usd <= 1_000_000 for usd in (input_usd, output_usd)):
            raise SettingsError(f"{key} {text!r}: dollars per million tokens are from 0 to 1000000")
        return Price(input_usd, output_usd)
    known = load_prices(default_models_dir())
    named = {f"{provider}/{model}": price for (provider, model), price in known.items()}
    matching = [name for name in named if name == text or name.partition("/")[2] == text]
    if not matching:
        raise SettingsError(f"{key} {text!r}: no such price; there are {', '.join(sorted(named))}, or INPUT,OUTPUT")
    if len(matching) > 1:
        raise SettingsError(f"{key} {text!r}: several have it: {', '.join(sorted(matching))}")
    return named[matching[0]]


def _number(
    name: str, text: str, *, above: float | None = None, least: float | None = None, most: float = 1e12
) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if (
        math.isfinite(value)
        and value <= most
        and (above is None or value > above)
        and (least is None or value >= least)
    ):
        return value
    limit = f"above {above:g}" if above is not None else f"from {least:g} on" if least is not None else ""
    limit += f", at most {most:g}" if most < 1e12 else ""
    raise SettingsError(f"{name}: expected a number {limit}, got {text!r}")


def _whole(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise SettingsError(f"{name}: expected a whole number from 0 on, got {text!r}")
    return int(text)


def _check_writable(path: Path | None) -> None:
    """Told before minutes of work: what is known by then to be in the way of writing `path`."""
    if path is None:
        return
    if path.is_dir():
        raise SettingsError(f"{path}: cannot be written: not a file")
    if not path.parent.is_dir():
        raise SettingsError(f"{path}: cannot be written: there is no folder {path.parent}")
