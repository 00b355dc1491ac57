"""The cloud of a bench: the emulator as a process of its own, whose log and bill tell what left the node."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _harness.process import Service, free_port, running


@dataclass(frozen=True)
class Emulator:
    """The running emulator; both files hold one JSON document per line."""

    service: Service
    bill_file: Path
    log_file: Path

    def bill(self) -> list[dict[str, Any]]:
        """One record per call that was worked on, with its `cost_nano_usd`."""
        return [json.loads(line) for line in self.bill_file.read_text().splitlines()]

    def log(self) -> list[dict[str, Any]]:
        """One record per request that arrived, with its prompts."""
        return [json.loads(line) for line in self.log_lines()]

    def log_lines(self) -> list[str]:
        """One line per request that arrived, with its prompts."""
        return self.log_file.read_text().splitlines()


@contextmanager
def start_emulator(
    options: Sequence[str], *, api_key: str, directory: Path, port: int | None = None
) -> Iterator[Emulator]:
    """`python -m node.emulator`, with a bill and a log of prompts in `directory`, until the end of the with block.

    Started again in the same directory, it goes on with the same bill; `port` None takes a free one.
    """
    port = free_port() if port is None else port
    bill, log = directory / "bill.jsonl", directory / "log.jsonl"
    command = [sys.executable, "-m", "node.emulator", "--port", str(port), "--api-key", api_key]
    command += ["--bill", str(bill), "--log", str(log), "--log-prompts", *options]
    with running(
        "the emulator",
        command,
        url=f"http://127.0.0.1:{port}",
        ready_path="/emulator/bill",
        log=directory / "emulator.log",
        env={},
    ) as service:
        yield Emulator(service, bill, log)
