"""Whether a command that a page names is one: the program, its subcommands, its options."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from node.cli import _parser
from tests.docs.pages import REPO

_ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")


_BETWEEN = frozenset({";", "&", "&&", "|", "||", "|&", "(", ")"})
_BEFORE = frozenset({"sudo", "time", "exec", "!", "{", "if", "then", "else", "while", "do"})


def mistakes_in(line: str) -> str | None:
    """What is wrong with a command of ours in a line; None for one that is right, and for one that is not ours."""
    found = (_mistakes_in_one(words) for words in _commands(line))
    return next((each for each in found if each is not None), None)


def _commands(line: str) -> Iterator[list[str]]:
    """The words of each command of a pipeline or a list."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if word in _BETWEEN:
            yield words
            words = []
        else:
            words.append(word)
    yield words


def _mistakes_in_one(words: list[str]) -> str | None:
    while words and (words[0] in _BEFORE or _ASSIGNMENT.fullmatch(words[0])):
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
    own = script.name.replace("-", "_")
    bodies = [
        script,
        *script.parent.glob(f"_{own}.py"),
        *script.parent.glob(f"_{own}/*.py"),
        *script.parent.glob("_harness/options.py"),
    ]
    known = {"--help"}.union(*(_options_in(each) for each in bodies))
    wrong = [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]
    return f"{name} has no option {wrong[0]}" if wrong else None


def _options_in(body: Path) -> set[str]:
    """The options that a script names: as a string in Python, as what is compared with in the shell."""
    text = body.read_text(encoding="utf-8")
    shell = text.startswith("#!/usr/bin/env bash")
    if shell:
        return set(re.findall(r"= (--[a-z-]+)", text))
    negated = re.findall(r'"--([a-z-]+)", action=argparse.BooleanOptionalAction', text)
    return {*re.findall(r'"(--[a-z-]+)"', text), *(f"--no-{each}" for each in negated)}
