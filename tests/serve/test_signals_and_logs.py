"""Rows 75 and 76 on the process itself: a log that nobody takes, and SIGHUP."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import signal
import socket
import sys
from pathlib import Path

import httpx

from node.emulator.switches import Switch
from tests.serve.node_process import (
    ADMIN_KEY,
    PROVIDER_KEY,
    NodeProcess,
    chat,
    config_text,
    emulated,
    running,
    until,
)

_LEAST_PIPE_BYTES = 4096


async def test_row_75_requests_continue_while_nobody_reads_the_log(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _LEAST_PIPE_BYTES)
    try:
        async with emulated() as cloud, running(cloud, tmp_path, output=writing) as node:
            for _ in range(200):  # each leaves a line in the log: far more than the pipe holds
                with socket.create_connection(("127.0.0.1", node.port)) as client:
                    client.sendall(b"nonsense\r\n\r\n")
                    assert client.recv(100).startswith(b"HTTP/1.1 400")
            assert (await node.chat()).status_code == 200
            node.send(signal.SIGTERM)
            assert await node.ended() == 0
    finally:
        os.close(reading)
        os.close(writing)


async def test_row_75_requests_continue_while_the_log_disk_is_full(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        async with emulated() as cloud, running(cloud, tmp_path, output=full) as node:
            assert (await node.chat()).status_code == 200
            node.send(signal.SIGTERM)
            assert await node.ended() == 0
    finally:
        os.close(full)


async def test_row_76_sighup_takes_a_good_file_and_keeps_the_old_settings_for_a_bad_one(tmp_path: Path) -> None:
    async with emulated() as cloud, running(cloud, tmp_path) as node:
        node.config.write_text(config_text(cloud, node.port + 1, "api: {strict: true}\nroute: {}\n"))
        await _reloaded(node, "not reloaded")
        (line,) = [line for line in node.log_text().splitlines() if "not reloaded" in line]
        assert f"{node.config}: route:" in line
        assert (await node.chat(best_of=2)).status_code == 200

        node.config.write_text(config_text(cloud, node.port + 1, "api: {strict: true}\n"))
        await _reloaded(node, f"reloaded {node.config}")
        assert "only a restart puts it in force: listen.port, admin.port" in node.log_text()
        assert (await node.chat(best_of=2)).status_code == 400
        assert (await node.chat()).status_code == 200


async def test_row_76_provider_that_refused_the_key_gets_a_new_chance(tmp_path: Path) -> None:
    async with emulated() as cloud, running(cloud, tmp_path) as node:
        cloud.switches.arm(Switch.UNAUTHORIZED)
        assert (await node.chat()).status_code == 502
        cloud.switches.disarm()
        assert (await node.chat()).status_code == 503
        await _reloaded(node, "holysheep is tried again")
        assert (await node.chat()).status_code == 200


async def test_row_76_answer_under_way_outlives_a_reload_that_removes_its_provider(tmp_path: Path) -> None:
    async with (
        emulated(pace_s=0.03) as cloud,
        running(cloud, tmp_path) as node,
        httpx.AsyncClient(timeout=60) as client,
        client.stream("POST", f"{node.url}/v1/chat/completions", json=chat(stream=True, max_tokens=60)) as answer,
    ):
        lines = answer.aiter_lines()
        await anext(lines)
        node.config.write_text(config_text(cloud, node.port).replace("holysheep:", "openai:"))
        await _reloaded(node, f"reloaded {node.config}")
        assert list((await node.stats())["providers"]) == ["holysheep", "openai"]
        rest = [line async for line in lines if line]
        assert '"finish_reason":"length"' in rest[-2]

        async def forgotten() -> bool:
            return list((await node.stats())["providers"]) == ["openai"]

        await until(forgotten)
        assert (await node.stats())["by_ending"] == {"done": 1}


async def test_terminal_that_is_closed_ends_the_node_instead(tmp_path: Path) -> None:
    async with emulated() as cloud:
        node = NodeProcess(cloud, tmp_path)
        node.configure()
        child, terminal = pty.fork()
        if child == 0:  # the terminal is its own
            os.environ["TEST_PROVIDER_KEY"] = PROVIDER_KEY
            os.environ["SPILLWAY_ADMIN_KEY"] = ADMIN_KEY
            os.execv(sys.executable, [sys.executable, "-m", "node.cli", "serve", "--config", str(node.config)])
        try:

            async def alive() -> bool:
                return (await node.get("/livez")).status_code == 200

            await until(alive)
            os.close(terminal)
            _, status = await asyncio.wait_for(asyncio.to_thread(os.waitpid, child, 0), 30)
            child = 0
            assert os.waitstatus_to_exitcode(status) == 0
        finally:
            if child:
                os.kill(child, signal.SIGKILL)


async def _reloaded(node: NodeProcess, said: str) -> None:
    node.send(signal.SIGHUP)
    await until(lambda: said in node.log_text())
