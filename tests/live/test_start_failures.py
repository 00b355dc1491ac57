"""What ends the start of the engine's own process is named by the node, and processes are not left behind."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from node.catalogue import LocalModel
from node.errors import EngineUnavailable, SettingsError
from node.local.engine import LocalEngine
from node.local.processes import descendants

pytestmark = pytest.mark.engine


async def test_context_that_does_not_fit_the_cache_is_a_settings_error_with_its_remedy(demo_model: LocalModel) -> None:
    before = descendants()
    cramped = {
        **demo_model.engine_args,
        "kv_cache_memory_bytes": 3 << 19,
    }  # of which vLLM keeps one block of 128 tokens
    engine = LocalEngine("demo", replace(demo_model, engine_args=cramped))
    with pytest.raises(
        SettingsError,
        match=r"demo: context_tokens: 512 tokens need .* GiB of KV cache.* set context_tokens lower .up to 256 fit",
    ):
        await engine.start()
    assert descendants() <= before


async def test_weights_that_only_the_worker_reads_are_named_when_they_are_damaged(
    demo_model: LocalModel, tmp_path: Path
) -> None:
    before = descendants()
    folder = shutil.copytree(demo_model.source, tmp_path / "damaged")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    engine = LocalEngine("demo", replace(demo_model, source=str(folder)))
    with pytest.raises(EngineUnavailable, match="demo: the engine did not start: SafetensorError: "):
        await engine.start()
    assert descendants() <= before
