"""The option that says which settings a command goes by."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_config(command: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add ``--config``. `argparse.SUPPRESS` as `default`: what was given before the command's name holds."""
    command.add_argument(
        "--config",
        type=Path,
        default=default,
        metavar="FILE",
        help="settings (default: $SPILLWAY_CONFIG, else ./spillway.yaml if there)",
    )
