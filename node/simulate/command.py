"""`spillway simulate` and `spillway trace`: what they take, and what they do with it.

A bad value is a `SettingsError`, told in one line; files appear whole or not at all, after all has been reckoned.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from node.errors import SettingsError
from node.progress import Progress

if TYPE_CHECKING:
    from node.store.database import Place

COMMANDS = ("simulate", "trace")
DEFAULT_POLICIES = ("overflow", "predicted:0.5", "depth:8", "spillover:8", "vllm", "aimd", "local", "cloud")
_KINDS = ("azure_code", "batch_tenants", "poisson", "long_prompts", "reasoning")
_DEFAULT_PROFILE = "gpu-medium"
_DEFAULT_PRICES = "holysheep/gemini-2.5-flash"

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
    from node.simulate.question import question_of

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
        question = question_of(options, ledger, progress)
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


def _convert(options: argparse.Namespace) -> int:
    from node.simulate.formats.convert import convert
    from node.simulate.option_values import whole, window_of
    from node.simulate.trace import capped, write_trace

    seed = None if options.seed is None else whole("--seed", options.seed)
    context = None if options.context is None else whole("--context", options.context)
    converted = convert(options.source, window=window_of(options, seconds=math.inf), seed=seed)
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
    from node.simulate.option_values import number, whole
    from node.simulate.trace import write_trace
    from node.simulate.workloads import WorkloadKind, generate

    if options.kind not in _KINDS:
        raise SettingsError(f"{options.kind}: not a kind of workload; there are {', '.join(_KINDS)}")
    seconds = number("--seconds", options.seconds, above=0)
    rate = None if options.rate is None else number("--rate", options.rate, above=0)
    seed = whole("--seed", options.seed)
    made = generate(WorkloadKind(options.kind), seconds=seconds, seed=seed, rate=rate)
    with Progress(f"making {options.output}", unit="requests") as progress:
        written = write_trace(options.output, progress.counting(made))
    print(f"{options.output}: {written:,} requests in {seconds:,.0f} s of {options.kind}")
    return 0


def _check_writable(path: Path | None) -> None:
    """Told before minutes of work: what is known by then to be in the way of writing `path`."""
    if path is None:
        return
    if path.is_dir():
        raise SettingsError(f"{path}: cannot be written: not a file")
    if not path.parent.is_dir():
        raise SettingsError(f"{path}: cannot be written: there is no folder {path.parent}")
