"""From a catalogue entry to vLLM's arguments and environment. Nothing here starts anything.

vLLM reads many switches from the environment when it is imported, so `environment()` must be applied first.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from node.catalogue import LocalModel
from node.errors import EngineUnavailable, SettingsError, SpillwayError
from node.local import root_cause
from node.local.root_cause import RootCause

# Set from the catalogue's own fields, so that what routing believes and what the engine does cannot differ.
_OURS = {
    "model": "source",
    "revision": "revision",
    "served_model_name": "the model's name",
    "max_model_len": "context_tokens",
    "tool_call_parser": "tool_parser",
    "enable_auto_tool_choice": "tool_parser",
    "reasoning_parser": "reasoning_parser",
}
_FORCED = ("disable_log_stats", "enable_log_requests", "enable_log_outputs", "enable_logging_iteration_details")
_LOAD_FORMATS = ("safetensors", "dummy")
_INSECURE_SWITCHES = ("VLLM_ALLOW_INSECURE_SERIALIZATION", "VLLM_SERVER_DEV_MODE")
# RFC 2606 reserves .invalid: no URL can be in this domain, so vLLM itself refuses to fetch media, whatever reaches it.
_NO_MEDIA_DOMAIN = "media.invalid"
# vLLM itself would take most of the machine's memory. An operator's VLLM_CPU_KVCACHE_SPACE goes before it.
_KV_BYTES_ON_CPU = 1 << 30
_REFUSALS = frozenset({"ValueError", "TypeError", "NotImplementedError", "StrictDataclassError"})
# vLLM's words (kv_cache_utils.py; the workers' utils.py and cpu_worker.py).
_NO_ROOM_FOR_KV = ("KV cache is needed, which is larger", "No available memory for the cache blocks")
_TAKEN_BY_OTHERS = ("used by other processes",)


def environment(model: LocalModel, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables to set before vLLM is imported; the operator's own choices in `environ` win where they may.

    Child processes are spawned, not forked: a fork from a serving process would inherit its listening sockets and
    may deadlock on a lock another thread holds. Raises `SettingsError` for the two switches that open vLLM to
    remote code and to development endpoints.
    """
    for switch in _INSECURE_SWITCHES:
        if environ.get(switch, "0").strip().lower() not in ("", "0", "false"):
            raise SettingsError(f"environment: {switch} is set, and Spillway does not start with it; unset it")
    wanted = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn", "VLLM_LOGGING_LEVEL": "WARNING"}
    chosen = {key: value for key, value in wanted.items() if key not in environ}
    chosen |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if is_folder(model):
        chosen |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return chosen


def is_folder(model: LocalModel) -> bool:
    """Whether the weights lie on this machine, so that nothing has to be fetched."""
    return Path(model.source).is_absolute()


def is_self_contained(model: LocalModel) -> bool:
    """Whether the engine needs no other machine to start: nothing to fetch, and no cluster to be part of."""
    return is_folder(model) and model.engine_args.get("distributed_executor_backend") != "ray"


def cuda_available() -> bool:
    """Whether torch can use a CUDA device here. Imports torch."""
    import torch

    return bool(torch.cuda.is_available())


def check_torchvision() -> None:
    """Refuse a torchvision that does not match this torch, because importing transformers would then fail obscurely.

    The CPU build of vLLM asks for torchvision, and installers commonly find its CUDA build. Text models need none.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:
        raise SettingsError(
            f"torchvision is installed but does not fit this torch ({error}); "
            "remedy: pip uninstall torchvision torchaudio torchcodec"
        ) from error


def command_line(name: str, model: LocalModel, *, cuda: bool) -> list[str]:
    """The arguments `vllm serve` would be started with for `model`, served as `name`.

    Raises `SettingsError` when `engine_args` holds something that another field decides, or that is unsafe.
    """
    given = dict(model.engine_args)
    for key, field in _OURS.items():
        if key in given:
            raise SettingsError(f"{name}: engine_args.{key}: set by {field}")
    for key in _FORCED:
        if key in given:
            raise SettingsError(f"{name}: engine_args.{key}: Spillway decides this itself")
    if given.get("trust_remote_code"):
        raise SettingsError(f"{name}: engine_args.trust_remote_code: code from a model repository is never run")
    if given.setdefault("load_format", "safetensors") not in _LOAD_FORMATS:
        raise SettingsError(f"{name}: engine_args.load_format: only safetensors weights are loaded")
    if not cuda:
        # bfloat16 kernels use AMX instructions, which not every virtual CPU that claims them can run (SIGILL).
        given.setdefault("dtype", "float32")
        given.setdefault("kv_cache_memory_bytes", _KV_BYTES_ON_CPU)
    given.setdefault("allowed_media_domains", [_NO_MEDIA_DOMAIN])
    ours: dict[str, Any] = {
        "model": model.source,
        "served_model_name": name,
        "max_model_len": model.context_tokens,
        "disable_log_stats": True,
        "enable_logging_iteration_details": True,
    }
    if model.revision is not None:
        ours |= {"revision": model.revision, "tokenizer_revision": given.pop("tokenizer_revision", model.revision)}
    if model.tool_parser is not None:
        ours |= {"tool_call_parser": model.tool_parser, "enable_auto_tool_choice": True}
    if model.reasoning_parser is not None:
        ours["reasoning_parser"] = model.reasoning_parser
    return [word for key, value in (ours | given).items() for word in _words(key, value)]


def _words(key: str, value: Any) -> list[str]:
    flag = key.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, list | tuple):
        return [f"--{flag}", *(item if isinstance(item, str) else json.dumps(item) for item in value)]
    return [f"--{flag}", json.dumps(value) if isinstance(value, Mapping) else str(value)]


def parse(name: str, words: list[str]) -> Namespace:
    """vLLM's own reading of `words`. Imports vLLM. Raises `SettingsError` where its parser would exit."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> NoReturn:
            raise SettingsError(f"{name}: engine_args: {message}")

    # Without abbreviations, which would slip past the names checked above.
    namespace: Namespace = make_arg_parser(Parser(allow_abbrev=False)).parse_args(words)
    return namespace


