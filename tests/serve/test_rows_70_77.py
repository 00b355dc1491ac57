"""Money at the edge: the disk under the ledger is full, and sixty-four ask at once for what is left of a budget.

One model is in the cloud only (`far`), another also at a server on the premises that costs nothing (`near`).
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx

from node.emulator.server import Emulator
from tests.serve.node_process import NodeProcess, admin_port, emulated, until
from tests.small_disk import MakeDisk, small_disk

__all__ = ["small_disk"]  # a fixture

_EQUIVALENT = "{{provider: {}, model: deepseek-v3.2, context_tokens: 100000, capabilities: []}}"
_MODEL = "name: {}\nsummary: A model.\ncloud: [{}]\n"
_PRICES = """
provider: {}
as_of: 2026-11-01
models: {{deepseek-v3.2: {{input_usd_per_mtok: {}, output_usd_per_mtok: {}}}}}
"""
_SETTINGS = """
listen: {{port: {port}}}
admin: {{port: {admin_port}}}
cloud_only: true
catalogue: [{catalogue}]
models: [distant, both]
providers:
  near: {{base_url: "{near}", api_key_env: TEST_PROVIDER_KEY, zone: premises}}
  far: {{base_url: "{far}", api_key_env: TEST_PROVIDER_KEY, weight: 1000}}
"""


@asynccontextmanager
async def house(folder: Path, near: Emulator, far: Emulator, more: str = "") -> AsyncIterator[NodeProcess]:
    catalogue = folder / "models"
    (catalogue / "prices").mkdir(parents=True)
    for model, providers in (("distant", ["far"]), ("both", ["near", "far"])):
        (catalogue / f"{model}.yaml").write_text(_MODEL.format(model, ", ".join(map(_EQUIVALENT.format, providers))))
    for name, *usd in (("near", 0, 0), ("far", 0.14, 0.42)):  # as the emulator bills
        (catalogue / "prices" / f"{name}.yaml").write_text(_PRICES.format(name, *usd))
    node = NodeProcess(far, folder)
    places = {"port": node.port, "admin_port": admin_port(node.port), "near": near.base_url, "far": far.base_url}
    node.config.write_text(_SETTINGS.format(catalogue=catalogue, **places) + more)
    node.start()
    try:
        await node.until_ready()
        yield node
    finally:
        node.kill()


def rows(folder: Path, backend: str) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(f"file:{folder}/data/ledger.db?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        found = connection.execute("SELECT * FROM calls WHERE backend = ?", (backend,))
        return [dict(row) for row in found]


def told(answer: httpx.Response) -> tuple[int, str | None]:
    """The status, and who served it or what refused it."""
    if answer.status_code == 200:
        return 200, answer.headers["x-spillway-backend"]
    return answer.status_code, answer.json()["error"]["code"]


PINNED = {"spillway": {"cache": False, "require_local": True}}


async def test_row_70_disk_is_full_and_nothing_leaves_unrecorded_while_the_premises_serve(
    tmp_path: Path, small_disk: MakeDisk
) -> None:
    disk = small_disk(tmp_path / "data", 768)
    async with emulated() as near, emulated() as far, house(tmp_path, near, far) as node:
        seen: Counter[tuple[int, str | None]] = Counter()
        for _ in range(400):
            answer = await node.chat(model="distant", max_tokens=5)
            seen[told(answer)] += 1
            if seen[503, "ledger_unavailable"] >= 3:
                break
        assert set(seen) == {(200, "far"), (503, "ledger_unavailable")}
        assert answer.headers["retry-after"] == "1"
        for more in ({}, PINNED):
            for stream in (False, True):
                answer = await node.chat(model="both", max_tokens=5, stream=stream, **more)
                assert (answer.status_code, answer.headers["x-spillway-backend"]) == (200, "near")
        assert "nothing that costs money leaves" in node.log_text()

        disk.has_room_for(16 * 1024)

        async def leaves_again() -> bool:
            return told(await node.chat(model="distant", max_tokens=5)) == (200, "far")

        await until(leaves_again)

        def all_ended() -> bool:
            return all(row["ending"] for name in ("near", "far") for row in rows(tmp_path, name))

        await until(all_ended)
        await until(lambda: len(rows(tmp_path, "near")) == 4)
        paid = [row["charged_nano_usd"] for row in rows(tmp_path, "far") if row["charged_nano_usd"]]
        assert len(paid) == len(far.bill.records)
        assert sum(paid) == far.billed_nano_usd


async def test_row_77_sixty_four_at_the_edge_of_a_budget_and_the_premises_still_serve(tmp_path: Path) -> None:
    budget_nano_usd = 3_000_000
    async with (
        emulated() as near,
        emulated(ttft_median_s=5.0) as far,  # nothing is settled before all have asked
        house(tmp_path, near, far, f"budget: {{day_usd: {budget_nano_usd / 1e9}}}") as node,
    ):
        asking = [asyncio.create_task(node.chat(model="distant", max_tokens=1000)) for _ in range(64)]
        await until(lambda: len(rows(tmp_path, "far")) + sum(each.done() for each in asking) == 64)
        for more in ({}, PINNED):
            assert told(await node.chat(model="both", max_tokens=1000, **more)) == (200, "near")
        answers = await asyncio.gather(*asking)
        found = rows(tmp_path, "far")
        (reserved,) = {row["reserved_nano_usd"] for row in found}
        room = budget_nano_usd // reserved
        assert Counter(map(told, answers)) == {(200, "far"): room, (429, "insufficient_quota"): 64 - room}
        assert {each.headers.get("x-should-retry") for each in answers if each.status_code == 429} == {"false"}
        assert len(found) == len(far.bill.records) == room
