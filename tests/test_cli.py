"""What keeps the node from starting is said in one line, and names what to change."""

import socket
from pathlib import Path
from typing import NoReturn

import pytest

from node import cli


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["serve", "--port", "0", *arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith("spillway: ")
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("max_num_seqs: many", "engine.demo.max_num_seqs: expected a whole number of at least 1, got 'many'"),
        ("max_num_seqs: null", "engine.demo.max_num_seqs: expected a whole number of at least 1, got None"),
        ("max_num_seqs: true", "engine.demo.max_num_seqs: expected a whole number of at least 1, got True"),
        ("gpu_mem: 0.5", "engine.demo.gpu_mem: vLLM has no such engine argument"),
    ],
)
def test_engine_argument_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], engine: str, said: str
) -> None:
    config = tmp_path / "spillway.yaml"
    config.write_text(f"engine: {{demo: {{{engine}}}}}")
    assert said in refusal(["--config", str(config)], capsys)


def test_host_that_cannot_be_resolved_is_said_to_be_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(*where: object, **how: object) -> NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    said = refusal(["--host", "nosuchhost.invalid"], capsys)
    assert "--host nosuchhost.invalid: cannot be resolved: Name or service not known" in said
    monkeypatch.setenv("SPILLWAY_HOST", "nosuchhost.invalid")
    monkeypatch.setenv("SPILLWAY_API_KEY", "k")
    assert "listen.host: nosuchhost.invalid cannot be resolved" in refusal([], capsys)
