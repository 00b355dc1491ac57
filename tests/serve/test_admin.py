"""The admin port of a running node, and what a client may see of itself on the public one."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from node import cli, serve
from node.errors import SettingsError
from tests.serve.node_process import ADMIN_KEY, NodeProcess, chat, emulated, running, until

ALICE, BOB = "sk-alice", "sk-bob"
KEYS = "keys: [{}]\n".format(
    ", ".join(f"{{name: {key[3:]}, sha256: {hashlib.sha256(key.encode()).hexdigest()}}}" for key in (ALICE, BOB))
)


async def own_usage(node: NodeProcess, key: str | None, query: str = "") -> httpx.Response:
    async with httpx.AsyncClient(timeout=30) as client:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return await client.get(f"{node.url}/v1/usage{query}", headers=headers)


async def ask(node: NodeProcess, key: str) -> None:
    async with httpx.AsyncClient(timeout=30, headers={"authorization": f"Bearer {key}"}) as client:
        answer = await client.post(f"{node.url}/v1/chat/completions", json=chat(max_tokens=5))
        assert answer.status_code == 200, answer.text


async def test_each_key_sees_its_own_usage_and_the_operator_all(tmp_path: Path) -> None:
    async with emulated() as cloud, running(cloud, tmp_path, f"{KEYS}store: {{folder: {tmp_path / 'data'}}}") as node:
        for key in (ALICE, ALICE, BOB):
            await ask(node, key)

        async def settled() -> bool:
            total = (await node.admin("/admin/usage")).json()["total"]
            return bool(total["answered"] == 3)

        await until(settled)
        everybody: dict[str, Any] = (await node.admin("/admin/usage?by=key,backend")).json()
        assert {(line["key"], line["backend"]): line["requests"] for line in everybody["lines"]} == {
            ("alice", "holysheep"): 2,
            ("bob", "holysheep"): 1,
        }
        assert round(everybody["total"]["spent_usd"] * 10**9) == cloud.billed_nano_usd
        bobs = (await own_usage(node, BOB, "?by=model")).json()
        assert (bobs["key"], bobs["total"]["requests"]) == ("bob", 1)
        assert (await own_usage(node, None)).status_code == 401
        assert (await own_usage(node, BOB, "?key=alice")).status_code == 400
        assert (await own_usage(node, BOB, "?by=key")).json()["lines"][0]["key"] == "bob"


async def test_public_port_knows_no_admin_routes_and_the_admin_port_no_callers_key(tmp_path: Path) -> None:
    async with emulated() as cloud, running(cloud, tmp_path, KEYS) as node:
        for path in ("/admin/stats", "/admin/usage", "/admin/providers", "/admin/keys"):
            assert (await node.get(path)).status_code == 404
            assert (await node.admin(path)).status_code in (200, 503)
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {ALICE}"}) as client:
            assert (await client.get(f"{node.admin_url}/admin/stats")).status_code == 401
            assert (await client.post(f"{node.admin_url}/v1/chat/completions", json=chat())).status_code == 401
        assert ADMIN_KEY not in node.log_text()


async def test_isolated_provider_gets_nothing_until_it_is_restored(tmp_path: Path) -> None:
    async with emulated() as cloud, running(cloud, tmp_path) as node:
        assert (await node.admin("/admin/providers/holysheep/isolate", "POST")).status_code == 200
        assert (await node.chat()).status_code == 503
        assert cloud.log.records == []
        assert (await node.admin("/admin/providers")).json()["holysheep"]["isolated_by"] == "operator"
        await node.admin("/admin/providers/holysheep/restore", "POST")
        assert (await node.chat()).status_code == 200


async def test_how_the_end_goes_on_can_be_watched_on_the_admin_port(tmp_path: Path) -> None:
    async with (
        emulated(pace_s=0.05) as cloud,
        running(cloud, tmp_path) as node,
        httpx.AsyncClient(timeout=60) as client,
        client.stream("POST", f"{node.url}/v1/chat/completions", json=chat(stream=True, max_tokens=30)) as answer,
    ):
        lines = answer.aiter_lines()
        await anext(lines)
        node.process.terminate()

        async def draining() -> bool:
            return (await node.chat()).status_code in (503, 599)

        await until(draining)
        assert (await node.stats())["door"]["inside"] == 1
        assert [line async for line in lines if line][-1] == "data: [DONE]"
        assert await node.ended() == 0


def test_row_67_admin_port_that_is_taken_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        config = tmp_path / "spillway.yaml"
        config.write_text(f"listen: {{port: 0}}\nadmin: {{port: {port}}}\n")
        assert cli.main(["serve", "--config", str(config)]) == 1
    said = capsys.readouterr().err
    assert f"admin: cannot listen on 127.0.0.1:{port}: Address already in use" in said
    assert said.endswith("Choose another port with admin.port or SPILLWAY_ADMIN_PORT\n")


def test_node_at_the_port_of_anothers_admin_api_is_told_whose_it_may_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as others_admin:
        others_admin.bind(("127.0.0.1", 0))
        others_admin.listen()
        config = tmp_path / "spillway.yaml"
        config.write_text(f"listen: {{port: {others_admin.getsockname()[1]}}}\nadmin: {{port: 0}}\n")
        assert cli.main(["serve", "--config", str(config)]) == 1
    said = capsys.readouterr().err
    assert "It takes two ports, its own and for the admin API the next. Choose another port with --port" in said


def test_port_that_both_apis_are_given_is_refused_and_not_silently_left_to_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = tmp_path / "spillway.yaml"
    config.write_text(
        f"listen: {{port: {port}}}\nadmin: {{port: {port}}}\nstore: {{folder: {tmp_path / 'data'}}}\ncloud_only: true\n"
        "providers: {holysheep: {base_url: http://127.0.0.1:9/v1, api_key_env: null}}\n"
    )
    assert cli.main(["serve", "--config", str(config)]) == 1
    assert f"admin: cannot listen on 127.0.0.1:{port}: Address already in use" in capsys.readouterr().err


def test_node_that_another_was_quicker_than_says_so(tmp_path: Path) -> None:
    """Both have bound the port before either listens."""
    with serve._bind("listen", "127.0.0.1", 0, "--port", 30) as other:
        port = other.getsockname()[1]
        with serve._bind("listen", "127.0.0.1", port, "--port", 30) as mine:
            other.listen()
            with pytest.raises(SettingsError, match=f"listen: cannot listen on 127.0.0.1:{port}: Address already"):
                serve._listen("listen", mine, "--port")


def test_admin_api_is_not_for_other_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "spillway.yaml"
    config.write_text("admin: {host: 0.0.0.0}\n")
    assert cli.main(["serve", "--config", str(config)]) == 1
    assert "admin.host: 0.0.0.0 is reachable from other machines" in capsys.readouterr().err
