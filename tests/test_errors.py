"""Every error a client can meet looks like OpenAI's, and says whether to come back and when."""

import json
from collections.abc import Iterator

import pytest

from node.errors import (
    AuthenticationFailed,
    ContextLengthExceeded,
    EngineBusy,
    EngineUnavailable,
    Fault,
    InvalidRequest,
    ModelNotFound,
    PrivateNotServable,
    Refused,
    RefusedBusy,
    SpillwayError,
    UpstreamAuth,
    UpstreamConnect,
    UpstreamError,
    UpstreamRateLimited,
    UpstreamTimeout,
    render,
)


def family(kind: type[SpillwayError] = SpillwayError) -> Iterator[type[SpillwayError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from family(child)


def made(kind: type[SpillwayError], retry_after_s: float | None = None) -> SpillwayError:
    if issubclass(kind, Refused):
        return kind("why", rule="no_provider", retry_after_s=retry_after_s)
    return kind("why", param="model", retry_after_s=retry_after_s)


@pytest.mark.parametrize("kind", list(family()), ids=lambda kind: kind.__name__)
def test_every_error_is_an_openai_error(kind: type[SpillwayError]) -> None:
    status, headers, body = render(made(kind))
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] == "why"
    assert error["type"] in {"invalid_request_error", "server_error", "rate_limit_error", "insufficient_quota"}
    assert (error["type"] == "invalid_request_error") == (400 <= status < 500 and status != 429)
    assert headers["content-type"] == "application/json"
    assert ("retry-after" in headers) == (status in (429, 503))


@pytest.mark.parametrize("kind", list(family()), ids=lambda kind: kind.__name__)
def test_clients_are_blamed_for_their_own_mistakes_only(kind: type[SpillwayError]) -> None:
    assert (kind.fault is Fault.CLIENT) == issubclass(kind, InvalidRequest)


@pytest.mark.parametrize(
    ("retry_after_s", "said"), [(None, "1"), (0.0, "1"), (0.2, "1"), (1.0, "1"), (1.01, "2"), (59.5, "60")]
)
def test_client_is_told_to_come_back_in_whole_seconds_and_never_too_early(
    retry_after_s: float | None, said: str
) -> None:
    assert render(made(RefusedBusy, retry_after_s))[1]["retry-after"] == said


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        (InvalidRequest, 400, None),
        (ContextLengthExceeded, 400, "context_length_exceeded"),
        (ModelNotFound, 404, "model_not_found"),
        (AuthenticationFailed, 401, "invalid_api_key"),
        (PrivateNotServable, 403, "private_not_servable"),
        (Refused, 503, "no_capacity"),
        (RefusedBusy, 429, "overloaded"),
        (EngineUnavailable, 503, "engine_unavailable"),
        (EngineBusy, 429, "engine_busy"),
        (UpstreamError, 502, "upstream_error"),
        (UpstreamTimeout, 504, "upstream_timeout"),
        (UpstreamRateLimited, 429, "rate_limit_exceeded"),
        (UpstreamAuth, 502, "upstream_auth"),
    ],
)
def test_status_and_code(kind: type[SpillwayError], status: int, code: str | None) -> None:
    rendered, _, body = render(made(kind))
    assert (rendered, json.loads(body)["error"]["code"]) == (status, code)


def test_refusal_names_its_rule_and_others_do_not() -> None:
    assert render(made(Refused))[1]["x-spillway-reason"] == "no_provider"
    assert "x-spillway-reason" not in render(made(EngineUnavailable))[1]


def test_sdk_is_told_not_to_repeat_what_cannot_help() -> None:
    assert render(made(ModelNotFound))[1]["x-should-retry"] == "false"
    assert "x-should-retry" not in render(made(EngineBusy))[1]


def test_missing_key_is_asked_for() -> None:
    assert render(made(AuthenticationFailed))[1]["www-authenticate"] == "Bearer"


def test_field_that_is_wrong_is_named() -> None:
    assert json.loads(render(InvalidRequest("why", param="messages"))[2])["error"]["param"] == "messages"
    assert json.loads(render(InvalidRequest("why"))[2])["error"]["param"] is None


def test_our_own_network_is_not_held_against_the_provider() -> None:
    assert UpstreamConnect.fault is Fault.NODE
    assert UpstreamTimeout.fault is Fault.UPSTREAM
