"""What the reader of a page has before them: a node that runs, and files of their own that the page speaks of."""

from __future__ import annotations

import csv
import datetime
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import pytest
from _harness.postgres import binaries, server

from node.emulator.server import Emulator
from tests.docs.pages import REPO
from tests.serve.node_process import PROVIDER_KEY, NodeProcess, admin_port, emulated, running

ENGINE_PAGES: Final = ("README.md", "docs/get-started.md")
"""Pages whose answers are the engine's: tests/live/test_node.py reads them, beside the one that it starts anyway."""


@dataclass(slots=True)
class Scene:
    """Where the reader sits: see `Reader` for `instead` and `environ`; `before` is done before commands of a page."""

    home: Path
    instead: dict[str, str] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)
    before: dict[str, Callable[[], object]] = field(default_factory=dict)


@asynccontextmanager
async def scene(page: str, folder: Path) -> AsyncIterator[Scene]:
    """All that `page` needs. Pages that only work on files get no node."""
    home = folder / "home"
    home.mkdir()
    made = Scene(home)
    async with AsyncExitStack() as stack:
        if page in _SET_UP:
            await _SET_UP[page](made, stack)
        yield made


async def _with_node(made: Scene, stack: AsyncExitStack) -> NodeProcess:
    """A node that has answered something; its settings are where the commands run."""
    emulator: Emulator = await stack.enter_async_context(emulated())
    made.environ |= {"TEST_PROVIDER_KEY": PROVIDER_KEY}
    data = made.home / ".local" / "share" / "spillway"
    environ: Mapping[str, str] = MappingProxyType({"SPILLWAY_DATA": str(data), "SPILLWAY_ADMIN_KEY": ""})
    node = await stack.enter_async_context(running(emulator, made.home, environ=environ))
    for number in range(3):
        assert (await node.chat(text=f"Question {number}")).status_code == 200
    made.instead |= in_place_of(node.port, admin_port(node.port))
    return node


def in_place_of(port: int, admin_port: int) -> dict[str, str]:
    """The ports and the provider that a page names, and those of this node, which has settings."""
    return {
        "127.0.0.1:8000": f"127.0.0.1:{port}",
        "--port 8000": f"--port {port}",
        "127.0.0.1:8001": f"127.0.0.1:{admin_port}",
        "holysheep-emulated": "holysheep",
    }


async def _operations(made: Scene, stack: AsyncExitStack) -> None:
    programs = binaries()
    if programs is None:
        pytest.skip("there is no PostgreSQL on this machine")
    node = await _with_node(made, stack)
    _write_statement(made.home / "november.csv", node.emulator)
    url = stack.enter_context(server(programs)).url
    (made.home / "backup").mkdir()
    made.instead |= {
        "postgresql://spillway@db.example/spillway": url,
        '"$SPILLWAY_DATABASE_URL"': url,
        "/backup/": f"{made.home}/backup/",
        "spillway-2026-11-29": f"spillway-{datetime.datetime.now().date()}",
        "/var/lib/spillway": f"{made.home}/moved",
    }
    made.before["spillway ledger restore"] = node.kill


def _write_statement(path: Path, emulator: Emulator) -> None:
    """What the emulated cloud has on its bill, as a provider would hand it out."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        names = ("at_s", "model", "prompt_tokens", "completion_tokens", "cost_nano_usd")
        writer.writerow(names)
        writer.writerows([each[name] for name in names] for each in emulator.bill.records)


async def _simulate(made: Scene, stack: AsyncExitStack) -> None:
    (made.home / "yesterday.csv").write_text(
        "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{at},400,60\n" for at in range(100))
    )
    (made.home / "AzureLLMInferenceTrace_conv.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        + "".join(f"2023-11-16 18:{at // 60:02}:{at % 60:02}.0000000,400,60\n" for at in range(100))
    )
    shutil.copy(REPO / "models" / "profiles" / "cpu-demo.json", made.home / "mine.json")


async def _only_node(made: Scene, stack: AsyncExitStack) -> None:
    await _with_node(made, stack)


_SET_UP: Final[Mapping[str, Callable[[Scene, AsyncExitStack], Awaitable[Any]]]] = {
    "docs/api.md": _only_node,
    "docs/dashboard.md": _only_node,
    "docs/operations.md": _operations,
    "docs/privacy.md": _only_node,
    "docs/simulate.md": _simulate,
    "docs/top.md": _only_node,
}
