"""Row 76 inside the process: what a reload puts in force, what it leaves, and that a bad one changes nothing at all."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from node.app import Node
from node.errors import AuthenticationFailed, UpstreamAuth
from node.reload import Reloader
from node.routing.breaker import BreakerState
from node.routing.values import Zone
from node.settings import Settings, load_settings

ENVIRON = {"CLOUD_KEY": "provider-key", "NEW_KEY": "another"}
MODEL = """
name: small
summary: for tests
local: {source: weights, context_tokens: 1000, capabilities: []}
cloud: [{provider: cloud, model: big, context_tokens: 2000, capabilities: []}]
"""
PRICES = """
provider: cloud
as_of: 2026-01-01
models:
  big: {input_usd_per_mtok: 1.0, output_usd_per_mtok: 2.0}
  other: {input_usd_per_mtok: 1.0, output_usd_per_mtok: 1.0}
"""
SETTINGS = """
models: [small]
providers: {cloud: {base_url: "http://127.0.0.1:1/v1", api_key_env: CLOUD_KEY}}
"""


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class House:
    """A node that is built and never started, with its files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "prices").mkdir()
        (folder / "weights").mkdir()
        (folder / "weights" / "config.json").write_text("{}")
        self.write("small.yaml", MODEL)
        self.write("prices/cloud.yaml", PRICES)
        self.settings_file = folder / "settings" / "spillway.yaml"
        self.settings_file.parent.mkdir()
        self.configure(SETTINGS)
        self.node = Node(self.load(), environ=ENVIRON)
        self.told: list[Settings] = []
        self.reloader = Reloader(self.node, self.load, str(self.settings_file), self.told.append)

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def configure(self, text: str) -> None:
        self.settings_file.write_text(f"catalogue: [{self.folder}]\n{text}")

    def say(self, of_provider: str, rest: str = "") -> None:
        """Configure the one provider with some more keys, and the node with the rest."""
        self.configure(SETTINGS.replace("CLOUD_KEY}", f"CLOUD_KEY, {of_provider}}}") + rest)

    def load(self) -> Settings:
        return load_settings(self.settings_file, ENVIRON)

    def parts(self) -> list[Any]:
        """Everything a reload may exchange, by identity."""
        node = self.node
        return [node.settings, node.models, node.gate, node.providers.states, node.dispatcher.served]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


async def test_row_76_keys_come_into_force_and_go(house: House) -> None:
    def bearer(key: str) -> list[tuple[bytes, bytes]]:
        return [(b"authorization", b"Bearer " + key.encode())]

    house.configure(f"{SETTINGS}keys: [{{name: a, sha256: {digest('one')}}}]\n")
    await house.reloader.reload()
    assert house.node.keyring.authenticate(bearer("one")).tenant == "a"
    house.configure(f"{SETTINGS}keys: [{{name: b, sha256: {digest('two')}, residency: premises}}]\n")
    await house.reloader.reload()
    assert house.node.keyring.authenticate(bearer("two")).tenant == "b"
    with pytest.raises(AuthenticationFailed):
        house.node.keyring.authenticate(bearer("one"))
    await house.reloader.stop()


async def test_row_76_catalogue_and_prices_are_read_anew(house: House) -> None:
    house.write("small.yaml", MODEL.replace("model: big", "model: other"))
    await house.reloader.reload()
    (option,) = house.node.providers.options_for(house.node.models["small"], 0.0, frozenset())
    assert option.model == "other"
    assert house.node.dispatcher.model("small").model is house.node.models["small"]
    await house.reloader.stop()


async def test_row_76_limits_change_under_the_lane_and_those_who_run_it_are_told(house: House) -> None:
    lane = house.node.lanes["small"]
    house.configure(f"{SETTINGS}routing: {{max_queue_depth: 7}}\napi: {{max_connections: 9}}\n")
    await house.reloader.reload()
    policy: Any = house.node.policies["small"].policy
    assert policy.inner.limits.max_queue_depth == 7
    assert house.node.lanes["small"] is lane
    assert house.told == [house.node.settings]
    assert house.node.settings.api.max_connections == 9
    await house.reloader.stop()


@pytest.mark.parametrize(
    ("file", "text", "named"),
    [
        ("settings/spillway.yaml", "models: [small]\nroutes: {}\n", "spillway.yaml: routes:"),
        ("settings/spillway.yaml", "models: [small\n", "spillway.yaml: not YAML"),
        (
            "small.yaml",
            MODEL.replace("context_tokens: 2000", "context_tokens: -1"),
            "small.yaml: cloud[0].context_tokens",
        ),
        ("prices/cloud.yaml", "provider: cloud\n", "cloud.yaml: as_of:"),
        ("settings/spillway.yaml", SETTINGS.replace("CLOUD_KEY", "NOT_SET"), "providers.cloud.api_key_env"),
        ("settings/spillway.yaml", SETTINGS + "ca: 1\n", "spillway.yaml: ca:"),
    ],
)
async def test_row_76_bad_file_changes_nothing_and_is_named_in_one_line(
    house: House, caplog: pytest.LogCaptureFixture, file: str, text: str, named: str
) -> None:
    before = house.parts()
    if file.startswith("settings"):
        house.configure(text)
    else:
        house.write(file, text)
    await house.reloader.reload()
    assert all(now is then for now, then in zip(house.parts(), before, strict=True))
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert str(house.settings_file) in record.getMessage()
    assert named in record.getMessage()
    assert "\n" not in record.getMessage()
    assert house.told == []


