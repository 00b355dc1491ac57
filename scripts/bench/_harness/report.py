"""What a bench says at its end: the machine, tables, bars, one JSON file and the exit status."""

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Bar:
    """A promise with a number: `measured` must be at least (or at most) `limit`. Not measured is not met."""

    name: str
    measured: float | None
    limit: float
    unit: str
    at_least: bool

    @property
    def met(self) -> bool:
        if self.measured is None:
            return False
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        got = "not measured" if self.measured is None else f"{self.measured:.4g} {self.unit}"
        return f"{'met' if self.met else 'MISSED'}: {self.name}: {got} (bar: {sign} {self.limit:g} {self.unit})"


@dataclass(frozen=True)
class Machine:
    """Where the figures were taken; None is not known."""

    cpu: str | None
    cores: int
    memory_bytes: int
    kernel: str
    python: str
    load_average_1min: float

    def __str__(self) -> str:
        return (
            f"{self.cores} x {self.cpu or 'unknown CPU'}, {self.memory_bytes / 2**30:.0f} GiB, Linux {self.kernel}, "
            f"Python {self.python}, load {self.load_average_1min:.1f} at the start"
        )


def describe_machine() -> Machine:
    """This machine, read from /proc and the Python runtime."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return Machine(
        cpu=models[0] if models else None,
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
        python=platform.python_version(),
        load_average_1min=os.getloadavg()[0],
    )


def number(value: float | None, digits: int = 2) -> str:
    """A figure for a table: fixed digits, thousands apart, a dash for what is not known."""
    return "-" if value is None else f"{value:,.{digits}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that also reads well in a terminal: first column to the left, figures to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = "|".join([f"-{'-' * widths[0]}-", *(f"-{'-' * width}:" for width in widths[1:])])
    return "\n".join([line(header), f"|{rule}|", *(line(row) for row in rows)])


def finish(
    bars: Sequence[Bar], *, check: bool, json_path: Path | None, machine: Machine, figures: dict[str, Any]
) -> int:
    """Prints the bars, writes the JSON file if one is asked for, and gives the exit status (1: a bar was missed)."""
    for bar in bars:
        print(bar)
    if json_path is not None:
        document = {
            "machine": asdict(machine),
            **figures,
            "bars": [{**asdict(bar), "met": bar.met} for bar in bars],
        }
        json_path.write_text(json.dumps(document, indent=1) + "\n")
    missed = [bar.name for bar in bars if not bar.met]
    if check and missed:
        print(f"missed: {'; '.join(missed)}", file=sys.stderr)
        return 1
    return 0
