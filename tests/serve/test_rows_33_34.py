"""Who may not, and what may not leave: refused at the edge, and nothing of it in the ledger or at the cloud."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx

from tests.serve.node_process import NodeProcess, chat, emulated, running
from tests.serve.test_keys import Operator, ask, store

RULES = "privacy: {content_rules: {words: [streng geheim]}}"


def rows(folder: Path, table: str) -> int:
    with closing(sqlite3.connect(folder / "data" / "ledger.db")) as connection:
        (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(count)


async def read(node: NodeProcess, path: str, key: str) -> httpx.Response:
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {key}"}, timeout=30) as client:
        return await client.get(node.url + path)


async def test_row_33_refused_keys_leave_no_row_and_no_tenant_reads_anothers(tmp_path: Path) -> None:
    async with emulated() as cloud, running(cloud, tmp_path, store(tmp_path)) as node:
        operator = Operator(node)
        gone = await operator.keys("create", "gone")
        one = await operator.keys("create", "one")
        other = await operator.keys("create", "other", "--model", "qwen3-8b")
        await operator.keys("revoke", "gone")
        node.reload()
        await node.until_logged("reloaded")
        for key in (None, "sk-nobodys", gone, one[:-1]):
            answer = await ask(node, key)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert answer.headers["www-authenticate"].lower() == "bearer"
        assert (rows(tmp_path, "calls"), rows(tmp_path, "audit"), len(cloud.log.records)) == (0, 0, 0)

        assert (await ask(node, one)).status_code == 200
        assert (await read(node, "/v1/models/demo", one)).status_code == 200
        assert (await read(node, "/v1/models/demo", other)).status_code == 404
        assert (await read(node, "/v1/usage?key=one", other)).status_code in (400, 404)
        assert "one" not in (await read(node, "/v1/usage?by=model", other)).text
        for path in ("/admin/usage", "/admin/keys", "/admin/stats"):
            assert (await read(node, path, one)).status_code == 404


async def test_row_34_pinned_in_any_way_without_an_engine_is_403_and_nothing_leaves(tmp_path: Path) -> None:
    async with emulated(log_prompts=True) as cloud, running(cloud, tmp_path, f"{store(tmp_path)}\n{RULES}") as node:
        operator = Operator(node)
        free = await operator.keys("create", "free")
        clinic = await operator.keys("create", "clinic", "--residency", "premises")
        node.reload()
        await node.until_logged("reloaded")
        ways: list[tuple[str, dict[str, Any], dict[str, str]]] = [
            (clinic, {}, {}),
            (free, {"spillway": {"require_local": True}}, {}),
            (free, {}, {"x-spillway-require-local": "true"}),
            (free, {"messages": [{"role": "user", "content": "This is STRENG  geheim."}]}, {}),
            (clinic, {"spillway": {"require_local": False}}, {"x-spillway-require-local": "false"}),
        ]
        for key, body, headers in ways:
            async with httpx.AsyncClient(headers={"authorization": f"Bearer {key}"} | headers, timeout=30) as client:
                answer = await client.post(f"{node.url}/v1/chat/completions", json=chat() | body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "private_not_servable")
            assert answer.headers["x-should-retry"] == "false"
            assert answer.headers["x-spillway-reason"] == "private_not_servable"
        assert cloud.log.records == []
        assert (await ask(node, free)).status_code == 200
        assert len(cloud.log.records) == 1
