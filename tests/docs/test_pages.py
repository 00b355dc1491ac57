"""Each code block of the documentation does what the page says."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from node.app import Node
from node.embedded import EMULATED
from node.serve import _banner
from node.settings import HOLYSHEEP, ProviderSettings, Settings, StoreSettings
from tests.docs.commands import mistakes_in
from tests.docs.files import check_files
from tests.docs.not_run import ELSEWHERE, ENDLESS, MAY_DIFFER, NOT_RUN, SHOWN
from tests.docs.pages import REPO, blocks, commands_in_text, pages
from tests.docs.reader import Reader, check_output, key_of
from tests.docs.scenes import ENGINE_PAGES, Scene, scene

PAGES = pages()
RUN_HERE = [
    page for page in PAGES if page not in ENGINE_PAGES and any(b.kind in ("sh", "python") for b in blocks(page))
]


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_are_well_formed_and_exist(page: str) -> None:
    for block in blocks(page):
        if block.kind == "sh":
            checked = subprocess.run(["bash", "-n", "-c", block.text], capture_output=True, text=True, check=False)
            assert checked.returncode == 0, f"{block}: {checked.stderr}"
            for command in block.commands:
                assert (wrong := mistakes_in(command)) is None, f"{block}: {wrong}"
    for command in commands_in_text(page):
        assert (wrong := mistakes_in(command)) is None, f"{page}: `{command}`: {wrong}"


@pytest.mark.parametrize("page", [page for page in PAGES if any(block.kind == "yaml" for block in blocks(page))])
def test_files_that_a_page_shows_are_taken_by_the_node(page: str, tmp_path: Path) -> None:
    check_files([block for block in blocks(page) if block.kind == "yaml"], tmp_path)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_kind_that_something_checks(page: str) -> None:
    for block in blocks(page):
        assert (
            block.kind in ("sh", "python", "yaml", "json")
            or block.role == "output"
            or key_of(SHOWN if block.kind == "text" else ELSEWHERE, page, block.text)
        ), f"{block}: nothing runs it, and tests/docs/not_run.py does not say why"


def test_nothing_is_excused_that_is_not_there_any_more() -> None:
    for page, begins in NOT_RUN | ENDLESS:
        commands = [command for block in blocks(page) if block.kind == "sh" for command in block.commands]
        assert any(command.startswith(begins) for command in commands), (page, begins)
    assert set(ENGINE_PAGES) <= set(PAGES)
    for page, begins in MAY_DIFFER:
        lines = [line for block in blocks(page) if block.role == "output" for line in block.text.splitlines()]
        assert any(line.startswith(begins) for line in lines), (page, begins)
    for page, begins in SHOWN | ELSEWHERE:
        assert any(block.text.startswith(begins) for block in blocks(page)), (page, begins)


def test_what_serve_says_first_is_what_the_page_shows(tmp_path: Path) -> None:
    (block,) = (each for each in blocks("docs/get-started.md") if each.text.startswith("Spillway listens"))
    settings = Settings(store=StoreSettings(folder=str(tmp_path)))
    provider = ProviderSettings(base_url="http://127.0.0.1:1/v1")
    node = Node(
        msgspec.structs.replace(settings, providers={EMULATED: provider}), rename={HOLYSHEEP: EMULATED}, environ={}
    )
    node.open()
    with closing(socket.socket()) as public, closing(socket.socket()) as admin:
        public.bind(("127.0.0.1", 0))
        admin.bind(("127.0.0.1", 0))
        said = _banner(node, public, admin, emulated=True)
    node.database.close()
    for real in (f"{tmp_path}", f"{REPO}/models"):
        said = said.replace(
            real, "/home/you/" + ("spillway/models" if real.endswith("models") else ".local/share/spillway")
        )
    check_output(block, block.text, said)


@pytest.fixture
async def a_scene(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene(request.param, tmp_path) as made:
        yield made


@pytest.mark.parametrize(("a_scene", "page"), [(page, page) for page in RUN_HERE], indirect=["a_scene"], ids=RUN_HERE)
async def test_whoever_does_what_a_page_says_gets_what_it_says(a_scene: Scene, page: str) -> None:
    reader = Reader(page, a_scene.home, instead=a_scene.instead, environ=a_scene.environ, before=a_scene.before)
    await asyncio.to_thread(reader.follow)
