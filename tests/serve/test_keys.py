"""Keys as callers and operators meet them: made and ended beside a running node, with their own rights."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from tests.serve.node_process import NodeProcess, chat, emulated, running, until


class Operator:
    """Whoever runs `spillway keys` with the node's own settings."""

    def __init__(self, node: NodeProcess) -> None:
        self._node = node

    async def keys(self, *arguments: str) -> str:
        """The command's standard output."""
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "node.cli", "keys", *arguments, "--config", str(self._node.config)],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


async def ask(node: NodeProcess, key: str | None, path: str = "/v1/chat/completions", **more: Any) -> httpx.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(timeout=60, headers=headers) as client:
        if path.startswith("/v1/models"):
            return await client.get(node.url + path)
        return await client.post(node.url + path, json=chat(**more))


def store(tmp_path: Path, more: str = "") -> str:
    return f"store: {{folder: {tmp_path / 'data'}}}\n{more}"


async def status(node: NodeProcess, key: str | None) -> int:
    return (await ask(node, key, "/v1/models")).status_code


async def test_row_33_keys_come_and_go_while_the_node_runs(tmp_path: Path) -> None:
    async with emulated() as cloud, running(cloud, tmp_path, store(tmp_path)) as node:
        operator = Operator(node)
        assert "No keys configured" in node.log_text()
        assert await status(node, None) == 200
        first = await operator.keys("create", "app")
        await until(lambda: _is(node, None, 401), within_s=5.0)
        assert await status(node, first) == 200
        second = await operator.keys("rotate", "app", "--grace", "1h")
        await until(lambda: _is(node, second, 200), within_s=5.0)
        assert await status(node, first) == 200
        await operator.keys("revoke", "app")
        node.send(signal.SIGHUP)
        await until(lambda: _is(node, second, 401), within_s=5.0)
        assert await status(node, first) == 401
        assert await status(node, None) == 401  # revoking the last key does not open the node
        assert cloud.bill.records == []
        answer = await ask(node, second)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
        log = node.log_text()
        assert first not in log
        assert second not in log


async def _is(node: NodeProcess, key: str | None, wanted: int) -> bool:
    return await status(node, key) == wanted


async def test_key_does_what_it_may_and_no_more(tmp_path: Path) -> None:
    async with emulated() as cloud:
        node = NodeProcess(cloud, tmp_path)
        node.configure(store(tmp_path, "models: [demo, llama-3.1-8b]\n"))
        operator = Operator(node)
        narrow = await operator.keys("create", "narrow", "--model", "llama-3.1-8b")
        limited = await operator.keys("create", "limited", "--requests-per-minute", "2", "--tokens-per-minute", "2000")
        pinned = await operator.keys("create", "pinned", "--residency", "premises")
        node.start()
        try:
            await node.until_ready()
            listed = (await ask(node, narrow, "/v1/models")).json()["data"]
            assert [each["id"] for each in listed] == ["llama-3.1-8b"]
            assert (await ask(node, narrow, "/v1/models/demo")).status_code == 404
            refused = await ask(node, narrow)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_found")
            assert refused.json()["error"]["param"] == "model"

            answer = await ask(node, limited, max_tokens=100)
            assert answer.status_code == 200
            headers = answer.headers
            assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("2", "1")
            assert headers["x-ratelimit-limit-tokens"] == "2000"
            assert 1800 < int(headers["x-ratelimit-remaining-tokens"]) <= 1950
            assert headers["x-ratelimit-reset-requests"].endswith("s")
            bad = await ask(node, limited, temperature=9)
            assert (bad.status_code, bad.headers["x-ratelimit-remaining-requests"]) == (400, "1")
            assert (await ask(node, limited, max_tokens=100)).status_code == 200
            over = await ask(node, limited, max_tokens=100)
            assert (over.status_code, over.json()["error"]["code"]) == (429, "rate_limit_exceeded")
            assert 1 <= int(over.headers["retry-after"]) <= 30
            assert over.headers["x-ratelimit-remaining-requests"] == "0"
            too_large = await ask(node, limited, max_tokens=5000)
            assert (too_large.status_code, too_large.headers["x-should-retry"]) == (429, "false")
            stats = await node.stats()
            assert stats["door"]["turned_away"]["rate_limit_exceeded"] == 2
            assert stats["total"]["requests"] == 2

            private = await ask(node, pinned)
            assert (private.status_code, private.json()["error"]["code"]) == (403, "private_not_servable")
            assert private.headers["x-should-retry"] == "false"
            assert "x-ratelimit-limit-requests" not in private.headers
        finally:
            node.kill()


async def test_answers_are_kept_for_their_tenant_only(tmp_path: Path) -> None:
    async with emulated() as cloud:
        node = NodeProcess(cloud, tmp_path)
        node.configure(store(tmp_path))
        operator = Operator(node)
        mine, other = await operator.keys("create", "mine"), await operator.keys("create", "other")
        node.start()
        try:
            await node.until_ready()

            async def backend(key: str) -> str:
                answer = await ask(node, key, temperature=0, spillway={"cache": True})
                return answer.headers["x-spillway-backend"]

            assert await backend(mine) != "cache"
            assert await backend(mine) == "cache"
            assert await backend(other) != "cache"
            rotated = await operator.keys("rotate", "mine")
            await until(lambda: _is(node, rotated, 200), within_s=5.0)
            assert await backend(rotated) == "cache"  # the same tenant
        finally:
            node.kill()


async def test_stored_key_is_enough_to_listen_to_other_machines(tmp_path: Path) -> None:
    async with emulated() as cloud:
        node = NodeProcess(cloud, tmp_path)
        node.configure(store(tmp_path))
        node.config.write_text(node.config.read_text().replace("listen: {", "listen: {host: 0.0.0.0, "))
        node.start()
        assert await node.ended() == 1
        assert "listen.host: 0.0.0.0 is reachable from other machines, and there is no key" in node.log_text()
        key = await Operator(node).keys("create", "app")
        node.start()
        try:
            await node.until_ready()
            assert await status(node, key) == 200
            assert await status(node, None) == 401
        finally:
            node.kill()


async def test_name_in_both_places_keeps_the_node_from_starting(tmp_path: Path) -> None:
    async with emulated() as cloud:
        node = NodeProcess(cloud, tmp_path)
        node.configure(store(tmp_path))
        await Operator(node).keys("create", "app")
        node.configure(store(tmp_path, f"keys: [{{name: app, sha256: '{'0' * 64}'}}]\n"))
        node.start()
        assert await node.ended() == 1
        (line,) = [line for line in node.log_text().splitlines() if "'app' is in the settings" in line]
        assert line.startswith("spillway: ")


async def test_keys_whose_promise_cannot_be_kept_are_named_when_the_node_starts(tmp_path: Path) -> None:
    async with emulated() as cloud, running(cloud, tmp_path, store(tmp_path)) as node:
        operator = Operator(node)
        await operator.keys("create", "clinic", "--residency", "premises")
        await operator.keys("create", "other", "--model", "qwen3-8b")
        await operator.keys("create", "app")
        node.process.terminate()
        assert await node.ended() == 0
        node.start()
        await node.until_ready()
        for said in ("key clinic: it is pinned to the premises, where nothing serves it", "key other: not served here"):
            assert node.log_text().count(said) == 1
        assert "key app" not in node.log_text()
