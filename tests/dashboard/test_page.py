"""The page in a real browser, in front of a real node and an emulated cloud."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import signal
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, Route, expect

from node.dashboard.feed import Hello, Point, event
from node.dashboard.reasons import SENTENCES
from node.routing.values import Reason
from tests.dashboard.test_top_text import STARTED_S, hello
from tests.serve.node_process import ADMIN_KEY, NodeProcess, chat, emulated, running

ALICE = "sk-alice"
KEYS = f"keys: [{{name: alice, sha256: {hashlib.sha256(ALICE.encode()).hexdigest()}}}]\n"
MOST_BYTES = 300_000
_STATIC = Path(__file__).resolve().parents[2] / "node" / "dashboard" / "static"


async def scripted_run(node: NodeProcess) -> None:
    """Three streams, one of which misses its budget; a whole answer, and again from the cache; a refusal."""
    async with httpx.AsyncClient(timeout=60) as client:

        async def post(**more: object) -> int:
            return (await client.post(f"{node.url}/v1/chat/completions", json={**chat("Hello"), **more})).status_code

        for _ in range(2):
            assert await post(stream=True, max_tokens=8) == 200
        assert await post(stream=True, max_tokens=8, spillway={"cache": False, "ttft_budget_ms": 1}) == 200
        for _ in range(2):
            assert await post(max_tokens=8, temperature=0, spillway={}) == 200
        assert await post(spillway={"require_local": True}) in (403, 503)


async def test_every_panel_shows_the_numbers_of_a_scripted_run(page: Page, tmp_path: Path) -> None:
    async with emulated() as cloud, running(cloud, tmp_path, "budget: {day_usd: 3}") as node:
        await scripted_run(node)
        await page.goto(node.url)
        await expect(page.locator("#status")).to_have_text("Live")
        spent = f"${cloud.billed_nano_usd / 1e9:.7f}"[:6]
        await expect(page.locator("#tile-stayed")).to_contain_text("1 of 5 answers")
        await expect(page.locator("#tile-kept .big")).to_have_text("67\u202f%")
        await expect(page.locator("#tile-spent .big")).to_contain_text(spent)
        await expect(page.locator("#tile-left")).to_contain_text("of $3.00 today")
        await expect(page.locator("#money")).to_contain_text("left of $3.00")
        provider = page.locator("[data-provider=holysheep]")
        await expect(provider).to_contain_text("breaker closed")
        await expect(provider.locator("dl")).to_contain_text("Answers4")
        await expect(provider.locator(".percentiles b").first).to_contain_text("ms")
        await expect(page.locator("#gpu-list")).to_contain_text("No GPU")
        await expect(page.locator("#engine-list")).to_contain_text("no engine here")
        await expect(page.locator("#decision-rows tr")).to_have_count(6)
        refused = page.locator("#decision-rows tr").first
        await expect(refused).to_contain_text("nobody")
        await expect(page.locator("#decision-rows tr.cache")).to_contain_text("cache hit")
        await expect(page.locator("#decision-rows .late")).to_have_count(1)
        reasons = page.locator("#reasons button")
        await expect(reasons.filter(has_text="cloud only model")).to_have_text("cloudcloud only model4")
        await expect(page.locator("#engines-trouble")).to_be_hidden()
        await reasons.filter(has_text="cache hit").click()
        await expect(page.locator("#decision-rows tr")).to_have_count(1)
        await expect(reasons.filter(has_text="cache hit")).to_have_attribute("aria-pressed", "true")
        await expect(page.locator("#chart-requests .legend")).to_contain_text("Cloud")
        drawn = await page.locator("#chart-requests canvas").evaluate(
            "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean)"
        )
        assert drawn


async def test_decisions_are_filtered_by_the_node_which_remembers_more(page: Page, tmp_path: Path) -> None:
    async with emulated() as cloud, running(cloud, tmp_path) as node:
        await scripted_run(node)
        await page.goto(node.url)
        await expect(page.locator("#decision-rows tr")).to_have_count(6)
        await page.locator("#filters [name=backend]").select_option("cache")
        await expect(page.locator("#decision-rows tr")).to_have_count(1)
        await expect(page.locator("#decisions-count")).to_have_text("1 of the last 6")
        await page.locator("#filters [name=reason]").select_option("last_moment")
        await expect(page.locator("#decisions-empty")).to_contain_text("None of the last 6 requests")
        await page.locator("#filters [name=reason]").select_option("")
        await page.locator("#filters [name=backend]").select_option("")
        answer = await node.chat(max_tokens=3)
        await page.locator("#filters [name=text]").fill(answer.headers["x-request-id"])
        await expect(page.locator("#decision-rows tr")).to_have_count(1)
        await expect(page.locator("#decision-rows .why")).to_contain_text("The model has no engine here.")


async def test_search_that_is_answered_late_does_not_take_the_place_of_a_newer_one(page: Page, tmp_path: Path) -> None:
    let_go, gone = asyncio.Event(), asyncio.Event()

    async def held_up(route: Route) -> None:
        await let_go.wait()
        await route.continue_()
        gone.set()

    async with emulated() as cloud, running(cloud, tmp_path) as node:
        await scripted_run(node)
        await page.goto(node.url)
        await expect(page.locator("#decision-rows tr")).to_have_count(6)
        await page.route("**/dashboard/decisions?backend=cache", held_up)
        async with page.expect_request("**/dashboard/decisions?backend=cache"):
            await page.locator("#filters [name=backend]").select_option("cache")
        await page.locator("#filters [name=backend]").select_option("none")
        await expect(page.locator("#decision-rows tr")).to_have_count(1)
        async with page.expect_response("**/dashboard/decisions?backend=cache") as late:
            let_go.set()
        await gone.wait()
        await (await late.value).finished()
        await page.evaluate("() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
        await expect(page.locator("#decision-rows tr")).to_contain_text("nobody")


async def test_playground_streams_and_says_where_why_how_fast_and_for_how_much(page: Page, tmp_path: Path) -> None:
    async with emulated(pace_s=0.1) as cloud, running(cloud, tmp_path) as node:
        await page.goto(node.url)
        await expect(page.locator("#ask [name=model]")).to_have_value("demo")
        await page.locator("#ask [name=prompt]").fill("What is Spillway?")
        await page.locator("#ask [name=max]").fill("20")
        await page.locator("#ask [name=ttft]").fill("700")
        await page.locator("#send").click()
        await expect(page.locator("[data-fact=first] b")).to_contain_text("ms")
        await expect(page.locator("#play-status")).to_have_text("Answering")  # part of it is there, the rest to come
        assert await page.locator("#text").inner_text() != ""
        await expect(page.locator("#play-status")).to_have_text("The answer is complete.")
        await expect(page.locator("[data-fact=where]")).to_contain_text("holysheep")
        await expect(page.locator("[data-fact=why]")).to_contain_text("The model has no engine here.")
        await expect(page.locator("[data-fact=speed] b")).to_contain_text("tokens/s")
        await expect(page.locator("[data-fact=tokens] b")).to_contain_text("→ 20")
        await expect(page.locator("[data-fact=cost] b")).to_contain_text("$0.0000")
        await expect(page.locator("#decision-rows tr").first).to_contain_text("of 700\u202fms")


async def test_playground_keeps_private_what_is_to_stay_and_tells_the_refusal(page: Page, tmp_path: Path) -> None:
    async with emulated() as cloud, running(cloud, tmp_path) as node:
        await page.goto(node.url)
        await expect(page.locator("#ask [name=model]")).to_have_value("demo")
        await page.get_by_text("Never leaves").click()
        await page.locator("#send").click()
        await expect(page.locator("#text .error")).to_be_visible()
        await expect(page.locator("#play-status")).to_have_text("It failed.")
        assert cloud.log.records == []


async def test_answer_can_be_stopped(page: Page, tmp_path: Path) -> None:
    async with emulated(pace_s=0.2) as cloud, running(cloud, tmp_path) as node:
        await page.goto(node.url)
        await expect(page.locator("#ask [name=model]")).to_have_value("demo")
        await page.locator("#send").click()
        await page.locator("#stop").click()
        await expect(page.locator("#play-status")).to_have_text("Stopped.")
        await expect(page.locator("#decision-rows tr").first).to_contain_text("client closed")


async def test_page_survives_a_restart_of_the_node(page: Page, tmp_path: Path) -> None:
    async with emulated() as cloud, running(cloud, tmp_path) as node:
        await node.chat(max_tokens=3)
        await page.goto(node.url)
        await expect(page.locator("#decision-rows tr")).to_have_count(1)
        node.send(signal.SIGTERM)
        await node.ended()
        await expect(page.locator("#status")).to_have_text("Disconnected")
        await expect(page.get_by_role("alert")).to_contain_text("What you see is of")
        await expect(page.locator("#decision-rows tr")).to_have_count(1)
        node.start()
        await node.until_ready()
        await expect(page.locator("#status")).to_have_text("Live", timeout=20_000)
        await expect(page.locator("#decisions-empty")).to_contain_text("No request has ended yet")
        await node.chat(max_tokens=3)
        await expect(page.locator("#decision-rows tr")).to_have_count(1)
        await expect(page.locator("#notices")).to_be_empty()


async def test_another_tenant_sees_no_figures_and_the_operator_does(page: Page, tmp_path: Path) -> None:
    async with emulated() as cloud, running(cloud, tmp_path, KEYS) as node:
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {ALICE}"}, timeout=30) as client:
            await client.post(f"{node.url}/v1/chat/completions", json=chat(max_tokens=3))
        await page.goto(node.url)
        await expect(page.locator("#locked")).to_be_visible()
        await expect(page.locator("#live")).to_be_hidden()
        await page.locator("#admin-key").fill(ALICE)
        await page.get_by_role("button", name="Show the figures").click()
        await expect(page.locator("#unlock-error")).to_have_text("That is not the admin key of this node.")
        assert await page.evaluate("sessionStorage.length + localStorage.length") == 0
        assert "alice" not in await page.locator("#live").inner_text()
        await page.locator("#ask [name=key]").fill(ALICE)
        await page.locator("#ask [name=key]").blur()
        await expect(page.locator("#ask [name=model]")).to_have_value("demo")
        await page.locator("#send").click()
        await expect(page.locator("#play-status")).to_have_text("The answer is complete.")
        await page.locator("#admin-key").fill(ADMIN_KEY)
        await page.get_by_role("button", name="Show the figures").click()
        await expect(page.locator("#decision-rows tr").first).to_contain_text("alice")
        assert await page.evaluate("localStorage.length") == 0
        await page.get_by_role("button", name="Forget the key").click()
        await expect(page.locator("#locked")).to_be_visible()


async def test_a_link_may_bring_the_admin_key_which_stays_in_no_address(page: Page, tmp_path: Path) -> None:
    async with emulated() as cloud, running(cloud, tmp_path, KEYS) as node:
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        await page.goto(f"{node.url}/#key={ADMIN_KEY}")
        await expect(page.locator("#status")).to_have_text("Live")
        assert page.url == f"{node.url}/"
        assert not [url for url in asked if ADMIN_KEY in url and "#" not in url]
        await page.goto(f"{node.url}/#key=another")
        await page.reload()
        await expect(page.locator("#locked")).to_be_visible()


async def test_operator_leaves_a_provider_alone_from_the_admin_port_and_nobody_from_the_other(
    page: Page, tmp_path: Path
) -> None:
    async with emulated() as cloud, running(cloud, tmp_path) as node:
        await page.goto(node.url)
        await expect(page.locator("[data-provider=holysheep]")).to_be_visible()
        await expect(page.locator("[data-provider=holysheep] button")).to_have_count(0)
        await page.goto(node.admin_url)
        await page.locator("#admin-key").fill(ADMIN_KEY)
        await page.get_by_role("button", name="Show the figures").click()
        page.on("dialog", lambda dialog: dialog.accept())
        await page.get_by_role("button", name="Leave it alone").click()
        await expect(page.locator("[data-provider=holysheep]")).to_contain_text("left alone")
        assert (await node.chat()).status_code == 503
        await page.get_by_role("button", name="Use it again").click()
        await expect(page.locator("[data-provider=holysheep] .card-head")).not_to_contain_text("left alone")
        await expect(page.locator("[data-provider=holysheep] .error")).to_contain_text("One call at a time")
        await expect(page.locator("#play")).to_contain_text("This is the admin port.")


async def test_everything_comes_from_the_node_and_in_few_bytes(page: Page, tmp_path: Path) -> None:
    async with emulated() as cloud, running(cloud, tmp_path) as node:
        hosts = set()
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        await page.goto(node.url)
        await expect(page.locator("#status")).to_have_text("Live")
        urls = await page.evaluate("performance.getEntriesByType('resource').map(each => each.name)")
        files = {"/", *(urlsplit(url).path for url in urls if "/feed" not in url and "/v1/" not in url)}
        assert len(files) > 8
        assert sum([len((await node.get(path)).content) for path in files]) <= MOST_BYTES
        assert hosts == {f"127.0.0.1:{node.port}"}


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
async def test_nothing_sticks_out_and_axe_finds_nothing_serious(
    browser: Browser, tmp_path: Path, colours: Literal["light", "dark"], width: int
) -> None:
    async with emulated() as cloud, running(cloud, tmp_path, "budget: {day_usd: 3}") as node:
        await scripted_run(node)
        context = await browser.new_context(viewport={"width": width, "height": 800}, color_scheme=colours)
        page = await context.new_page()
        await page.goto(node.url)
        await expect(page.locator("#decision-rows tr")).to_have_count(6)
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        # axe is put into the page from outside, which the page's own policy would not let a script of its own do.
        found = await Axe().run(page, options={"resultTypes": ["violations"]})
        await context.close()
        serious = [each for each in found.response["violations"] if each["impact"] in ("serious", "critical")]
        assert [(each["id"], [one["html"][:120] for one in each["nodes"]][:3]) for each in serious] == []


async def test_provider_that_pretends_says_so_as_soon_as_the_settings_do(page: Page, tmp_path: Path) -> None:
    async with emulated() as cloud, running(cloud, tmp_path) as node:
        await page.goto(node.url)
        provider = page.locator("[data-provider=holysheep]")
        await expect(provider).to_contain_text("in the cloud")
        await expect(page.locator("#notices")).to_be_empty()
        settings = node.config.read_text()
        node.config.write_text(settings.replace("TEST_PROVIDER_KEY}", "TEST_PROVIDER_KEY, emulated: true}"))
        node.send(signal.SIGHUP)
        await expect(provider).to_contain_text("emulator")
        await expect(provider).to_contain_text("its prices are made up")
        await expect(page.locator("#notices")).to_contain_text("The cloud is an emulator on this machine")


async def showing(page: Page, node: NodeProcess, document: Hello) -> None:
    """The node's page with a feed that says this, and no more."""

    async def tell(route: Route) -> None:
        await route.fulfill(content_type="text/event-stream", body=event("hello", document))

    await page.route("**/dashboard/feed", tell)
    await page.goto(node.url)
    await expect(page.locator("#engine-list .card").first).to_be_visible()


