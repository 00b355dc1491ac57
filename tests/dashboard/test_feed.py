"""The live feed of a running node: what it tells, who is told, and what viewers can not do to it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
from pathlib import Path

import httpx
import msgspec

from node.dashboard.feed import Hello, Tick
from node.dashboard.sampler import MOST_VIEWERS
from tests.dashboard.feed_client import hello, tick, viewing
from tests.serve.node_process import ADMIN_KEY, chat, emulated, running, until

ALICE = "sk-alice"
KEYS = f"keys: [{{name: alice, sha256: {hashlib.sha256(ALICE.encode()).hexdigest()}}}]\n"
ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}
SECRET = "a prompt that nobody else may read"


async def feed_status(url: str, **headers: str) -> int:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        httpx.AsyncClient(timeout=30, headers=given) as client,
        client.stream("GET", f"{url}/dashboard/feed") as answer,
    ):
        return answer.status_code


async def test_feed_tells_what_admin_statistics_tell_and_nothing_of_a_prompt(tmp_path: Path) -> None:
    async with emulated() as cloud, running(cloud, tmp_path, "budget: {day_usd: 2}") as node:
        async with httpx.AsyncClient(timeout=60) as client:
            for stream in (True, False, True):
                await client.post(f"{node.url}/v1/chat/completions", json=chat(SECRET, stream=stream, max_tokens=8))

        async def budget_seen() -> bool:
            async with viewing(node.url) as feed:
                windows = (await hello(feed)).now.budget
            return bool(windows and windows[0].spent_nano_usd == cloud.billed_nano_usd)

        await until(budget_seen)
        async with viewing(node.url) as feed:
            first = await hello(feed)
            second = await tick(feed)
        stats = await node.stats()
        total = first.now.totals
        assert (total.requests, total.cloud, total.local, total.unserved) == (3, 3, 0, 0)
        assert total.spent_nano_usd == cloud.billed_nano_usd == round(stats["total"]["spent_usd"] * 10**9)
        assert (total.promises, total.promises_kept) == (2, stats["ttft_in_budget"]["met"])
        assert first.now.ready
        assert [row.backend for row in first.decisions] == ["holysheep"] * 3
        assert [row.ttft_s is None for row in first.decisions] == [False, True, False]
        assert sum(row.cost_nano_usd for row in first.decisions) == cloud.billed_nano_usd
        (provider,) = first.now.providers
        assert (provider.name, provider.requests, provider.breaker) == ("holysheep", 3, "closed")
        assert provider.ttft_p50_s is not None
        assert first.now.budget is not None
        assert (first.now.budget[0].window, first.now.budget[0].limit_nano_usd) == ("day", 2 * 10**9)
        assert second.point.at_s > first.now.uptime_s
        assert sum(point.cloud_per_s for point in first.history) > 0
        assert sum(point.reasons.get("cloud", {}).get("cloud_only_model", 0) for point in first.history) == 3
        assert (first.emulated, provider.emulated, provider.tried_in_s) == (False, False, 0.0)
        async with httpx.AsyncClient(timeout=30) as client, client.stream("GET", f"{node.url}/dashboard/feed") as raw:
            lines = raw.aiter_lines()
            text = "".join([await anext(lines) for _ in range(6)])
        assert "holysheep" in text
        assert SECRET not in text
        assert not any(word in text for word in ("Lorem", "messages", "content"))


async def test_feed_is_the_operators_once_there_are_keys(tmp_path: Path) -> None:
    async with emulated() as cloud, running(cloud, tmp_path, KEYS) as node:
        assert await feed_status(node.url) == 401
        assert await feed_status(node.url, authorization=f"Bearer {ALICE}") == 401
        assert await feed_status(node.url, authorization="Bearer guess") == 401
        assert await feed_status(node.url, authorization=f"Bearer {ADMIN_KEY}") == 200
        assert await feed_status(node.admin_url) == 401
        assert await feed_status(node.admin_url, authorization=f"Bearer {ADMIN_KEY}") == 200
        assert (await node.get("/dashboard/decisions")).status_code == 401
        page = await node.get("/")
        assert page.status_code == 200
        assert "default-src 'none'" in page.headers["content-security-policy"]


async def test_open_node_shows_its_feed_to_no_foreign_page_and_to_nobody_behind_a_proxy(tmp_path: Path) -> None:
    async with emulated() as cloud, running(cloud, tmp_path) as node:
        assert await feed_status(node.url) == 200
        assert await feed_status(node.url, origin=node.url) == 200
        assert await feed_status(node.url, host="rebound.example") == 403
        assert await feed_status(node.url, origin="http://evil.example") == 403
        assert await feed_status(node.url, sec_fetch_site="cross-site") == 403
        assert await feed_status(node.url, x_forwarded_for="203.0.113.9") == 401


async def test_page_needs_no_key_on_the_admin_port_but_a_host_that_is_ours(tmp_path: Path) -> None:
    async with emulated() as cloud, running(cloud, tmp_path) as node, httpx.AsyncClient() as client:
        page = await client.get(f"{node.admin_url}/")
        assert (page.status_code, 'data-port="admin"' in page.text) == (200, True)
        assert (await client.get(f"{node.admin_url}/", headers={"host": "rebound.example"})).status_code == 403
        again = await client.get(f"{node.admin_url}/", headers={"if-none-match": page.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        async with viewing(node.admin_url, ADMIN) as feed:
            assert (await hello(feed)).may_change


async def test_search_finds_a_request_by_its_id_and_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    async with emulated() as cloud, running(cloud, tmp_path) as node:
        answers = [await node.chat(max_tokens=3) for _ in range(3)]
        wanted = answers[1].headers["x-request-id"]
        found = (await node.get(f"/dashboard/decisions?text={wanted[-10:].upper()}")).json()
        assert [row["request_id"] for row in found["decisions"]] == [wanted]
        assert found["searched"] == 3
        assert (await node.get("/dashboard/decisions?reason=last_moment")).json()["decisions"] == []
        assert (await node.get("/dashboard/decisions?prompt=x")).status_code == 400
        assert (await node.get(f"/dashboard/decisions?text={'x' * 101}")).status_code == 400


async def test_viewers_beyond_the_most_are_told_so_and_places_are_given_back(tmp_path: Path) -> None:
    async with emulated() as cloud, running(cloud, tmp_path) as node:
        opened = []
        for _ in range(MOST_VIEWERS):
            reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
            writer.write(b"GET /dashboard/feed HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert b"200 OK" in await reader.readline()
            opened.append(writer)
        refused = await node.get("/dashboard/feed")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "too_many_viewers")
        before = node.descriptors()
        for writer in opened:
            writer.close()

        async def has_room() -> bool:
            return await feed_status(node.url) == 200

        await until(has_room)
        await until(lambda: node.descriptors() <= before - MOST_VIEWERS + 2)


async def test_node_ends_at_once_though_somebody_watches(tmp_path: Path) -> None:
    async with (
        emulated() as cloud,
        running(cloud, tmp_path) as node,
        viewing(node.url) as feed,
        viewing(node.admin_url, ADMIN) as operators,
    ):
        await hello(feed)
        await hello(operators)
        node.send(signal.SIGTERM)
        left = [each async for each in feed]
        assert left[-1] is None
        assert [each async for each in operators][-1] is None
        assert await node.ended(10) == 0
        assert "ERROR" not in node.log_text()


def test_feed_has_no_field_for_a_prompt_or_an_answer() -> None:
    schema = json.dumps(msgspec.json.schema_components([Hello, Tick])[1])
    assert '"prompt_tokens"' in schema
    assert not any(f'"{word}"' in schema for word in ("prompt", "messages", "answer", "text", "content"))
