"""Plays some minutes on a node with the demo model and an emulated cloud, and takes pictures of its page in each state,
and of `spillway top`.

Calm, a burst that overflows, an engine that is killed and comes back; then nobody there, and a locked page.
"""

import argparse
import asyncio
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from _harness import load
from _harness.emulator import start_emulator
from _harness.node import kill_engine, start_node
from _harness.options import main as run_main
from _harness.process import CannotRun, Service, free_port
from PIL import Image
from playwright.async_api import Browser, Page, Route, async_playwright

from node.top.app import Top
from node.top.client import Client
from node.top.glyphs import UNICODE
from node.top.target import named

OUT = Path(__file__).resolve().parents[1] / "docs" / "dashboard"
MOST_BYTES = 150_000
_KEY = "screenshots"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_QUESTIONS = ("What is Spillway?", "Say hello.", "Count to five.", "Which model is this?", "What does overflow mean?")
_WIDE, _PHONE = (1280, 860), (390, 844)
_TERMINAL = (140, 44)
# (seconds, requests per second)
_DAY = ((45, 2.0), (20, 14.0), (25, 2.0))
_AFTER_THE_KILL = ((170, 3.0),)

Theme = Literal["light", "dark"]


def config(port: int, cloud: str, more: str) -> str:
    """Settings for a node in front of the emulator at `cloud`."""
    return f"""listen: {{port: {port}}}
models: [demo]
providers:
  holysheep: {{base_url: "{cloud}/v1", api_key_env: SHOTS_KEY, assumed_ttft_s: 0.5, emulated: true}}
budget: {{day_usd: 0.05}}
{more}
"""


def arrivals(node: Service, day: Sequence[tuple[int, float]], rng: random.Random) -> list[tuple[float, load.Call]]:
    """Requests of every kind at random times (Poisson)."""
    calls, at_s, ends_s = [], 0.0, 0.0
    for lasts_s, rate in day:
        ends_s += lasts_s
        while (at_s := at_s + rng.expovariate(rate)) < ends_s:
            calls.append((at_s, call(node, rng)))
        at_s = ends_s
    return calls


def call(node: Service, rng: random.Random) -> load.Call:
    """One of them: most may leave, some are pinned, some were asked before."""
    kind = rng.random()
    wishes: dict[str, object] = {"ttft_budget_ms": 700, "cache": False}
    body: dict[str, object] = {"model": "demo", "max_tokens": rng.randint(16, 60), "stream": True}
    if kind < 0.1:
        wishes["require_local"] = True
        wishes["ttft_budget_ms"] = 4000
    elif kind < 0.25:
        body |= {"temperature": 0, "max_tokens": 24}
        wishes = {}
    body["messages"] = [{"role": "user", "content": rng.choice(_QUESTIONS)}]
    return load.Call(f"{node.url}/v1/chat/completions", json.dumps({**body, "spillway": wishes}).encode(), stream=True)


class Camera:
    """Opens pages and keeps pictures of them."""

    def __init__(self, browser: Browser, folder: Path) -> None:
        self._browser = browser
        self._folder = folder

    async def page(self, size: tuple[int, int] = _WIDE, theme: Theme = "light") -> Page:
        """An empty page of its own."""
        viewport = {"width": size[0], "height": size[1]}
        context = await self._browser.new_context(viewport=viewport, color_scheme=theme)  # type: ignore[arg-type]
        return await context.new_page()

    async def live(self, url: str, size: tuple[int, int] = _WIDE, theme: Theme = "light") -> Page:
        """The node's page, with its figures in it."""
        page = await self.page(size, theme)
        await page.goto(url)
        await page.wait_for_selector("[data-state=live]")
        await page.wait_for_timeout(2500)
        return page

    async def take(self, page: Page, name: str, at: str | None = None) -> None:
        """A picture of what is to be seen, from the element `at` on."""
        if at is not None:
            script = "at => document.querySelector(at).scrollIntoView({behavior: 'instant'})"
            await page.evaluate(script, at)
            await page.wait_for_timeout(300)
        path = self._folder / f"{name}.png"
        Image.open(io.BytesIO(await page.screenshot())).convert("RGB").quantize(256).save(path, optimize=True)
        size_bytes = path.stat().st_size
        print(f"{path.name}: {size_bytes:,} bytes", flush=True)
        if size_bytes > MOST_BYTES:
            raise CannotRun(f"{path.name} is larger than {MOST_BYTES:,} bytes")