async def test_provider_that_is_away_says_for_how_long_why_and_when_it_is_tried_again(
    page: Page, tmp_path: Path
) -> None:
    async with emulated() as cloud, running(cloud, tmp_path) as node:
        await showing(page, node, hello())
        away = page.locator("[data-provider=a-provider-with-a-long-name]")
        await expect(away.locator(".error")).to_have_text(
            "Away for 1\u202fmin 5\u202fs: it kept failing. The next call is tried in 3.20\u202fs."
        )
        await expect(away.locator(".history")).to_contain_text("awayfor 1\u202fmin 5\u202fs")
        await expect(page.get_by_role("link", name="Providers (one is not used)")).to_be_visible()
        await expect(page.get_by_role("link", name="Engines", exact=True)).to_be_visible()
        await expect(page.locator("[data-engine=big] .history")).to_contain_text("downfor 30\u202fs")


# How much of the height a line of the colour takes, from one share of the width to another.
_LINE = """([name, from, to]) => {
    const canvas = document.querySelector("#chart-ttft canvas"), plot = document.querySelector("#chart-ttft .u-over");
    const colour = document.createElement("canvas").getContext("2d");
    colour.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    colour.fillRect(0, 0, 1, 1);
    const wanted = colour.getImageData(0, 0, 1, 1).data;
    const [left, width] = [plot.offsetLeft, plot.clientWidth];
    const [start, end] = [Math.round(left + from * width), Math.round(left + to * width)];
    const { data } = canvas.getContext("2d").getImageData(start, 0, end - start, canvas.height);
    const rows = [];
    for (let i = 0; i < data.length; i += 4) {
        const isIt = [0, 1, 2].every((part) => Math.abs(data[i + part] - wanted[part]) < 12);
        if (isIt) rows.push(Math.floor(i / 4 / (end - start)));
    }
    return rows.length ? (Math.max(...rows) - Math.min(...rows)) / plot.clientHeight : 0;
}"""


