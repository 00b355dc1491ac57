"""`spillway doctor` names what is wrong, and what to do about it."""

import sqlite3
import subprocess
from pathlib import Path

import msgspec
import pytest

from node import cli
from node.doctor import examine
from node.local.orphans import EngineNote, notes_folder
from node.local.processes import EngineProcess, start_ticks
from node.settings import ProviderSettings, Settings, StoreSettings
from node.store.schema import State
from tests.store.rows import cloud_row, ledger, row


def report(settings: Settings, environ: dict[str, str] | None = None, *, configured: bool = True) -> tuple[int, str]:
    lines: list[str] = []
    code = examine(settings, lines.append, environ or {}, configured=configured)
    return code, "\n".join(lines)


def test_default_settings_can_serve_and_say_that_the_cloud_is_emulated() -> None:
    code, text = report(Settings(), configured=False)
    assert code == 0
    assert "model demo" in text
    assert "emulator" in text
    assert "ledger: " in text


def test_unknown_model_is_bad_and_the_known_ones_are_listed() -> None:
    code, text = report(Settings(models=("gpt-9",)))
    assert code == 1
    assert "bad   model gpt-9: not in the catalogue" in text
    assert "demo" in text


def test_provider_without_its_key_is_bad() -> None:
    provider = ProviderSettings(base_url="https://api.example.invalid/v1", api_key_env="NO_SUCH_KEY")
    code, text = report(Settings(providers={"acme": provider}))
    assert code == 1
    assert "NO_SUCH_KEY is not set" in text


def test_provider_that_cannot_be_reached_is_bad() -> None:
    provider = ProviderSettings(base_url="http://127.0.0.1:9/v1")
    code, text = report(Settings(providers={"acme": provider}))
    assert code == 1
    assert "bad   provider acme" in text


def test_a_file_without_providers_means_that_nothing_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HOLYSHEEP_API_KEY", raising=False)
    config = tmp_path / "spillway.yaml"
    config.write_text("models: [demo]")
    assert cli.main(["doctor", "--config", str(config)]) == 0
    said = capsys.readouterr().out
    assert "nothing ever leaves the premises" in said
    assert "emulator" not in said


def test_cloud_only_without_a_provider_is_bad() -> None:
    code, text = report(Settings(cloud_only=True))
    assert code == 1
    assert "bad   model demo: no engine here, and no provider of its cloud equivalents is configured" in text
    assert "holysheep, openai" in text


def test_model_that_is_not_on_this_machine_will_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    _, text = report(Settings(models=("qwen3-8b",)))
    assert "note  model qwen3-8b" in text
    assert "will be downloaded" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"max_num_seqs": "many"}, "engine.demo.max_num_seqs: expected a whole number of at least 1, got 'many'"),
        ({"gpu_mem": 0.5}, "engine.demo.gpu_mem: vLLM has no such engine argument"),
        ({"trust_remote_code": True}, "engine.demo.trust_remote_code: code from a model repository is never run"),
        ({"block_size": "wide"}, "argument --block-size: invalid"),
    ],
)
def test_engine_arguments_that_serve_would_refuse_are_bad(arguments: dict[str, object], said: str) -> None:
    code, text = report(Settings(engine={"demo": arguments}))
    assert code == 1
    assert said in text


def test_ledger_that_is_still_to_come_is_not_made(tmp_path: Path) -> None:
    code, text = report(Settings(store=StoreSettings(folder=str(tmp_path / "data"))))
    assert code == 0
    assert f"ok    ledger: {tmp_path}/data/ledger.db, SQLite {sqlite3.sqlite_version}: begins with the first" in text
    assert not (tmp_path / "data").exists()


def test_ledger_that_opens_and_calls_that_were_lost_in_it(tmp_path: Path) -> None:
    settings = Settings(store=StoreSettings(folder=str(tmp_path)))
    with ledger(tmp_path, row()):
        assert f"ok    ledger: {tmp_path}/ledger.db" in report(settings)[1]
    (tmp_path / "two").mkdir()
    with ledger(tmp_path / "two", cloud_row(state=State.ORPHANED), row()):
        code, text = report(Settings(store=StoreSettings(folder=str(tmp_path / "two"))))
    assert code == 0
    assert "opens; 1 calls were out when a node died" in text
    assert "-> spillway usage reconcile" in text


def test_ledger_that_is_damaged_or_gone_is_bad(tmp_path: Path) -> None:
    settings = Settings(store=StoreSettings(folder=str(tmp_path)))
    (tmp_path / "ledger.db").write_bytes(b"not a database, " * 1000)
    code, text = report(settings)
    assert code == 1
    assert "bad   ledger: " in text
    assert "is damaged" in text
    (tmp_path / "ledger.db").unlink()
    (tmp_path / "ledger.id").write_text("x")
    code, text = report(settings)
    assert code == 1
    assert f"remove {tmp_path}/ledger.id" in text


def test_engine_processes_of_a_killed_node_are_named_and_left_alone(tmp_path: Path) -> None:
    folder = notes_folder({"XDG_RUNTIME_DIR": str(tmp_path)})
    with subprocess.Popen(["sleep", "600"]) as orphan:
        try:
            ticks = start_ticks(orphan.pid)
            assert ticks is not None
            EngineNote(folder, "demo").write(frozenset({EngineProcess(orphan.pid, ticks)}))
            environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
            assert "orphans" not in report(Settings(), environ)[1], "its node still runs"
            (path,) = folder.iterdir()
            note = msgspec.json.decode(path.read_bytes())
            note["node"]["start_ticks"] -= 1
            path.write_bytes(msgspec.json.encode(note))
            code, text = report(Settings(), environ)
            assert code == 0
            assert f"hold memory: {orphan.pid}" in text
            assert f"kill -9 {orphan.pid}" in text
            assert orphan.poll() is None
        finally:
            orphan.kill()
