from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from node.catalogue import LocalModel
from node.local.starting import fetched_bytes, saying_so


def hub_model(source: str = "org/model") -> LocalModel:
    return LocalModel(source=source, revision="0" * 40, context_tokens=512, capabilities=frozenset(), engine_args={})


async def test_engine_that_takes_long_says_what_it_does_and_how_much_of_its_model_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = tmp_path / "models--org--model" / "blobs"
    blobs.mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    told: list[str] = []
    enough = asyncio.Event()

    def tell(line: str) -> None:
        told.append(line)
        (blobs / f"{len(told)}.incomplete").write_bytes(bytes(3 << 20))
        if len(told) == 3:
            enough.set()

    async with saying_so("demo", hub_model(), lambda: "importing vLLM", tell, lambda: 0.0, every_s=0.001):
        await asyncio.wait_for(enough.wait(), 30)
    assert told[0] == "demo: still importing vLLM, 0 s so far"
    assert told[1] == "demo: still importing vLLM, 0 s so far; 3 MiB of org/model are here"


async def test_start_goes_on_and_the_log_tells_when_what_it_does_cannot_be_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = asyncio.Event()

    def doing() -> str:
        asked.set()
        raise ZeroDivisionError("a bug")

    async with saying_so("demo", hub_model(str(tmp_path)), doing, print, lambda: 0.0, every_s=0.001):
        await asyncio.wait_for(asked.wait(), 30)
        await asyncio.sleep(0)
    assert "a bug" in caplog.text


def test_model_that_is_a_folder_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert fetched_bytes(hub_model(str(tmp_path))) == 0
    assert fetched_bytes(hub_model()) == 0
