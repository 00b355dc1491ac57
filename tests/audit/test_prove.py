"""The parts of `spillway audit prove`: that a leak would be seen, at the cloud and on the wire. Whole: tests/live."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import httpx
import pytest

from node.audit.canaries import CONTROL, MODEL, canaries, paths
from node.audit.prove import CONDITIONS, Tally
from node.audit.proving_ground import Listener
from node.emulator.config import EmulatorConfig
from node.privacy.content import ContentRules
from node.privacy.detectors import Detector
from node.settings import ContentRulesSettings

RULES = ContentRulesSettings(detect=tuple(Detector), words=("wordx",))


async def test_canary_that_arrives_is_heard_even_where_the_cloud_answers_with_an_error() -> None:
    async with Listener(EmulatorConfig(api_key="k")) as cloud, httpx.AsyncClient() as client:
        for switches in ({}, {"error_503": True}):
            cloud.switches.replace(switches)
            (canary,) = canaries(CONTROL, 1)
            body = canary.body | {"model": "gpt-4.1"}
            assert canary.token.encode() not in cloud.heard
            await client.post(f"{cloud.url}/v1/chat/completions", json=body, headers={"authorization": "Bearer k"})
            assert canary.token.encode() in cloud.heard


@pytest.mark.parametrize(
    ("leaks", "controls_arrived", "holds"), [(0, 1, True), (1, 1, False), (0, 0, False)], ids=["held", "leak", "blind"]
)
def test_it_holds_only_if_nothing_leaked_and_a_leak_would_have_been_seen(
    leaks: int, controls_arrived: int, holds: bool
) -> None:
    tally = Tally(sent=3, leaked=canaries(CONTROL, leaks), controls=3, controls_arrived=controls_arrived)
    assert tally.holds is holds


def test_canaries_differ_from_the_control_in_their_pin_alone() -> None:
    def bare(body: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in body.items() if name not in ("messages", "spillway")}

    controls = canaries(CONTROL, 3, temperature=0, ttft_budget_ms=1)
    assert {each.body["spillway"]["ttft_budget_ms"] for each in controls} == {1}
    for path in paths(RULES, "wordx"):
        of_path = canaries(path, 3, temperature=0, ttft_budget_ms=1)
        assert [bare(each.body) for each in of_path] == [bare(each.body) for each in controls]
        assert {each.body["model"] for each in of_path} == {MODEL}


async def test_each_content_path_is_pinned_by_the_rule_it_names_and_the_control_by_none() -> None:
    rules = ContentRules(RULES)
    for path in (CONTROL, *paths(RULES, "wordx")):
        rule = path.name.removeprefix("content: ") if path.name.startswith("content") else None
        # Its random word may look like a number now and then, and must not.
        for canary in canaries(path, 300):
            assert await rules.match(canary.body, unreadable=False) == rule


def test_every_condition_sends_whole_streamed_and_cloud_only_requests() -> None:
    assert len({condition.name for condition in CONDITIONS}) == len(CONDITIONS) == 7
    assert all(condition.count >= 3 for condition in CONDITIONS)


_ALONE = """
import socket
from node.audit.isolation import isolate
alone = isolate()
if isinstance(alone, str):
    raise SystemExit(f"skip {alone}")
with socket.create_server(("127.0.0.1", 0)) as here:
    socket.create_connection(here.getsockname()).close()
assert alone.packets() == [], "loopback does not count"
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as stray:
    stray.sendto(b"x", ("2001:db8::1", 53))
with socket.socket() as stray:
    stray.setblocking(False)
    stray.connect_ex(("198.51.100.1", 443))
seen = alone.packets()
assert {"2001:db8::1", "198.51.100.1"} == set(seen), seen
assert alone.would_see()
assert alone.packets() == []
"""


def test_packet_beyond_loopback_is_seen_in_a_network_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", _ALONE], capture_output=True, text=True, timeout=60, check=False)
    if done.stderr.startswith("skip"):
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
