"""``python -m node.emulator``: the emulator as a process. Prints one line of JSON with its URL once it listens."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import threading
from pathlib import Path

import uvloop

from node.emulator.config import EmulatorConfig, ErrorShape
from node.emulator.prices import read_prices
from node.emulator.server import Emulator
from node.emulator.switches import Switch


def main(arguments: list[str] | None = None) -> int:
    """Serve until told to stop; exit code 2 for wrong arguments, 1 when the address is taken."""
    options = _parser().parse_args(arguments)
    try:
        config = _config(options)
        emulator = Emulator(config)
        for text in options.switch:
            _arm(emulator, text)
    except (ValueError, OSError) as error:
        print(f"emulator: {error}", file=sys.stderr)
        return 2
    try:
        uvloop.run(_serve(emulator, exit_with_parent=options.exit_with_parent))
    except OSError as error:
        print(f"emulator: {error}", file=sys.stderr)
        return 1
    return 0


async def _serve(emulator: Emulator, *, exit_with_parent: bool) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if exit_with_parent:
        # A thread, because an event loop cannot watch every kind of standard input (a file, /dev/null).
        threading.Thread(target=_wait_for_parent, args=(loop, stop), daemon=True).start()
    async with emulator:
        print(json.dumps({"url": emulator.url, "base_url": emulator.base_url, "pid": os.getpid()}), flush=True)
        await stop.wait()


def _wait_for_parent(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Return when standard input ends, as it does when whoever holds its other end dies."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    if not loop.is_closed():
        loop.call_soon_threadsafe(stop.set)


def _arm(emulator: Emulator, text: str) -> None:
    name, _, rest = text.partition(":")
    probability, _, count = rest.partition(":")
    emulator.switches.arm(
        Switch.named(name),
        probability=float(probability) if probability else None,
        count=int(count) if count else None,
    )


def _config(options: argparse.Namespace) -> EmulatorConfig:
    defaults = EmulatorConfig()
    return EmulatorConfig(
        seed=options.seed,
        host=options.host,
        port=options.port,
        api_key=options.api_key,
        ttft_median_s=options.ttft_ms / 1000,
        ttft_sigma=options.ttft_sigma,
        pace_s=options.pace_ms / 1000,
        pace_sigma=options.pace_sigma,
        answer_tokens_median=options.answer_tokens,
        prices=defaults.prices if options.prices is None else read_prices(options.prices),
        requests_per_minute=options.rpm,
        max_concurrent=options.concurrent,
        error_shape=ErrorShape(options.error_shape),
        bill_path=options.bill,
        log_path=options.log,
        fsync=options.fsync,
        log_prompts=options.log_prompts,
        bill_answers=options.bill_answers,
        redirect_to=options.redirect_to,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
    )


def _parser() -> argparse.ArgumentParser:
    defaults = EmulatorConfig()
    parser = argparse.ArgumentParser(
        prog="python -m node.emulator",
        description="An OpenAI-compatible cloud that costs nothing, with a bill of its own and faults on demand.",
        epilog="switches: " + "; ".join(f"{switch.value}: {switch.summary}" for switch in Switch),
    )
    add = parser.add_argument
    add("--host", default=defaults.host)
    add("--port", type=int, default=0, help="0 takes a free one")
    add("--seed", type=int, default=0)
    add("--api-key", help="the only bearer key accepted; any, if left out")
    add("--ttft-ms", type=float, default=defaults.ttft_median_s * 1000, help="median time to first token")
    add("--ttft-sigma", type=float, default=defaults.ttft_sigma, help="spread of its logarithm")
    add("--pace-ms", type=float, default=defaults.pace_s * 1000, help="time from one token to the next")
    add("--pace-sigma", type=float, default=defaults.pace_sigma, help="spread of its logarithm over calls")
    add("--answer-tokens", type=float, default=defaults.answer_tokens_median, help="median length of an answer")
    add("--prices", type=Path, help="a price file as in models/prices; HolySheep's numbers if left out")
    add("--rpm", type=int, help="requests per minute before 429")
    add("--concurrent", type=int, help="calls at once before 429")
    add("--error-shape", choices=[shape.value for shape in ErrorShape], default=defaults.error_shape.value)
    add("--bill", type=Path, help="append the bill to this file")
    add("--log", type=Path, help="append the log of arrivals to this file")
    add("--fsync", action="store_true", help="have every line on disk before going on")
    add("--log-prompts", action="store_true", help="log the prompts' text, not only their SHA-256")
    add("--bill-answers", action="store_true", help="put the whole text of each answer on the bill")
    add("--redirect-to", default=defaults.redirect_to, help="where the redirect switch points")
    add("--tls-cert", type=Path)
    add("--tls-key", type=Path)
    add("--switch", action="append", default=[], metavar="NAME[:PROBABILITY[:COUNT]]", help="may be given often")
    add("--exit-with-parent", action="store_true", help="stop when standard input closes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
