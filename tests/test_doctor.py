"""`spillway doctor` names what is wrong, and what to do about it."""

from pathlib import Path

import pytest

from node import cli
from node.doctor import examine
from node.settings import ProviderSettings, Settings


def report(settings: Settings, environ: dict[str, str] | None = None, *, configured: bool = True) -> tuple[int, str]:
    lines: list[str] = []
    code = examine(settings, lines.append, environ or {}, configured=configured)
    return code, "\n".join(lines)


def test_default_settings_can_serve_and_say_that_the_cloud_is_emulated() -> None:
    code, text = report(Settings(), configured=False)
    assert code == 0
    assert "model demo" in text
    assert "emulator" in text
    assert "sqlite" in text


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
