"""A mistake of our own: told to the client without its traceback, on every kind of route."""

from typing import Any

import httpx
import pytest
from fastapi import APIRouter

from node.api.app import build_app
from node.api.completions import Parts
from node.api.door import Door
from node.watch.strain import Strain


class _Broken:
    """Stands in for every part, and fails whatever it is asked."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("broken at /srv/secret/path with sk-secret")


def _parts() -> Parts:
    broken: Any = _Broken()
    return Parts(
        settings=broken,
        keyring=broken,
        rates=broken,
        door=Door(strain=Strain, max_bytes=lambda: 1000),
        dispatcher=broken,
        sharing=broken,
        experience=broken,
        conversations=broken,
        vocabulary_size=broken,
        clock=lambda: 0.0,
        report=broken,
        content_rules=broken,
    )


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("GET", "/x")]
)
async def test_a_bug_is_a_500_that_gives_nothing_away(method: str, path: str) -> None:
    operator = APIRouter()

    @operator.get("/x")
    async def fail() -> None:
        _Broken().anything  # noqa: B018

    transport = httpx.ASGITransport(build_app(_parts(), operator), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        answer = await client.request(method, path)
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.headers["x-request-id"]) == 32
    error = answer.json()["error"]
    assert (error.keys(), error["type"], error["code"]) == (
        {"message", "type", "param", "code"}, "server_error", "internal_error",
    )  # fmt: skip
    assert not any(word in answer.text for word in ("Traceback", "RuntimeError", "/srv", "sk-"))
