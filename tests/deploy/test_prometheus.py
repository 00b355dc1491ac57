"""What scripts/deploy has for Prometheus and Grafana, in a real Prometheus that scrapes a running node."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.prometheus import DEPLOY, Prometheus, program, prometheus
from tests.serve.node_process import emulated, free_port, running, until

pytestmark = pytest.mark.skipif(
    program("prometheus") is None or program("promtool") is None,
    reason="Prometheus is not installed (Debian, Ubuntu: apt install --no-install-recommends prometheus)",
)

_NAME = re.compile(r"\b(?:(?:spillway|vllm)[_:][a-z0-9_:]+|process_[a-z_]+)\b")
_DASHBOARD = json.loads((DEPLOY / "grafana" / "spillway.json").read_text())
_RULES = [
    rule for group in yaml.safe_load((DEPLOY / "spillway.rules.yml").read_text())["groups"] for rule in group["rules"]
]
_SPENT_BUT_FOR = 'abs(max(spillway_budget_spent_usd{window="month"}) - sum(spillway_spend_usd_total)) > bool 0.000001'
_RECORDED = {rule["record"] for rule in _RULES if "record" in rule}


def dashboard_queries() -> list[str]:
    """As Grafana would send them."""
    queries = [target["expr"] for panel in _DASHBOARD["panels"] for target in panel.get("targets", ())]
    for variable, value in (("$instance", ".*"), ("$model", ".*"), ("$__rate_interval", "1m")):
        queries = [each.replace(variable, value) for each in queries]
    return queries


def named() -> set[str]:
    """Every metric that the rules, the dashboard and its variables name."""
    texts = [rule["expr"] for rule in _RULES] + dashboard_queries()
    texts += [each["query"]["query"] for each in _DASHBOARD["templating"]["list"] if each["type"] == "query"]
    return {name for text in texts for name in _NAME.findall(text)} - _RECORDED


def offered(text: str) -> Iterator[str]:
    """The names of samples that a scrape has, or would have once there is something to say."""
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            yield from (name + suffix for suffix in ("_bucket", "_sum", "_count")) if kind == "histogram" else (name,)


def lint(text: str) -> list[str]:
    """What promtool finds wrong with a scrape; the names that are vLLM's are as vLLM has them."""
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("vllm:")]


@pytest.mark.parametrize(
    "command",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "spillway.rules.yml"),
        ("test", "rules", "spillway.test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_finds_nothing_wrong(command: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *command], cwd=DEPLOY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test_that_sees_it_fire() -> None:
    tests = yaml.safe_load((DEPLOY / "spillway.test.yml").read_text())["tests"]
    fired = {each["alertname"] for test in tests for each in test["alert_rule_test"] if each.get("exp_alerts")}
    assert fired == {rule["alert"] for rule in _RULES if "alert" in rule}


async def test_real_prometheus_scrapes_a_node_and_takes_every_query(tmp_path: Path) -> None:
    more = "budget: {day_usd: 5}\nrouting: {ttft_budget_ms: 5000}"
    async with emulated() as emulator, running(emulator, tmp_path, more) as node:
        for _ in range(3):
            await node.chat(stream=True)
        text = (await node.get("/metrics")).text
        assert named() - set(offered(text)) == set()
        assert await asyncio.to_thread(lint, text) == []
        async with prometheus(node.url.removeprefix("http://"), tmp_path, free_port()) as server:
            await until(lambda: _is_scraped(server))
            await node.chat(stream=True)
            await until(lambda: _says(server, 'sum(spillway_slo_requests_total{result="kept"})', 4.0))
            assert await _says(server, 'sum(spillway_requests_total{backend="holysheep",ending="done"})', 4.0)
            assert await _says(server, 'spillway_provider_breaker_state{state="closed"}', 1.0)
            assert await _says(server, 'spillway_budget_limit_usd{window="day"}', 5.0)
            # The ledger is read every few seconds, and an hour or a day may begin meanwhile.
            await until(lambda: _says(server, _SPENT_BUT_FOR, 0.0))
            assert await server.query("spillway_saved_usd")
            for query in dashboard_queries():
                await server.query(query)
            groups = (await server.get("/api/v1/rules"))["groups"]
            assert len([rule for group in groups for rule in group["rules"]]) == len(_RULES)
            await until(lambda: _evaluated(server))
            assert [each["labels"] for each in (await server.get("/api/v1/alerts"))["alerts"]] == []


async def _is_scraped(server: Prometheus) -> bool:
    return await _says(server, 'up{job="spillway"}', 1.0)


async def _says(server: Prometheus, query: str, value: float) -> bool:
    return {float(each["value"][1]) for each in await server.query(query)} == {value}


async def _evaluated(server: Prometheus) -> bool:
    groups: list[dict[str, Any]] = (await server.get("/api/v1/rules"))["groups"]
    return all(rule["health"] == "ok" for group in groups for rule in group["rules"])


async def test_scrape_that_is_not_from_this_machine_is_not_answered_and_the_admin_port_wants_its_key(
    tmp_path: Path,
) -> None:
    async with emulated() as emulator, running(emulator, tmp_path) as node:
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{node.admin_url}/metrics")).status_code == 401
        assert "spillway_build_info" in (await node.admin("/metrics")).text
