"""Fixtures: a raw provider, and gate and provider objects that speak to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from node.cloud.config import AnswerClocks, Caps, ProviderConfig
from node.cloud.gate import EgressGate, EgressRecord
from node.cloud.provider import CloudProvider
from tests.cloud.cloud_upstream import API_KEY, Cloud, CloudMaker, Upstream


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    made = Upstream()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()


@pytest.fixture
async def make_cloud(upstream: Upstream) -> AsyncIterator[CloudMaker]:
    """Build the node's side; keyword arguments change the provider's configuration, `caps` and `now_s` apart.

    Those of `AnswerClocks` may be given as they are.
    """
    made: list[Cloud] = []

    def make(*, caps: Caps | None = None, now_s: float = 0.0, **changes: Any) -> Cloud:
        clocks = {name: changes.pop(name) for name in AnswerClocks.__dataclass_fields__ if name in changes}
        if clocks:
            changes["clocks"] = AnswerClocks(**clocks)
        config = ProviderConfig(
            **{"name": "holy", "base_url": f"http://127.0.0.1:{upstream.port}/v1", "api_key": API_KEY} | changes
        )
        records: list[EgressRecord] = []
        gate = EgressGate([config], on_egress=records.append)
        made.append(Cloud(CloudProvider(config, gate, lambda: now_s, caps=caps), gate, records))
        return made[-1]

    yield make
    for cloud in made:
        await cloud.gate.aclose()


@pytest.fixture
def cloud(make_cloud: CloudMaker) -> Cloud:
    return make_cloud()
