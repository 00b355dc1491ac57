"""What only a GPU can show: the real NVML, the engine on CUDA, and that its memory comes back.

For each model: seconds from start to ready, time to first token alone and under load, seconds until an aborted request
has left the engine, seconds from killing the engine's processes until the node knows, and seconds until the memory
is back. Exits 1 naming every check that failed.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from node.backend import Call, Kind
from node.catalogue import LocalModel
from node.catalogue_files import default_models_dir, load_catalogue
from node.errors import SettingsError, SpillwayError
from node.local.backend import LocalBackend
from node.local.engine import LocalEngine
from node.routing.values import EngineState
from node.watch.nvml import NvmlReader
from node.watch.values import free_bytes_for

_MIB = 1 << 20
_ABORT_WITHIN_S = 1.0
_MEMORY_BACK_WITHIN_S = 30.0
_MEMORY_SLACK_BYTES = 512 * _MIB  # the driver's own bookkeeping, and what the desktop took meanwhile
# The shape of Qwen3-8B, so that timings are those of the real model; the weights are random.
_EIGHT_B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "vocab_size": 151936,
    "torch_dtype": "bfloat16",
    "eos_token_id": 2,
}


class Report:
    """Figures and failed checks."""

    def __init__(self) -> None:
        self.figures: dict[str, dict[str, float | None]] = {}
        self.failed: list[str] = []

    def figure(self, model: str, name: str, value: float | None) -> None:
        self.figures.setdefault(model, {})[name] = value
        print(f"  {name}: {'unknown' if value is None else f'{value:.3f}'}", flush=True)

    def check(self, good: bool, what: str) -> None:
        if not good:
            self.failed.append(what)
            print(f"  FAILED: {what}", flush=True)


def _call(number: int, max_tokens: int) -> Call:
    return Call(
        request_id=f"check-{number}",
        kind=Kind.CHAT,
        model="check",
        body={
            "messages": [{"role": "user", "content": f"Tell me about number {number}."}],
            "ignore_eos": True,
            "max_tokens": max_tokens,
        },
        stream=True,
        include_usage=False,
        max_output_tokens=max_tokens,
        created_s=int(time.time()),
        tenant="check",
    )


async def _ttft_s(engine: LocalEngine, number: int, max_tokens: int) -> float:
    began = time.monotonic()
    first: float | None = None
    async with aclosing(LocalBackend(engine).open(_call(number, max_tokens))) as chunks:
        async for chunk in chunks:
            if chunk.has_content and first is None:
                first = time.monotonic() - began
    if first is None:
        raise SpillwayError("an answer without content")
    return first


async def _until(condition: Callable[[], bool], within_s: float) -> float | None:
    began = time.monotonic()
    while time.monotonic() - began < within_s:
        if condition():
            return time.monotonic() - began
        await asyncio.sleep(0.02)
    return None


async def _check(name: str, model: LocalModel, free_bytes: Callable[[], int | None], report: Report) -> None:
    print(f"{name}: {model.source}", flush=True)
    before = free_bytes()
    engine = LocalEngine("check", model, on_progress=lambda line: print(f"  {line}", flush=True))
    began = time.monotonic()
    await engine.start()
    report.figure(name, "start to ready, s", time.monotonic() - began)
    loaded = free_bytes()
    if before is not None and loaded is not None:
        report.figure(name, "VRAM taken, GiB", (before - loaded) / (1024 * _MIB))
        report.check(before - loaded > 256 * _MIB, f"{name}: NVML did not see the engine take memory")
    report.figure(name, "TTFT alone, s", await _ttft_s(engine, 0, 64))
    began = time.monotonic()
    ttfts = sorted(await asyncio.gather(*(_ttft_s(engine, number, 64) for number in range(1, 65))))
    report.figure(name, "64 at once: p50 TTFT, s", ttfts[32])
    report.figure(name, "64 at once: output tokens per s", 64 * 64 / (time.monotonic() - began))
    step = engine.load(engine.in_flight).step
    report.figure(name, "learned step with one sequence, s", step.step_s(1, 0) if step else None)
    report.figure(name, "learned step with 64 sequences, s", step.step_s(64, 0) if step else None)
    report.figure(name, "learned prefill, s per 1,000 tokens", 1000 * step.per_prefill_token_s if step else None)
    report.check(step is not None, f"{name}: no step model was learned")

    stream = LocalBackend(engine).open(_call(1000, 1000))
    await anext(stream)
    await stream.aclose()
    aborted_s = await _until(lambda: engine.in_flight == 0 and engine.load(0).running == 0, 10)
    report.figure(name, "abort to gone, s", aborted_s)
    report.check(aborted_s is not None and aborted_s <= _ABORT_WITHIN_S, f"{name}: an aborted request stayed")

    for process in engine.processes:
        os.kill(process.pid, signal.SIGKILL)
    noticed_s = await _until(lambda: engine.state is EngineState.DOWN, 10)
    report.figure(name, "kill to noticed, s", noticed_s)
    report.check(noticed_s is not None, f"{name}: the dead engine was not noticed")
    await engine.stop()
    if before is not None:
        baseline = before
        back_s = await _until(
            lambda: (free_bytes() or 0) >= baseline - _MEMORY_SLACK_BYTES,
            _MEMORY_BACK_WITHIN_S,
        )
        report.figure(name, "stop to memory back, s", back_s)
        report.check(back_s is not None, f"{name}: the memory did not come back")


def _eight_b(demo: LocalModel, folder: Path) -> LocalModel:
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(Path(demo.source) / file, folder)
    (folder / "config.json").write_text(json.dumps(_EIGHT_B))
    return LocalModel(
        source=str(folder),
        revision=None,
        context_tokens=8192,
        capabilities=frozenset(),
        engine_args={"load_format": "dummy", "max_num_seqs": 128},
    )


async def _run(options: argparse.Namespace) -> int:
    reader = NvmlReader()
    state = reader.read(time.monotonic())
    if not state.gpus and not options.allow_cpu:
        print(f"no GPU: {state.reason}. --allow-cpu tries the script itself out.", file=sys.stderr)
        return 2
    for gpu in state.gpus or ():
        print(f"GPU {gpu.index}: {gpu.name}, driver {state.driver_version}, {gpu.temperature_c} C, {gpu.power_w} W")

    def free_bytes() -> int | None:
        gpus = reader.read(time.monotonic()).gpus
        return free_bytes_for(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))

    report = Report()
    demo = load_catalogue([default_models_dir()]).models["demo"].local
    assert demo is not None
    models: list[tuple[str, LocalModel]] = [("demo", demo)]
    with tempfile.TemporaryDirectory(prefix="spillway-gpu-check-") as folder:
        if not options.demo_only:
            models.append(("8B-class, dummy weights", _eight_b(demo, Path(folder))))
        for name, model in models:
            await _check(name, model, free_bytes, report)
    reader.close()
    return _finish(report, options.json)


def _finish(report: Report, json_file: str | None) -> int:
    if json_file:
        document: dict[str, Any] = {"figures": report.figures, "failed": report.failed}
        Path(json_file).write_text(json.dumps(document, indent=2))
    for failed in report.failed:
        print(f"MISSED: {failed}")
    return 1 if report.failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo-only", action="store_true", help="leave out the 8B-class model (it takes 20 GiB)")
    parser.add_argument("--allow-cpu", action="store_true", help="go on without a GPU, to try the script out")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    try:
        return asyncio.run(_run(parser.parse_args()))
    except SettingsError as error:
        print(f"gpu-check: {error.message}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