async def test_late_first_token_presses_no_others_flat_and_no_line_crosses_where_nothing_was_measured(
    page: Page, tmp_path: Path
) -> None:
    def second(at: int) -> Point:
        """Three minutes of 50 ms to 0.4 s, and once a minute; then no stream but one."""
        measured_s = (0.05 if at // 40 % 2 else 0.4) if at < 180 else None
        if at == 240:
            measured_s = 0.2
        return Point(at_s=STARTED_S + at, ttft_p50_s=measured_s, ttft_p95_s=60.0 if at == 110 else measured_s)

    async with emulated() as cloud, running(cloud, tmp_path) as node:
        await showing(page, node, msgspec.structs.replace(hello(), history=tuple(second(at) for at in range(300))))
        await expect(page.locator("#chart-ttft canvas")).to_be_visible()

        async def height(from_s: float, to_s: float, line: str = "--line-2") -> float:
            """How much of the chart's height the median's line takes from one second to another."""
            share: float = await page.evaluate(_LINE, [line, from_s / 300, to_s / 300])
            return share

        await expect(page.locator("#away-note")).to_be_visible()  # its engine was down for half a minute
        assert await height(10, 100) > 0.15
        assert await height(105, 125, "--line-3") > 0.4
        assert await height(185, 230) == 0
        assert 0 < await height(235, 245) < 0.1
        assert await height(250, 300) == 0


async def test_page_is_used_with_the_keyboard_alone_and_nothing_moves_for_who_wants_that(
    browser: Browser, tmp_path: Path
) -> None:
    async with emulated() as cloud, running(cloud, tmp_path) as node:
        await scripted_run(node)
        context = await browser.new_context(reduced_motion="reduce")
        page = await context.new_page()
        await page.goto(node.url)
        await expect(page.locator("#reasons button").first).to_be_visible()
        order = []
        for _ in range(40):
            await page.keyboard.press("Tab")
            order.append(await page.evaluate("document.activeElement.innerText || document.activeElement.name"))
            assert await page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", order
            if order[-1] == "Ask":
                break
        assert order[:6] == ["Skip to the figures", "Traffic", "Engines", "Providers", "Decisions", "Playground"]
        reasons = [each for each in order if "only model" in each or "cache hit" in each]
        assert order.index(reasons[0]) < order.index("Pause") < order.index("Ask")
        moving = "document.getAnimations().filter(each => each.playState === 'running').length"
        assert await page.evaluate(moving) == 0
        assert await page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
        await context.close()


def test_page_and_terminal_have_the_same_sentence_for_every_reason() -> None:
    source = (_STATIC / "reasons.js").read_text(encoding="utf-8")
    said = {name: json.loads(text) for name, text in re.findall(r'^  (\w+): (".*"),$', source, re.MULTILINE)}
    assert said == dict(SENTENCES)
    assert set(SENTENCES) == {reason.value for reason in Reason}
