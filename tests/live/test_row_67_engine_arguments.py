"""Arguments that vLLM's parser takes and its engine does not: told once, by name, and not tried again."""

from pathlib import Path

import pytest

from node.routing.values import EngineState
from tests.serve.node_process import NodeProcess, emulated, until

pytestmark = pytest.mark.engine

_ALONE = """
listen: {{port: {port}}}
admin: {{port: 0}}
privacy: {{residency: premises}}
"""
_ENGINE = "engine: {demo: {max_num_seqs: 4, max_num_batched_tokens: 2}}\n"
_SAID = "demo: engine_args.max_num_batched_tokens: max_num_batched_tokens (2) must be greater than or equal to"


async def test_row_67_without_a_cloud_the_node_ends_with_one_line(tmp_path: Path) -> None:
    async with emulated() as emulator:
        node = NodeProcess(emulator, tmp_path)
        node.config.write_text(_ALONE.format(port=node.port) + _ENGINE)
        node.start()
        try:
            assert await node.ended(300) == 1
        finally:
            node.kill()
    last = node.log_text().strip().splitlines()[-1]
    assert last == f"spillway: {_SAID} max_num_seqs (4); nothing else can serve demo"
    assert "Traceback" not in node.log_text()


async def test_row_67_the_cloud_stands_in_and_readyz_says_why(tmp_path: Path) -> None:
    async with emulated() as emulator:
        node = NodeProcess(emulator, tmp_path)
        node.configure(_ENGINE)
        node.config.write_text(node.config.read_text().replace("cloud_only: true", ""))
        node.start()
        try:
            await until(lambda: "GIVEN UP" in node.log_text(), 300)
            await node.until_ready()
            model = (await node.get("/readyz")).json()["models"]["demo"]
            assert (model["engine"], model["supervision"]["given_up"]) == (EngineState.DOWN, True)
            assert model["supervision"]["why"].startswith(_SAID)
            assert model["supervision"]["starts"] == 1
            assert (await node.chat()).headers["x-spillway-backend"] == "holysheep"
        finally:
            node.kill()
    assert node.log_text().count(_SAID) == 1


async def test_row_67_context_that_does_not_fit_the_cache_ends_with_what_to_do(tmp_path: Path) -> None:
    async with emulated() as emulator:
        node = NodeProcess(emulator, tmp_path)
        node.config.write_text(_ALONE.format(port=node.port) + "engine: {demo: {kv_cache_memory_bytes: 4194304}}\n")
        node.start()
        try:
            assert await node.ended(300) == 1
        finally:
            node.kill()
    (said,) = [line for line in node.log_text().splitlines() if line.startswith("spillway: ")]
    assert said.startswith("spillway: demo: context_tokens: 4096 tokens need ")
    assert "set context_tokens lower" in said
    assert said.endswith("nothing else can serve demo")
