"""Rows 68 and 69: however a node ends while calls are out, the ledger of the next one says what each may have cost."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx

from node.emulator.server import Emulator
from tests.serve.node_process import NodeProcess, chat, emulated, running, until

_TOKENS = 200


def calls(folder: Path) -> list[dict[str, Any]]:
    """Every call that left, as the ledger has it, in order."""
    with closing(sqlite3.connect(folder / "data" / "ledger.db")) as connection:
        connection.row_factory = sqlite3.Row
        found = connection.execute("SELECT * FROM calls WHERE backend = 'holysheep' ORDER BY at_us")
        return [dict(each) for each in found]


async def cut_off(node: NodeProcess, cloud: Emulator, number: signal.Signals) -> int:
    """The exit code of the node, signalled while it reads a stream."""
    async with httpx.AsyncClient(timeout=60) as client:
        body = chat(stream=True, max_tokens=_TOKENS)
        async with client.stream("POST", f"{node.url}/v1/chat/completions", json=body) as answer:
            await anext(answer.aiter_lines())
            assert len(cloud.log.records) == 1
            node.send(number)
            return await node.ended()


async def test_row_68_no_call_is_left_open_by_a_node_that_was_told_to_end(tmp_path: Path) -> None:
    async with emulated(pace_s=0.05) as cloud, running(cloud, tmp_path, "shutdown_grace_s: 0.2") as node:
        assert await cut_off(node, cloud, signal.SIGTERM) == 0
    (call,) = calls(tmp_path)
    assert call["state"] == "settled"
    assert 0 < call["charged_nano_usd"] <= call["reserved_nano_usd"]


async def test_row_69_call_that_was_out_at_a_kill_counts_for_its_worst_case_after_the_restart(tmp_path: Path) -> None:
    async with emulated(pace_s=0.05) as cloud, running(cloud, tmp_path) as node:
        assert await cut_off(node, cloud, signal.SIGKILL) == -signal.SIGKILL
        (left,) = calls(tmp_path)
        assert left["state"] == "dispatched"
        node.start()
        await node.until_ready()
        await until(lambda: [each["state"] for each in calls(tmp_path)] == ["orphaned"])
        (orphan,) = calls(tmp_path)
        assert orphan["charged_nano_usd"] == orphan["reserved_nano_usd"]
        assert orphan["charged_nano_usd"] >= cloud.billed_nano_usd
        assert (await node.chat()).status_code == 200
        await until(lambda: [each["state"] for each in calls(tmp_path)] == ["orphaned", "settled"])
