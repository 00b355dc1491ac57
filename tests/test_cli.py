"""What keeps the node from starting is said in one line, and names what to change."""

import argparse
import socket
import subprocess
import sys
from collections.abc import Iterator
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


def test_row_67_model_that_is_not_there_keeps_the_node_from_starting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalogue = tmp_path / "models"
    catalogue.mkdir()
    (catalogue / "gone.yaml").write_text(
        "name: gone\nsummary: gone\nlocal: {source: ./gone, context_tokens: 512, capabilities: []}\n"
    )
    config = tmp_path / "spillway.yaml"
    config.write_text(f"models: [gone]\ncatalogue: [{catalogue}]\n")
    assert "neither a hub id nor a folder" in refusal(["--config", str(config)], capsys)
    (catalogue / "gone").mkdir()
    assert "'gone': there is no model in " in refusal(["--config", str(config)], capsys)


def test_row_67_bad_settings_and_a_port_in_use_keep_the_node_from_starting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "spillway.yaml"
    config.write_text("supervision: {stall_s: 0}")
    assert "supervision.stall_s: " in refusal(["--config", str(config)], capsys)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert "Is another node running?" in refusal(["--port", port], capsys)


def test_reader_that_has_seen_enough_ends_a_command_without_a_word(tmp_path: Path) -> None:
    settings = tmp_path / "spillway.yaml"
    settings.write_text(f"store: {{folder: {tmp_path / 'data'}}}\ncloud_only: true\n")
    command = [sys.executable, "-m", "node.cli", "doctor", "--config", str(settings)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(60) == 1
        assert process.stderr is not None
        assert process.stderr.read() == b""


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """It, and all below it."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from commands(each)


def test_help_names_every_option_that_a_command_takes_and_wants_no_action_that_it_does_not() -> None:
    told = {each.prog: each for each in commands(cli._parser())}
    assert {"spillway usage reconcile", "spillway ledger backup", "spillway keys create"} <= told.keys()
    for name, parser in told.items():
        hidden = [action.dest for action in parser._actions if action.help is argparse.SUPPRESS]
        assert (name, hidden) == (name, [])
        actions = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
        wants = [line for line in parser.format_usage().splitlines() if line.endswith(" ...")]
        assert (name, bool(wants)) == (name, any(each.required for each in actions))
