"""Settings under which something pinned could leave, or never be served, keep the node from starting."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from node.app import Node
from node.cloud.config import ProviderConfig
from node.errors import SettingsError
from node.privacy.checks import check_zones
from node.routing.values import Zone
from node.settings import load_settings
from tests.serve.test_reload import House

CLOUD = 'cloud: {base_url: "http://127.0.0.1:1/v1", api_key_env: null}'
LAN = 'lan: {base_url: "http://127.0.0.1:2/v1", api_key_env: null, zone: premises}'


def node(folder: Path, text: str) -> Node:
    """With two models: `here` has an engine, `away` is only in the cloud, or at `lan` where that is configured."""
    (folder / "weights").mkdir(exist_ok=True)
    (folder / "weights" / "config.json").write_text("{}")
    (folder / "prices").mkdir(exist_ok=True)
    places: list[dict[str, Any]] = [
        {"provider": name, "model": "big", "context_tokens": 2000, "capabilities": []} for name in ("cloud", "lan")
    ]
    local = {"source": "weights", "context_tokens": 1000, "capabilities": []}
    (folder / "here.yaml").write_text(json.dumps({"name": "here", "summary": "s", "local": local, "cloud": places}))
    (folder / "away.yaml").write_text(json.dumps({"name": "away", "summary": "s", "cloud": places}))
    for name in ("cloud", "lan"):
        prices = {
            "provider": name,
            "as_of": "2026-01-01",
            "models": {"big": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 1}},
        }
        (folder / "prices" / f"{name}.yaml").write_text(json.dumps(prices))
    file = folder / "spillway" / "spillway.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"catalogue: [{folder}]\n{text}\n")
    return Node(load_settings(file, {}), environ={"SPILLWAY_DATA": str(folder / "data")})


KEY = f"keys: [{{name: clinic, residency: premises, sha256: {hashlib.sha256(b'k').hexdigest()}}}]"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (f"models: [here, away]\nproviders: {{{CLOUD}}}\nprivacy: {{pinned_models: [here, away]}}",
         "privacy.pinned_models[1]: 'away' may not leave"),
        (f"models: [here]\ncloud_only: true\nproviders: {{{CLOUD}}}\nprivacy: {{pinned_models: [here]}}",
         "privacy.pinned_models[0]"),
        (f"models: [away]\nproviders: {{{CLOUD}}}\n{KEY}", "keys.clinic.residency"),
        (f"models: [away]\nproviders: {{{CLOUD}}}\nprivacy: {{residency: premises}}", "privacy.residency: premises"),
        ('models: [here]\nproviders: {cloud: {base_url: "https://8.8.8.8/v1", api_key_env: null, zone: premises}}',
         "providers.cloud.zone: 8.8.8.8 is a public address"),
        ('models: [here]\nproviders: {openai: {zone: premises, api_key_env: null}}',
         "providers.openai.zone: api.openai.com is in the cloud"),
        (f'models: [here]\nproviders: {{{CLOUD}, {LAN.replace(":2/", ":1/")}}}',
         "providers.lan.zone: 127.0.0.1:1 is also providers.cloud"),
        ("models: [here]\nengine: {here: {kv_events_config: {enable_kv_cache_events: true}}}", "kv_events_config"),
        ("models: [here]\nengine: {here: {otlp_traces_endpoint: 'http://collector'}}", "otlp_traces_endpoint"),
    ],
)  # fmt: skip
def test_settings_that_contradict_a_pin_are_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(SettingsError) as refused:
        node(tmp_path, text)
    assert named in refused.value.message


@pytest.mark.parametrize(
    "text",
    [
        f"models: [here, away]\nproviders: {{{CLOUD}}}\nprivacy: {{pinned_models: [here]}}",
        f"models: [away]\nproviders: {{{CLOUD}, {LAN}}}\nprivacy: {{pinned_models: [away]}}",
        f"models: [here, away]\nproviders: {{{CLOUD}}}\n{KEY}",
        f"models: [away]\nproviders: {{{LAN}}}\nprivacy: {{residency: premises}}",
    ],
)
def test_pins_that_something_here_can_serve_are_accepted(tmp_path: Path, text: str) -> None:
    node(tmp_path, text)


def test_with_everything_pinned_no_cloud_provider_is_even_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        built = node(tmp_path, f"models: [here]\nproviders: {{{CLOUD}, {LAN}}}\nprivacy: {{residency: premises}}")
    assert built.gate.providers == ("lan",)
    assert list(built.providers.states) == ["lan"]
    assert [each.provider for each in built.models["here"].cloud] == ["lan"]
    assert "not used at all: cloud" in caplog.text


async def test_pinning_everything_by_a_reload_takes_the_cloud_away(tmp_path: Path) -> None:
    house = House(tmp_path)
    assert list(house.node.gate.providers) == ["cloud"]
    house.say("weight: 1", "privacy: {residency: premises}\n")
    await house.reloader.reload()
    assert list(house.node.gate.providers) == []
    await house.reloader.stop()


@pytest.mark.parametrize(
    ("addresses", "public"),
    [({"192.168.1.7"}, False), ({"192.168.1.7", "1.1.1.1"}, True), ({"fd00::1"}, False), ({"2606:4700::1"}, True),
     (set(), False)],
)  # fmt: skip
def test_name_on_the_premises_that_leads_outside_is_refused(addresses: set[str], public: bool) -> None:
    lan = ProviderConfig(name="lan", base_url="http://gpu-2.example/v1", api_key="", zone=Zone.PREMISES)
    asked: list[str] = []

    def resolve(host: str) -> frozenset[str]:
        asked.append(host)
        return frozenset(addresses)

    if public:
        with pytest.raises(SettingsError, match=r"providers\.lan\.zone: gpu-2\.example is .* a public address"):
            check_zones([lan], resolve)
    else:
        check_zones([lan], resolve)
    assert asked == ["gpu-2.example"]


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ("patterns: {bad: '['}", "privacy.content_rules.patterns.bad: the regular expression"),
        ("patterns: {slow: '(a+)+b'}", "privacy.content_rules.patterns.slow: the regular expression repeats"),
        ("patterns: {all: 'x*'}", "privacy.content_rules.patterns.all: matches nothing at all"),
        ("patterns: {email: 'x'}", "privacy.content_rules.patterns.email: a rule's name"),
        ("patterns: {'A B': 'x'}", "privacy.content_rules.patterns.A B: a rule's name"),
        ("patterns: {back: '(?P<a>x)(?P=b)'}", "privacy.content_rules.patterns.back"),
        ("detect: [phone]", "privacy.content_rules.detect"),
        ("words: ['x']", "privacy.content_rules.words"),
    ],
)
def test_content_rule_that_will_not_do_is_refused_by_name(tmp_path: Path, rules: str, named: str) -> None:
    with pytest.raises(SettingsError) as refused:
        node(tmp_path, f"models: [here]\nprivacy: {{content_rules: {{{rules}}}}}")
    assert named in refused.value.message