async def terminal(camera: Camera, url: str) -> Page:
    """What `spillway top` draws, with the browser's own fonts: the file names one on a server."""
    place = named(url, None)
    app = Top(Client(lambda: place), UNICODE)
    async with app.run_test(size=_TERMINAL) as pilot:
        while not app.seen.live:
            await pilot.pause(0.1)
        await pilot.pause(2.5)
        drawn = app.export_screenshot(title="spillway top")
    drawn = re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn)
    assert box is not None
    page = await camera.page((_WIDE[0], round(_WIDE[0] * float(box[2]) / float(box[1]))))
    await page.set_content(f'<body style="margin: 0">{drawn}')
    return page


async def never(route: Route) -> None:
    """A node that takes a request and says nothing."""
    await asyncio.sleep(3600)


async def quiet_states(camera: Camera, node: Service) -> None:
    """Before anything has happened."""
    page = await camera.page()
    await page.route("**/dashboard/feed", never)
    await page.goto(node.url)
    await page.wait_for_timeout(1000)
    await camera.take(page, "loading")
    await camera.take(await camera.live(node.url), "empty")


async def busy_states(camera: Camera, node: Service, rng: random.Random) -> None:
    """The day, the burst, the kill; then the pictures, and one question in the playground."""
    await load.open_loop(arrivals(node, _DAY, rng))
    kill_engine(node)
    going_on = asyncio.create_task(load.open_loop(arrivals(node, _AFTER_THE_KILL, rng)))
    await asyncio.sleep(5)
    page = await camera.live(node.url)
    ready = page.locator("[data-engine=demo] .card-head .badge", has_text="ready")
    await ready.wait_for(timeout=1000 * (_AFTER_THE_KILL[0][0] - 10))
    await page.wait_for_timeout(15_000)
    await camera.take(page, "live")
    await camera.take(await terminal(camera, node.url), "top")
    await camera.take(page, "engines", "#engines")
    await camera.take(page, "decisions", "#decisions")
    await camera.take(await camera.live(node.url, theme="dark"), "dark")
    phone = await camera.live(node.url, _PHONE)
    await camera.take(phone, "phone")
    await camera.take(phone, "phone-decisions", "#decisions")
    going_on.cancel()
    await page.locator("#ask [name=ttft]").fill("800")
    await page.locator("#send").click()
    await page.get_by_text("The answer is complete.").wait_for()
    await camera.take(page, "playground", "#playground")
    os.kill(node.pid, signal.SIGTERM)
    await page.wait_for_selector("[data-state=lost]")
    await page.evaluate("scrollTo({top: 0, behavior: 'instant'})")
    await page.wait_for_timeout(500)
    await camera.take(page, "lost")


async def picture(folder: Path, browser_path: str, seed: int) -> None:
    """All of them."""
    rng = random.Random(seed)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        camera = Camera(browser, folder)
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spillway-screenshots-")))
            cloud = stack.enter_context(
                start_emulator(["--ttft-ms=250", "--answer-tokens=40"], api_key=_KEY, directory=scratch)
            )
            settings = {"busy": "engine: {demo: {max_num_seqs: 4}}", "locked": f"cloud_only: true\n{_keys()}"}
            for name, more in settings.items():
                (scratch / name).mkdir()
                port = free_port()
                text = config(port, cloud.service.url, more)
                within_s = 420  # an engine on a busy machine
                with start_node(
                    text, {"SHOTS_KEY": _KEY}, directory=scratch / name, port=port, ready_within_s=within_s
                ) as node:
                    if name == "locked":
                        page = await camera.page()
                        await page.goto(node.url)
                        await page.wait_for_selector("#locked:not([hidden])")
                        await camera.take(page, "locked")
                    else:
                        await quiet_states(camera, node)
                        await busy_states(camera, node, rng)
        await browser.close()


def _keys() -> str:
    return f"keys: [{{name: app, sha256: {hashlib.sha256(b'sk-app').hexdigest()}}}]"


def run(arguments: argparse.Namespace) -> int:
    """Takes them; 0 when all are there."""
    browser_path = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    if browser_path is None:
        raise CannotRun("there is no Chromium here (Debian, Ubuntu: apt install chromium)")
    arguments.out.mkdir(parents=True, exist_ok=True)
    asyncio.run(picture(arguments.out, browser_path, arguments.seed))
    return 0


def main() -> int:
    """Reads the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="where to (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the load")
    arguments = parser.parse_args()
    return run_main(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
