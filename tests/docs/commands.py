"""Whether a command that a page names is one: the program, its subcommands, its options."""

from __future__ import annotations

import argparse
import os
import re
import shlex

from node.cli import _parser
from tests.docs.pages import REPO

_ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")


def mistakes_in(command: str) -> str | None:
    """What is wrong with a command of ours; None for one that is right, and for one that is not ours."""
    words = shlex.split(command, comments=True)
    while words and (words[0] == "sudo" or _ASSIGNMENT.fullmatch(words[0])):
        words.pop(0)
    if not words:
        return None
    if words[0] in ("spillway", ".venv/bin/spillway"):
        return _mistakes_of_spillway(words[1:])
    if words[0].startswith("scripts/"):
        return _mistakes_of_script(words[0], words[1:])
    return None


def _mistakes_of_spillway(words: list[str]) -> str | None:
    parser: argparse.ArgumentParser = _parser()
    for word in words:
        if word.startswith("-") and word != "-":
            if word.partition("=")[0] not in parser._option_string_actions:
                return f"`{parser.prog}` has no option {word}"
            continue
        below = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
        if below and word in below[0].choices:
            parser = below[0].choices[word]
        elif below and below[0].required:
            return f"`{parser.prog}` has no command {word!r}"
    return None


def _mistakes_of_script(name: str, words: list[str]) -> str | None:
    script = REPO / name
    if not script.exists():
        return f"there is no {name}"
    if script.is_dir() or not words or name.endswith((".yml", ".json")):
        return None
    if not os.access(script, os.X_OK):
        return f"{name} cannot be run"
    if name == "scripts/test":
        return None  # the options are pytest's
    if name == "scripts/serve":
        return _mistakes_of_spillway(["serve", *words])
    bodies = [
        script,
        *script.parent.glob(f"_{script.name.replace('-', '_')}.py"),
        *script.parent.glob("_harness/options.py"),
    ]
    text = "".join(each.read_text(encoding="utf-8") for each in bodies)
    wrong = [word for word in words if word.startswith("--") and word not in ("--help",) and f'"{word}"' not in text]
    return f"{name} has no option {wrong[0]}" if wrong and "--fix" not in wrong else None
