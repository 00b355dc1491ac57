from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node.catalogue import LocalModel
from node.errors import SettingsError
from node.local.arguments import check_torchvision, command_line, environment, parse, refusals_named

MODEL = LocalModel(source="/models/demo", revision=None, context_tokens=2048, capabilities=frozenset())
DEMO = replace(MODEL, source=str(Path(__file__).resolve().parents[2] / "models" / "demo"))


def words(model: LocalModel, *, cuda: bool = False) -> str:
    return " ".join(command_line("demo", model, cuda=cuda))


def test_catalogue_fields_reach_the_engine() -> None:
    line = words(replace(MODEL, revision="abc", source="org/model", reasoning_parser="qwen3"))
    assert "--model org/model" in line
    assert "--served-model-name demo" in line
    assert "--max-model-len 2048" in line
    assert "--revision abc --tokenizer-revision abc" in line
    assert "--reasoning-parser qwen3" in line


def test_tools_are_automatic_once_a_parser_is_named() -> None:
    assert "--tool-call-parser hermes --enable-auto-tool-choice" in words(replace(MODEL, tool_parser="hermes"))
    assert "tool" not in words(MODEL)


def test_cpu_runs_float32_and_cuda_chooses_itself() -> None:
    assert "--dtype float32" in words(MODEL)
    assert "--dtype" not in words(MODEL, cuda=True)
    assert "--dtype bfloat16" in words(replace(MODEL, engine_args={"dtype": "bfloat16"}))


def test_engine_arguments_keep_their_types() -> None:
    given = {"max_num_seqs": 8, "enforce_eager": True, "enable_prefix_caching": False, "seed": None}
    nested = {"limit_mm_per_prompt": {"image": 2}, "lora_modules": ["a=/x", {"name": "b", "path": "/y"}]}
    line = words(replace(MODEL, engine_args=given | nested))
    assert "--max-num-seqs 8 --enforce-eager --no-enable-prefix-caching" in line
    assert '--limit-mm-per-prompt {"image": 2}' in line
    assert '--lora-modules a=/x {"name": "b", "path": "/y"}' in line
    assert "--seed" not in line


def test_media_is_never_fetched_and_only_safetensors_are_read() -> None:
    assert "--load-format safetensors" in words(MODEL)
    assert "--allowed-media-domains media.invalid" in words(MODEL)


@pytest.mark.parametrize(
    "given",
    [
        {"trust_remote_code": True},
        {"load_format": "pt"},
        {"model": "other/model"},
        {"max_model_len": 4096},
        {"enable_log_requests": True},
    ],
)
def test_unsafe_or_doubled_argument_is_refused_by_name(given: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=f"demo: engine_args.{next(iter(given))}"):
        words(replace(MODEL, engine_args=given))


@pytest.mark.parametrize("switch", ["VLLM_ALLOW_INSECURE_SERIALIZATION", "VLLM_SERVER_DEV_MODE"])
def test_insecure_vllm_switches_stop_the_start(switch: str) -> None:
    with pytest.raises(SettingsError, match=switch):
        environment(MODEL, {switch: "1"})
    environment(MODEL, {switch: "0"})


def test_nothing_is_reported_home_and_a_folder_needs_no_network() -> None:
    chosen = environment(MODEL, {})
    assert chosen["VLLM_NO_USAGE_STATS"] == chosen["DO_NOT_TRACK"] == chosen["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in environment(replace(MODEL, source="org/model"), {})


def test_cpu_cache_is_one_gibibyte_unless_the_catalogue_says_otherwise() -> None:
    def cache(given: dict[str, Any], *, cuda: bool) -> int | None:
        args = parse("demo", command_line("demo", replace(MODEL, engine_args=given), cuda=cuda))
        size: int | None = args.kv_cache_memory_bytes
        return size

    assert cache({}, cuda=False) == 1 << 30
    assert cache({"kv_cache_memory_bytes": 4 << 30}, cuda=False) == 4 << 30
    assert cache({}, cuda=True) is None


def test_vllm_reads_what_we_write() -> None:
    model = replace(MODEL, tool_parser="hermes", engine_args={"max_num_seqs": 8, "enforce_eager": True})
    args = parse("demo", command_line("demo", model, cuda=False))
    assert (args.max_num_seqs, args.enforce_eager, args.max_model_len) == (8, True, 2048)
    assert args.served_model_name == ["demo"]
    assert args.enable_auto_tool_choice
    assert args.disable_log_stats
    assert not args.enable_log_requests


def test_argument_unknown_to_vllm_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="no-such-thing"):
        parse("demo", command_line("demo", replace(MODEL, engine_args={"no_such_thing": 1}), cuda=False))


def test_abbreviated_argument_is_refused() -> None:
    with pytest.raises(SettingsError, match="demo: engine_args: unrecognized arguments: --gpu-mem"):
        parse("demo", command_line("demo", replace(MODEL, engine_args={"gpu_mem": 0.5}), cuda=False))


def test_torchvision_of_another_build_is_refused_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SettingsError, match="pip uninstall torchvision torchaudio torchcodec"):
        check_torchvision()


@pytest.mark.parametrize(
    ("context_tokens", "given", "field", "words"),
    [
        (512, {"max_num_seqs": 4, "max_num_batched_tokens": 2}, "engine_args.max_num_batched_tokens", "(2) must be"),
        (512, {"gpu_memory_utilization": 2.0}, "engine_args.gpu_memory_utilization", "less than or equal to 1"),
        (512, {"tensor_parallel_size": 3}, "engine_args.tensor_parallel_size", "must be divisible"),
        (512, {"quantization": "awq"}, "engine_args.quantization", "Cannot find the config file for awq"),
        (512, {"hf_overrides": {"num_hidden_layers": "x"}}, "engine_args", "expected int, got str"),
        (1_000_000, {}, "context_tokens", "greater than the derived max_model_len"),
    ],
)
def test_argument_that_only_the_engine_refuses_is_a_settings_error_that_names_it(
    context_tokens: int, given: dict[str, Any], field: str, words: str
) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    model = replace(DEMO, context_tokens=context_tokens, engine_args=given)
    args = parse("demo", command_line("demo", model, cuda=False))
    with pytest.raises(SettingsError) as refused, refusals_named("demo", model):
        AsyncEngineArgs.from_cli_args(args).create_engine_config()
    assert refused.value.message.startswith(f"demo: {field}: ")
    assert words in refused.value.message
    assert "\n" not in refused.value.message
    assert "errors.pydantic.dev" not in refused.value.message


def test_failure_that_names_no_argument_may_pass_where_weights_come_over_the_network() -> None:
    model = replace(DEMO, source="org/model", engine_args={"max_num_seqs": 4})
    with pytest.raises(ValueError, match="Invalid repository ID"), refusals_named("demo", model):
        raise ValueError("Invalid repository ID or local directory specified: 'org/model'")
