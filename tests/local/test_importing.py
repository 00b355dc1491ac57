"""Importing vLLM, and starting the first engine, does not stop the event loop for full garbage collections."""

import gc
import sys
from types import ModuleType

import pytest

from node.local.importing import importing_vllm

_ENGINE = "vllm.v1.engine.async_llm"


def test_first_engine_is_built_without_full_collections_and_not_looked_at_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, _ENGINE, raising=False)
    before, full = gc.get_threshold(), gc.get_stats()[2]["collections"]
    try:
        with importing_vllm():
            kept = [[number] for number in range(300_000)]
            assert gc.get_stats()[2]["collections"] == full
        assert gc.get_freeze_count() >= len(kept)
    finally:
        gc.unfreeze()
    assert gc.get_threshold() == before


def test_later_engines_are_left_to_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, _ENGINE, ModuleType(_ENGINE))
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    with importing_vllm():
        assert gc.get_threshold() == before
    assert gc.get_freeze_count() == frozen
