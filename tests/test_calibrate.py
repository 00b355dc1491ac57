"""`spillway calibrate` without an engine: what it would drive one with, and what it refuses before starting one."""

import asyncio
from pathlib import Path

import pytest

from node.calibrate import Cell, drive, plan
from node.cli import main
from node.simulate.profiles import find_profile


class FakeDrive:
    """Takes a millisecond a prompt, and notes what it was given and how many were there at once."""

    vocabulary_size = 100

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.prompts: list[list[int]] = []
        self.here = 0
        self.most = 0

    async def generate(self, prompt: list[int], output_tokens: int) -> None:
        if self.fails:
            raise RuntimeError("the engine has died")
        self.prompts.append(prompt)
        self.here += 1
        self.most = max(self.most, self.here)
        try:
            await asyncio.sleep(0.001)
        finally:
            self.here -= 1


def test_shipped_cpu_profile_is_measured() -> None:
    assert find_profile("cpu-demo").source.startswith("Measured by `spillway calibrate`")


@pytest.mark.parametrize("context_tokens", [8, 512, 4096, 131_072])
@pytest.mark.parametrize("sequences", [1, 3, 64])
def test_everything_planned_fits_the_engine(sequences: int, context_tokens: int) -> None:
    cells = plan(sequences, context_tokens)
    assert {cell.sequences for cell in cells} >= {1, sequences}
    assert len({cell.prompt_tokens for cell in cells}) >= (3 if context_tokens > 8 else 1)
    for cell in cells:
        assert 1 <= cell.sequences <= sequences
        assert cell.prompt_tokens * 3 // 2 + cell.output_tokens * 3 // 2 <= context_tokens


def test_prompts_are_as_long_as_asked_for_and_at_most_a_quarter_of_the_context() -> None:
    assert {cell.prompt_tokens for cell in plan(64, 4096, 100)} == {25, 100, 200}
    assert {cell.prompt_tokens for cell in plan(64, 4096, 5000)} == {256, 1024, 2048}


async def test_each_cell_keeps_as_many_sequences_going_as_it_says_and_leaves_none() -> None:
    engine, told = FakeDrive(), list[tuple[float, str]]()
    cells = [Cell(1, 10, 4), Cell(5, 20, 4)]
    await drive(engine, cells, seconds=0.2, seed=1, tell=lambda share, what: told.append((share, what)))
    assert (engine.most, engine.here) == (5, 0)
    assert [share for share, _ in told] == [0.0, 0.5, 1.0]
    assert all(0 <= token < 100 for prompt in engine.prompts for token in prompt)
    assert {len(prompt) for prompt in engine.prompts} <= set(range(5, 31))


async def test_an_engine_that_dies_ends_it_at_once() -> None:
    with pytest.raises(RuntimeError, match="died"):
        await drive(FakeDrive(fails=True), [Cell(2, 10, 4)], seconds=60, seed=1, tell=lambda share, what: None)


async def test_cancelled_it_leaves_no_sequence_behind() -> None:
    engine = FakeDrive()
    driving = asyncio.create_task(drive(engine, [Cell(4, 10, 4)], seconds=60, seed=1, tell=lambda share, what: None))
    await asyncio.sleep(0.02)
    driving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await driving
    assert engine.here == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "nope"], "--model nope: not in the catalogue; it has"),
        (["-o", "nowhere/x.json"], "-o nowhere/x.json: cannot be written there"),
        (["-o", "x.yaml"], "-o x.yaml: expected NAME.json"),
        (["-o", "a b.json"], "-o a b.json: expected NAME.json"),
    ],
)
def test_what_would_fail_at_the_end_is_refused_at_the_start(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", *arguments]) == 1
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("seconds", ["0", "x", "nan", "1e9"])
def test_seconds_out_of_range_are_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["calibrate", "--seconds", seconds])
    assert "expected seconds from 1 to 3600" in capsys.readouterr().err