@contextmanager
def refusals_named(name: str, model: LocalModel) -> Iterator[None]:
    """Turns what vLLM says inside the block against arguments that its parser took into a `SettingsError`.

    Only what would be said again at the next attempt: where the model lies on this machine, or what was said names an
    argument that was given. Else it may have been the network. Imports what vLLM itself needs.
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (ValueError, TypeError, NotImplementedError, StrictDataclassError) as error:
        refusal = _refusal(name, model, *_said(error))
        if refusal is None:
            raise
        raise refusal from error


@contextmanager
def failures_named(name: str, model: LocalModel) -> Iterator[None]:
    """Tells what ends the start of the engine's own processes inside the block, which only they know.

    Raises `SettingsError` where it would end the next start too, and `EngineUnavailable` else.
    """
    with root_cause.noted() as path:
        try:
            yield
        except RuntimeError as error:
            cause = root_cause.read(path, str(error))
            if cause is None:
                raise
            raise _from_cause(name, model, cause) from error


def _from_cause(name: str, model: LocalModel, cause: RootCause) -> SpillwayError:
    if any(words in cause.words for words in _NO_ROOM_FOR_KV):
        return SettingsError(f"{name}: {_too_little_kv(cause.words)}")
    # Of memory that others hold now: they may let go of it.
    passes = any(words in cause.words for words in _TAKEN_BY_OTHERS)
    if not passes and _REFUSALS.intersection(cause.kinds):
        refusal = _refusal(name, model, None, cause.words)
        if refusal is not None:
            return refusal
    return EngineUnavailable(f"{name}: the engine did not start: {cause}")


def _too_little_kv(words: str) -> str:
    """What vLLM says of too small a KV cache, with what can be done about it here."""
    found = re.search(r"\((\d+)\), \(([\d.]+) GiB KV cache is needed.*memory \(([\d.]+) GiB\)", words)
    if found is None:
        said = "engine_args: the device has no memory left for the KV cache"
    else:
        said = (
            f"context_tokens: {found[1]} tokens need {found[2]} GiB of KV cache, and there are {found[3]} GiB; set "
            "context_tokens lower"
        )
        if fits := re.search(r"maximum model length is (\d+)", words):
            said += f" (up to {fits[1]} fit)"
    return f"{said}, or give the engine more memory: engine_args.gpu_memory_utilization or kv_cache_memory_bytes"


def _refusal(name: str, model: LocalModel, named: str | None, words: str) -> SettingsError | None:
    """The error for arguments that vLLM refuses in `words`; None if the next attempt may go another way."""
    field = _blamed(model, named, words)
    if field is None and not is_folder(model):
        return None
    return SettingsError(f"{name}: {field or 'engine_args'}: {words.rstrip('.')}")


def _said(error: Exception) -> tuple[str | None, str]:
    """The argument that `error` itself names, and its message in one line."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        # Not str(error): that has the values of all the others in it too, and a link.
        first = error.errors(include_url=False, include_input=False)[0]
        named = next((part for part in first["loc"] if isinstance(part, str)), None)
        return named, " ".join(first["msg"].removeprefix("Value error, ").split())
    return getattr(error, "parameter", None), " ".join(str(error).split())


def _blamed(model: LocalModel, named: str | None, words: str) -> str | None:
    """The catalogue's field for the argument that vLLM complains of; by its name, its name in words, or its value."""
    ours = {key: field for key, field in _OURS.items() if "_" in key}
    fields = ours | {key: f"engine_args.{key}" for key in model.engine_args}
    if named in fields:
        return fields[named]
    text = f" {re.sub(r'[^a-z0-9]+', ' ', words.lower())} "
    found = {key: at for key in fields if (at := text.find(f" {key.replace('_', ' ')} ")) >= 0}
    if found:
        return fields[min(found, key=lambda key: found[key])]
    for key, value in model.engine_args.items():
        if isinstance(value, str) and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", words):
            return fields[key]
    return None
