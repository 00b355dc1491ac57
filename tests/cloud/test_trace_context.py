"""A provider is told of a trace only if it may be, and then exactly the attempt's own context."""

from __future__ import annotations

import pytest

from node.routing.values import Zone
from tests.cloud.cloud_upstream import CloudMaker, Upstream, completion, http, make_call

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize("zone", list(Zone))
async def test_traceparent_goes_with_the_request_where_the_provider_gets_it(
    upstream: Upstream, make_cloud: CloudMaker, zone: Zone
) -> None:
    upstream.sends(http(completion()))
    for trace_context, sent in ((False, None), (True, TRACEPARENT)):
        cloud = make_cloud(zone=zone, trace_context=trace_context)
        await cloud.ask(make_call(traceparent=TRACEPARENT))
        await cloud.ask(make_call())
        traced, untraced = (each.headers for each in upstream.received[-2:])
        assert traced.pop("traceparent", None) == sent
        assert traced == untraced
