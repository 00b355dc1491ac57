"""What ends the start of an engine's own process is told here, in words that an operator can act on."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from node.catalogue import LocalModel
from node.errors import EngineUnavailable, SettingsError, SpillwayError
from node.local.arguments import failures_named

_DEMO = LocalModel(
    source=str(Path(__file__).resolve().parents[2] / "models" / "demo"),
    revision=None,
    context_tokens=4096,
    capabilities=frozenset(),
)
_FROM_THE_HUB = replace(_DEMO, source="org/model")
_SEE_ABOVE = "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}"

# As vLLM's process does it, whose own logging configuration has taken away every handler.
_FAILING = """
import logging, sys
from node.local.root_cause import note_failures
note_failures()
log = logging.getLogger("vllm.v1.engine.core")
log.addHandler(logging.NullHandler())
log.propagate = False
try:
    raise {kind}({words!r})
except Exception:
    log.exception({said!r})
"""


def _start(model: LocalModel, *failures: tuple[str, ...], raised: str = _SEE_ABOVE) -> None:
    """A start that fails: each of `failures` in a process of its own, (class, words, what vLLM says of it)."""
    with failures_named("demo", model):
        for kind, words, *said in failures:
            (line,) = said or ("EngineCore failed to start.",)
            code = _FAILING.format(kind=kind, words=words, said=line)
            subprocess.run([sys.executable, "-c", code], check=True)
        raise RuntimeError(raised)


def _told(model: LocalModel, *failures: tuple[str, ...], raised: str = _SEE_ABOVE) -> SpillwayError:
    with pytest.raises((SettingsError, EngineUnavailable)) as told:
        _start(model, *failures, raised=raised)
    return told.value


def test_cache_too_small_for_the_context_is_a_settings_error_with_its_remedy() -> None:
    words = (
        "To serve at least one request with the model's max seq len (4096), (1.5 GiB KV cache is needed, which is "
        "larger than the available KV cache memory (0.25 GiB). Based on the available memory, the estimated maximum "
        "model length is 640. Try increasing `gpu_memory_utilization` or decreasing `max_model_len` when initializing."
    )
    error = _told(_FROM_THE_HUB, ("ValueError", words))
    assert isinstance(error, SettingsError)
    assert error.message == (
        "demo: context_tokens: 4096 tokens need 1.5 GiB of KV cache, and there are 0.25 GiB; set context_tokens lower "
        "(up to 640 fit), or give the engine more memory: engine_args.gpu_memory_utilization or kv_cache_memory_bytes"
    )


def test_no_memory_at_all_for_the_cache_is_a_settings_error_too() -> None:
    error = _told(_DEMO, ("ValueError", "No available memory for the cache blocks. Try increasing things."))
    assert isinstance(error, SettingsError)
    assert "no memory left for the KV cache, or give the engine more memory" in error.message


def test_argument_that_only_the_worker_refuses_is_named() -> None:
    model = replace(_DEMO, engine_args={"attention_backend": "TRITON_ATTN"})
    words = "Attention backend TRITON_ATTN is not supported here."
    error = _told(model, ("ValueError", words, "WorkerProc failed to start."))
    assert isinstance(error, SettingsError)
    assert error.message == "demo: engine_args.attention_backend: Attention backend TRITON_ATTN is not supported here"


def test_the_workers_failure_is_the_cause_of_the_cores() -> None:
    error = _told(
        _DEMO,
        ("RuntimeError", "CUDA error: device-side assert triggered", "WorkerProc failed to start."),
        ("Exception", "WorkerProc initialization failed due to an exception in a background process."),
    )
    assert isinstance(error, EngineUnavailable)
    assert error.message == "demo: the engine did not start: RuntimeError: CUDA error: device-side assert triggered"


def test_memory_that_others_hold_may_come_back_and_is_tried_for_again() -> None:
    model = replace(_DEMO, engine_args={"gpu_memory_utilization": 0.9})
    words = (
        "Free memory on device cuda:0 (3.1/80.0 GiB) on startup is less than desired GPU memory utilization (0.9, 72.0 "
        "GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
    )
    error = _told(model, ("ValueError", words))
    assert isinstance(error, EngineUnavailable)
    assert "3.1/80.0 GiB" in error.message


def test_what_may_have_been_the_network_is_tried_again() -> None:
    error = _told(_FROM_THE_HUB, ("ValueError", "cannot read the shards"))
    assert isinstance(error, EngineUnavailable)
    assert error.message == "demo: the engine did not start: ValueError: cannot read the shards"


def test_process_that_the_kernel_killed_says_nothing_and_is_told_of() -> None:
    error = _told(_DEMO, raised="Engine core initialization failed. Failed core proc(s): {'EngineCore_DP0': -9}")
    assert isinstance(error, EngineUnavailable)
    assert "ended by SIGKILL, as the kernel does when memory runs out" in error.message


def test_exceptions_that_end_nothing_are_not_the_cause() -> None:
    with pytest.raises(RuntimeError, match="See root cause above"):
        _start(_DEMO, ("ValueError", "no such plugin", "Failed to load plugin x"))
