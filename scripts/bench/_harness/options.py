"""What every bench has in common as a program: its options and its exit codes."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from _harness.process import CannotRun, end_on_sigterm
from node.progress import Progress


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with --quick, --json, --check and --envs; a bench adds its own options to it."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--quick", action="store_true", help="fewer, shorter rounds: under three minutes")
    made.add_argument("--json", type=Path, metavar="FILE", help="also write every figure to FILE")
    made.add_argument("--check", action="store_true", help="exit 1, naming the bar, when one is missed")
    made.add_argument(
        "--envs",
        type=Path,
        metavar="DIR",
        default=default_environments(),
        help="where the virtual environments of the compared programs live (default: %(default)s)",
    )
    return made


def default_environments() -> Path:
    """Outside the repository, so that a fresh clone finds again what an earlier run has installed."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "spillway-bench"


def main(run: Callable[[], int]) -> int:
    """The exit code of a bench: what `run` returns, 2 when it cannot run here, 130 when interrupted."""
    end_on_sigterm()
    # Lines, on a terminal too: a bench prints its own between them.
    try:
        with Progress(Path(sys.argv[0]).name.removeprefix("_").removesuffix(".py"), bar=False):
            return run()
    except CannotRun as raised:
        print(raised, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
