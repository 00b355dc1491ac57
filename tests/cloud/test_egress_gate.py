"""What leaves the machine, and what cannot."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from node.backend import Kind
from node.catalogue import CloudEquivalent
from node.cloud.config import AnswerClocks, ProviderConfig, is_public_address
from node.cloud.gate import EgressGate, EgressRecord
from node.errors import SettingsError, UpstreamAuth, UpstreamConnect, UpstreamError, UpstreamTimeout
from node.routing.permit import EgressForbidden, EgressPermit
from node.routing.values import Residency, Zone
from tests.cloud.cloud_upstream import (
    API_KEY,
    EQUIVALENT,
    STREAMING,
    Cloud,
    CloudMaker,
    Upstream,
    completion,
    delta,
    http,
    make_call,
    make_permit,
    sse,
)

FORGED = SimpleNamespace(request_id="r1", provider="holy", model="cloud-model", rule="mine", reserved_nano_usd=0)


@pytest.mark.parametrize(
    "permit",
    [
        None,
        FORGED,
        make_permit(request_id="r2"),
        make_permit(provider="other"),
        make_permit(model="dearer-model"),
    ],
    ids=["none", "look-alike", "other request", "other provider", "other model"],
)
async def test_nothing_is_sent_without_the_right_permit(upstream: Upstream, cloud: Cloud, permit: Any) -> None:
    with pytest.raises(EgressForbidden):
        await cloud.gate.send(
            cast(EgressPermit, permit),
            request_id="r1",
            provider="holy",
            model="cloud-model",
            kind=Kind.CHAT,
            fields={"messages": []},
            stream=False,
        )
    assert upstream.connections == 0
    assert cloud.records == []


async def test_unknown_provider_is_out_of_reach(cloud: Cloud) -> None:
    with pytest.raises(EgressForbidden):
        await cloud.gate.send(
            make_permit(provider="other"),
            request_id="r1",
            provider="other",
            model="cloud-model",
            kind=Kind.CHAT,
            fields={},
            stream=False,
        )


PINNED = make_permit(residency=Residency.PREMISES, zone=Zone.PREMISES)


async def send(cloud: Cloud, permit: EgressPermit) -> int:
    """Send with `permit` straight through the gate; the status."""
    answer = await cloud.gate.send(
        permit,
        request_id="r1",
        provider="holy",
        model="cloud-model",
        kind=Kind.CHAT,
        fields={"messages": []},
        stream=False,
    )
    await answer.aclose()
    return answer.status


async def test_pinned_request_is_sent_to_a_provider_on_the_premises(upstream: Upstream, make_cloud: CloudMaker) -> None:
    upstream.sends(http(completion()))
    assert await send(make_cloud(zone=Zone.PREMISES), PINNED) == 200


async def test_pinned_request_is_not_sent_to_the_cloud_whatever_its_permit_was_granted_for(
    upstream: Upstream, cloud: Cloud
) -> None:
    """Routing took the provider for one on the premises; the gate knows better."""
    with pytest.raises(EgressForbidden, match="pinned"):
        await send(cloud, PINNED)
    assert upstream.connections == 0
    assert cloud.records == []


@pytest.mark.parametrize("address", ["8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8"])
async def test_name_on_the_premises_that_leads_to_a_public_address_is_not_connected_to(
    make_cloud: CloudMaker, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def resolve(*_: object, **__: object) -> list[tuple[Any, ...]]:
        to = (address, 443, 0, 0) if ":" in address else (address, 443)
        return [(family, socket.SOCK_STREAM, 6, "", to)]

    opened: list[int] = []
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: opened.append(1))
    cloud = make_cloud(zone=Zone.PREMISES, base_url="https://gpu-2.lan/v1")
    with pytest.raises(UpstreamConnect):
        await send(cloud, PINNED)
    assert opened == []
    assert [(record.bytes_in, record.status) for record in cloud.records] == [(0, None)]


@pytest.mark.parametrize(
    ("host", "is_public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("::ffff:8.8.8.8", True),
        ("::ffff:10.0.0.1", False),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("192.168.0.9", False),
        ("100.64.0.1", False),
        ("fd00::1", False),
        ("fe80::1%eth0", False),
        ("gpu-2.lan", False),
    ],
)
def test_public_addresses_are_told_from_those_of_the_premises(host: str, is_public: bool) -> None:
    assert is_public_address(host) is is_public


def _changed(**changes: Any) -> CloudEquivalent:
    kept = {name: getattr(EQUIVALENT, name) for name in CloudEquivalent.__dataclass_fields__}
    return CloudEquivalent(**(kept | changes))


@pytest.mark.parametrize(
    "equivalent", [_changed(model="dearer-model"), _changed(provider="other"), _changed(price=None)]
)
async def test_backend_is_bound_to_its_permit(cloud: Cloud, equivalent: CloudEquivalent) -> None:
    with pytest.raises(EgressForbidden):
        cloud.provider.bind(equivalent, make_permit())


async def test_permit_of_one_request_does_not_send_another(upstream: Upstream, cloud: Cloud) -> None:
    with pytest.raises(EgressForbidden):
        await anext(cloud.backend().open(make_call(request_id="r2")))
    assert upstream.connections == 0


async def test_only_listed_fields_and_our_own_key_leave(upstream: Upstream, cloud: Cloud) -> None:
    upstream.sends(http(completion()))
    messages = [{"role": "user", "content": "hi", "cache_salt": "secret", "name": "n"}]
    body = {
        "messages": messages,
        "temperature": 0.5,
        "n": 1,
        "seed": None,
        "model": "demo",
        "user": "someone",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "priority",
        "base_url": "http://elsewhere.example",
        "api_key": "the caller's",
        "extra_headers": {"x": "y"},
        "guided_json": {},
        "cache_salt": "secret",
        "max_tokens": 999,
        "max_completion_tokens": 999,
        "stream_options": {"include_usage": False},
    }
    await cloud.document(make_call(body=body))
    (request,) = upstream.received
    assert request.path == "/v1/chat/completions"
    assert request.json == {
        "messages": [{"role": "user", "content": "hi", "name": "n"}],
        "temperature": 0.5,
        "n": 1,
        "max_tokens": 16,
        "stream": False,
        "model": "cloud-model",
    }
    assert request.headers.pop("user-agent").startswith("spillway/")
    assert request.headers == {
        "host": f"127.0.0.1:{upstream.port}",
        "authorization": f"Bearer {API_KEY}",
        "accept": "application/json",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "content-length": str(len(request.body)),
    }


async def test_stream_always_asks_for_usage(upstream: Upstream, make_cloud: CloudMaker) -> None:
    upstream.sends(sse(delta("a", finish="stop")))
    await make_cloud(max_tokens_field="max_completion_tokens").ask(make_call(stream=True, include_usage=False))
    sent = upstream.received[0].json
    assert sent["stream_options"] == {"include_usage": True}
    assert sent["max_completion_tokens"] == 16
    assert "max_tokens" not in sent


async def test_provider_without_a_key_gets_no_authorization(upstream: Upstream, make_cloud: CloudMaker) -> None:
    upstream.sends(http(completion()))
    await make_cloud(api_key="").document()
    assert "authorization" not in upstream.received[0].headers


async def test_cookies_are_neither_kept_nor_sent(upstream: Upstream, cloud: Cloud) -> None:
    upstream.sends(http(completion(), Set_Cookie="who=me"))
    await cloud.document()
    await cloud.document()
    assert all("cookie" not in request.headers for request in upstream.received)


async def test_proxies_from_the_environment_are_ignored(
    upstream: Upstream, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    upstream.sends(http(completion()))
    assert await cloud.document()


async def test_every_passage_is_counted(upstream: Upstream, cloud: Cloud) -> None:
    answer = completion()
    upstream.sends(http(answer))
    await cloud.document()
    body = http(answer).partition(b"\r\n\r\n")[2]
    assert cloud.records == [
        EgressRecord(
            request_id="r1",
            provider="holy",
            model="cloud-model",
            rule="predicted_late",
            bytes_out=len(upstream.received[0].body),
            bytes_in=len(body),
            status=200,
            resent=False,
        )
    ]


async def test_sixty_four_calls_at_once_are_all_answered(upstream: Upstream, cloud: Cloud) -> None:
    upstream.sends(http(completion()))
    answers = await asyncio.gather(*(cloud.ask(make_call()) for _ in range(128)))
    assert len(answers) == 128
    assert len(cloud.records) == 128


async def test_probe_lists_models_and_carries_no_prompt(upstream: Upstream, cloud: Cloud) -> None:
    upstream.sends(http({"object": "list", "data": [{"id": "gpt-4.1", "owned_by": "x"}, {"id": "other"}]}))
    assert await cloud.gate.probe("holy") == ("gpt-4.1", "other")
    (request,) = upstream.received
    assert (request.method, request.path, request.body) == ("GET", "/v1/models", b"")
    assert [(record.request_id, record.rule, record.bytes_out) for record in cloud.records] == [(None, "probe", 0)]


async def test_probe_fails_like_a_call(upstream: Upstream, cloud: Cloud) -> None:
    upstream.sends(http(b"", "401 No"))
    with pytest.raises(UpstreamAuth):
        await cloud.gate.probe("holy")
    upstream.sends(http(b"<html>"))
    with pytest.raises(UpstreamError):
        await cloud.gate.probe("holy")

    async def hang(*_: object) -> None:
        await asyncio.Event().wait()

    upstream.reply = hang
    with pytest.raises(UpstreamTimeout):
        await cloud.gate.probe("holy", timeout_s=0.1)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"base_url": "ftp://x.example"}, "base_url"),
        ({"base_url": "not a url"}, "base_url"),
        ({"base_url": "https://u:p@x.example/v1"}, "base_url"),
        ({"base_url": "https://x.example/v1?a=b"}, "base_url"),
        ({"base_url": "http://x.example/v1"}, "base_url"),
        ({"api_key": "a\nb"}, "api_key"),
        ({"connect_s": 0}, "connect_s"),
        ({"clocks": AnswerClocks(total_s=float("nan"))}, r"clocks\.total_s"),
        ({"model_clocks": {"m": AnswerClocks(first_content_s=0)}}, r"model_clocks\.m\.first_content_s"),
        ({"zone": Zone.PREMISES, "base_url": "http://8.8.8.8/v1"}, "zone"),
        ({"max_connections": -1}, "max_connections"),
        ({"emulated": True}, r"emulated: x\.example is not this machine"),
    ],
)
def test_unsafe_provider_is_refused_by_key(changes: dict[str, Any], key: str) -> None:
    good: dict[str, Any] = {"name": "holy", "base_url": "https://x.example/v1", "api_key": "k"}
    with pytest.raises(SettingsError, match=rf"providers\.holy\.{key}"):
        ProviderConfig(**(good | changes))


def test_unreadable_authority_file_is_refused() -> None:
    with pytest.raises(SettingsError, match="ca_file"):
        EgressGate([ProviderConfig(name="a", base_url="https://x.example", api_key="k", ca_file="/does/not/exist")])


def test_two_providers_of_one_name_are_refused() -> None:
    config = ProviderConfig(name="a", base_url="http://x.example", api_key="k", zone=Zone.PREMISES)
    with pytest.raises(SettingsError, match="twice"):
        EgressGate([config, config])


def test_key_is_not_shown() -> None:
    assert "hidden-key" not in repr(ProviderConfig(name="a", base_url="https://x.example", api_key="hidden-key"))


async def test_call_of_a_stream_asks_for_events(upstream: Upstream, cloud: Cloud) -> None:
    upstream.sends(sse(delta("a", finish="stop")))
    await cloud.ask(STREAMING)
    assert upstream.received[0].headers["accept"] == "text/event-stream"
