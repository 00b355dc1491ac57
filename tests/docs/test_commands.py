"""What counts as a mistake in a command that a page shows."""

from __future__ import annotations

import pytest

from tests.docs.commands import mistakes_in


@pytest.mark.parametrize(
    "line",
    [
        "scripts/demo --seconds 28 --no-hold --json=day.json",
        "scripts/lint --fix",
        "scripts/bench/policy --requests 2000 --quick",
        "spillway usage --by key day | sort && scripts/lint",
        "A=1 sudo .venv/bin/spillway audit prove; cat --nonsense",
        "curl 'http://127.0.0.1:8000/?a;b|c' --nonsense  # spillway nonsense",
    ],
)
def test_right_commands_and_those_of_others_are_taken(line: str) -> None:
    assert mistakes_in(line) is None


@pytest.mark.parametrize(
    "line",
    [
        "scripts/demo --nonsense",
        "scripts/lint --nonsense --fix",
        "scripts/demo --fix",
        "scripts/nonsense",
        "echo 1 | spillway nonsense",
        "cd there && spillway usage --nonsense",
        "true; scripts/demo --nonsense",
        "true;spillway nonsense",
        "if spillway nonsense; then true; fi",
    ],
)
def test_mistake_is_found_wherever_in_the_line_it_is(line: str) -> None:
    assert mistakes_in(line) is not None
