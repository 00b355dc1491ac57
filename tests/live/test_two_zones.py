"""A real engine, a provider on the premises and one in the cloud: while the engine stands still, and when it is dead.

One node for both tests, in this order: the second one kills its engine.
"""

import asyncio
import json
import os
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from node.emulator.server import Emulator
from node.local.processes import EngineProcess
from node.local.segments import segments_of
from tests.serve.node_process import NodeProcess, admin_port, emulated, until

pytestmark = pytest.mark.engine

_SOURCE = Path(__file__).resolve().parents[2] / "models" / "demo"
_MODEL = """
name: two
summary: The demo model, with an equivalent on the premises and one in the cloud.
local:
  source: {source}
  context_tokens: 512
  capabilities: []
  engine_args: {{enforce_eager: true, max_num_seqs: 4}}
cloud:
  - {{provider: near, model: deepseek-v3.2, context_tokens: 100000, capabilities: []}}
  - {{provider: far, model: deepseek-v3.2, context_tokens: 100000, capabilities: []}}
"""
_PRICES = """
provider: {name}
as_of: 2026-11-01
models: {{deepseek-v3.2: {{input_usd_per_mtok: {input_usd}, output_usd_per_mtok: {output_usd}}}}}
"""
# Between the two the balancer takes `far`; what may not go there has `near`.
_SETTINGS = """
listen: {{port: {port}}}
admin: {{port: {admin_port}}}
models: [two]
catalogue: [{folder}/models]
store: {{folder: {folder}/data}}
routing: {{hedge_share: 0.5, ttft_budget_ms: 1500}}
providers:
  near: {{base_url: "{near}", api_key_env: TEST_PROVIDER_KEY, zone: premises, assumed_ttft_s: 0.3}}
  far: {{base_url: "{far}", api_key_env: TEST_PROVIDER_KEY, weight: 1000, assumed_ttft_s: 0.3}}
"""


@dataclass
class TwoZones:
    """The node, what stands for its two providers, and where it notes its engine's processes."""

    node: NodeProcess
    near: Emulator
    far: Emulator
    folder: Path

    def engine(self) -> list[EngineProcess]:
        (path,) = (self.folder / "spillway").glob("*.json")
        return [EngineProcess(**each) for each in json.loads(path.read_text())["processes"]]

    def signal_engine(self, number: signal.Signals) -> None:
        for process in self.engine():
            os.kill(process.pid, number)

    async def ask(self, text: str, **more: Any) -> httpx.Response:
        body = {"model": "two", "messages": [{"role": "user", "content": text}], "max_tokens": 16, **more}
        async with httpx.AsyncClient(timeout=60) as client:
            return await client.post(f"{self.node.url}/v1/chat/completions", json=body)

    def rows(self, request_id: str) -> list[sqlite3.Row]:
        with closing(sqlite3.connect(f"file:{self.folder}/data/ledger.db?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            found = connection.execute("SELECT * FROM calls WHERE request_id = ? ORDER BY id", (request_id,))
            return list(found)


@pytest.fixture(scope="module")
async def two(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TwoZones]:
    folder = tmp_path_factory.mktemp("two")
    (folder / "models" / "prices").mkdir(parents=True)
    (folder / "models" / "two.yaml").write_text(_MODEL.format(source=_SOURCE))
    for name, input_usd, output_usd in (("near", 0, 0), ("far", 0.14, 0.42)):  # `far` as the emulator bills it
        prices = _PRICES.format(name=name, input_usd=input_usd, output_usd=output_usd)
        (folder / "models" / "prices" / f"{name}.yaml").write_text(prices)
    async with emulated(log_prompts=True) as near, emulated(log_prompts=True) as far:
        node = NodeProcess(far, folder)
        settings = _SETTINGS.format(
            port=node.port, admin_port=admin_port(node.port), folder=folder, near=near.base_url, far=far.base_url
        )
        node.config.write_text(settings)
        node.start(environ={"XDG_RUNTIME_DIR": str(folder)})
        try:
            await node.until_ready(within_s=300)
            yield TwoZones(node, near, far, folder)
        finally:
            node.kill()


async def test_copy_of_what_an_engine_that_stands_still_was_given_answers_and_both_are_in_the_ledger(
    two: TwoZones,
) -> None:
    here = await two.ask("well and idle", stream=True)
    assert here.headers["x-spillway-backend"] == "local"
    two.signal_engine(signal.SIGSTOP)
    try:
        answer = await two.ask("it stands still", stream=True)
        assert (answer.status_code, answer.headers["x-spillway-backend"]) == (200, "far")
        assert answer.headers["x-spillway-reason"] == "hedged"
        assert answer.text.endswith("data: [DONE]\n\n")
        # Stopped as it is, the engine has not finished it: it was taken back.
        assert (await two.node.stats())["engines"]["two"]["in_flight"] == 0
    finally:
        two.signal_engine(signal.SIGCONT)
    request_id = answer.headers["x-request-id"]
    await until(lambda: len(two.rows(request_id)) == 2 and all(row["ending"] for row in two.rows(request_id)))
    first, copy = two.rows(request_id)
    assert (first["backend"], first["parent_id"], first["ending"]) == ("local", None, "client_closed")
    assert first["charged_nano_usd"] == 0
    assert (copy["backend"], copy["parent_id"], copy["rule"]) == ("far", first["id"], "hedged")
    assert (copy["state"], copy["ending"]) == ("settled", "done")
    assert copy["charged_nano_usd"] == two.far.billed_nano_usd > 0
    again = await two.ask("well again", spillway={"require_local": True})
    assert (again.status_code, again.headers["x-spillway-backend"]) == (200, "local")


async def test_pinned_request_goes_to_the_provider_on_the_premises_while_the_engine_is_dead(two: TwoZones) -> None:
    pinned = {"spillway": {"require_local": True}}
    here = await two.ask("PINNED while it is well", **pinned)
    assert here.headers["x-spillway-backend"] == "local"
    shared = [Path("/dev/shm", segment.name) for segment in segments_of(two.engine())]
    assert shared
    two.signal_engine(signal.SIGKILL)
    free, *others = await asyncio.gather(
        two.ask("free to go"), *(two.ask(f"PINNED {number}", **pinned, stream=number % 2 == 0) for number in range(6))
    )
    assert (free.status_code, free.headers["x-spillway-backend"]) == (200, "far")
    assert [(each.status_code, each.headers["x-spillway-backend"]) for each in others] == [(200, "near")] * 6
    assert sum("PINNED" in str(record) for record in two.near.log.records) == 6
    assert not any("PINNED" in str(record) for record in two.far.log.records)
    await until(lambda: two.rows(others[-1].headers["x-request-id"]))
    (row,) = two.rows(others[-1].headers["x-request-id"])
    assert (row["backend"], row["may_leave"], row["charged_nano_usd"]) == ("near", 0, 0)
    await until(lambda: not any(path.exists() for path in shared))