async def test_row_76_what_only_a_restart_changes_is_named_and_stays(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.configure(
        SETTINGS.replace("[small]", "[small, demo]")
        + "listen: {port: 1234}\nengine: {small: {max_num_seqs: 3}}\ncache: {ttl_s: 1}\n"
        "supervision: {stall_s: 5}\napi: {strict: true}\n"
    )
    house.write("small.yaml", MODEL.replace("context_tokens: 1000", "context_tokens: 999"))
    local = house.node.models["small"].local
    with caplog.at_level(logging.INFO):
        await house.reloader.reload()
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for key in (
        "listen.port",
        "models",
        "engine.small",
        "cache.ttl_s",
        "supervision.stall_s",
        "small's catalogue entry",
    ):
        assert key in warning
    assert house.node.models["small"].local == local
    assert list(house.node.models) == ["small"]
    assert house.node.settings.listen.port == 8000
    assert house.node.settings.api.strict
    await house.reloader.stop()


async def test_row_76_provider_keeps_what_was_learned_and_gets_a_new_chance(house: House) -> None:
    state = house.node.providers.states["cloud"]
    learned, standing, gate = state.ttft, state.standing, house.node.gate
    standing.isolate("upstream_auth", time.monotonic())
    house.say("weight: 3, slow_s: 4, zone: premises")
    await house.reloader.reload()
    now = house.node.providers.states["cloud"]
    assert (standing.isolated_by, standing.breaker.state(time.monotonic())) == (None, BreakerState.HALF_OPEN)
    assert standing.is_available(time.monotonic())
    assert (now.weight, now.zone, standing.slow_s) == (3.0, Zone.PREMISES, 4.0)
    assert now.ttft is learned
    assert now.standing is standing
    assert house.node.gate is not gate
    await house.reloader.stop()


@pytest.mark.parametrize("key", ["CLOUD_KEY", "NEW_KEY"])
async def test_row_76_refusal_of_the_old_key_does_not_isolate_under_a_new_one(house: House, key: str) -> None:
    standing = house.node.providers.states["cloud"].standing
    under_way = standing.enter(time.monotonic())
    assert under_way is not None
    house.configure(SETTINGS.replace("CLOUD_KEY", key))
    await house.reloader.reload()
    under_way.failed(UpstreamAuth("no such key"), time.monotonic())
    assert standing.is_available(time.monotonic()) is (key == "NEW_KEY")
    await house.reloader.stop()


async def test_row_76_provider_is_isolated_and_let_go_by_the_settings(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    standing = house.node.providers.states["cloud"].standing
    standing.isolate("upstream_auth", time.monotonic())
    with caplog.at_level(logging.INFO):
        house.say("isolated: true")
        await house.reloader.reload()
        assert standing.isolated_by == "operator"
        assert not standing.is_available(time.monotonic())
        assert "is tried again" not in caplog.text
        house.configure(SETTINGS)
        await house.reloader.reload()
    assert house.node.providers.document(time.monotonic())["cloud"]["isolated_by"] is None
    assert standing.is_available(time.monotonic())
    assert "cloud is tried again (it was left alone: operator)" in caplog.text
    await house.reloader.stop()


async def test_row_76_hedging_and_health_checks_follow_the_settings(house: House) -> None:
    dispatcher, health = house.node.dispatcher, house.node.health
    health.start()
    house.say("health_interval_s: 7", "routing: {hedge_share: 0.1, margin_ms: 20}\n")
    house.write("small.yaml", MODEL.replace("model: big", "model: other"))
    await house.reloader.reload()
    hedging = dispatcher.hedger.hedging
    assert hedging is not None
    assert hedging.margin_s == 0.02
    checked = health._checked["cloud"]
    assert (checked.interval_s, checked.models) == (7.0, frozenset({"other"}))
    assert checked.standing is house.node.providers.states["cloud"].standing
    house.say("health_interval_s: null")
    await house.reloader.reload()
    assert dispatcher.hedger.hedging is None
    assert not health._checked
    await house.reloader.stop()
    await health.stop()


async def test_row_76_those_who_wait_for_the_engine_are_still_told_how_long(house: House) -> None:
    before = house.node.dispatcher.model("small").retry_after_s()
    house.configure(f"{SETTINGS}routing: {{max_wait_s: 3}}\n")
    await house.reloader.reload()
    assert house.node.dispatcher.model("small").retry_after_s() == before == 60.0
    assert house.node.engines["small"]._around.patience_s() == 3.0
    await house.reloader.stop()


async def test_row_76_keys_of_two_reloads_at_once_are_those_of_the_last(house: House) -> None:
    house.reloader.request()
    house.configure(f"{SETTINGS}keys: [{{name: a, sha256: {digest('one')}}}]\n")
    house.reloader.request()
    task = house.reloader._task
    assert task is not None
    await task
    assert [each.name for each in house.node.settings.keys] == ["a"]
    await house.reloader.stop()
    assert dataclasses.is_dataclass(house.node.models["small"])
