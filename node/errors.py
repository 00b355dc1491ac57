"""Every error a client can meet, and how it looks on the wire.

    SpillwayError
    ├── InvalidRequest              400  the client's mistake; `param` names the field
    │   ├── ContextLengthExceeded   400  too long for this backend (another may take it)
    │   │   └── OutputTooLong       400  `max_tokens` is more than the backend could ever write
    │   ├── CostBudgetTooSmall      400  only the cloud can serve it, for more than the client allows
    │   ├── UnsupportedMedia        400  an image or sound we do not fetch or the model cannot read
    │   ├── UnsupportedContentType  415
    │   ├── RequestTooLarge         413
    │   ├── HeadersTooLarge         431
    │   ├── RequestTimeout          408
    │   ├── NotFound                404  unknown path
    │   ├── MethodNotAllowed        405
    │   ├── ModelNotFound           404
    │   ├── AuthenticationFailed    401
    │   ├── PermissionDenied        403  known key, forbidden model
    │   ├── ForeignOrigin           403  asked for under a foreign name, or by a foreign page
    │   └── PrivateNotServable      403  pinned to the premises, and no premises backend has the model
    ├── Refused                     503  a rule or a limit said no; carries the rule
    │   ├── RefusedBusy             429
    │   ├── EngineAway              503  only the local engine may serve it, which is starting or down
    │   └── Unaffordable            nothing may be spent on it, and nothing free could serve it
    │       ├── BudgetSpent         429  a budget has too little left
    │       └── LedgerUnavailable   503  what it costs cannot be written down
    ├── RateLimited                 429  the key's requests or tokens per minute are used up
    │   └── MoreThanAMinute         429  it asks for more tokens than the key has in a whole minute
    ├── KeysUnavailable             503  the keys cannot be read, so nobody unknown is let in
    ├── TooManyConnections          503  the node holds as many as it may
    ├── TooManyViewers              503  as many watch the dashboard as may
    ├── ShuttingDown                503  the node ends: the request came too late, or took longer than the grace
    ├── HostExhausted               503  memory or file descriptors are used up
    ├── HostStrained                429  they are running short, and the node holds fewer requests meanwhile
    ├── BackendError                a backend failed before or during the answer
    │   ├── EngineUnavailable       503  local engine dead, starting or asleep
    │   │   └── EngineDied          503  it died while it worked on this request
    │   ├── RequestQuarantined      503  it ran when the engine died, twice, and is kept away from it
    │   ├── EngineFailed            500  the engine failed on this request
    │   ├── EngineBusy              429  the engine's own admission limit
    │   └── UpstreamError           502  the cloud provider failed
    │       ├── UpstreamConnect     502  DNS or connect failure: our side of the road
    │       │   └── UpstreamPoolFull    502  as many connections are in use as the settings allow
    │       ├── UpstreamTls         502
    │       ├── UpstreamTimeout     504
    │       │   └── UpstreamConnectTimeout  504  no connection in time: our side of the road
    │       ├── UpstreamTruncated   502  the stream ended before its end
    │       ├── UpstreamRateLimited 429
    │       ├── UpstreamQuota       503  the provider wants money
    │       ├── UpstreamAuth        502  the provider refuses our key
    │       └── UpstreamRejected    502  the provider refuses the request itself
    ├── EgressRefused               never on the wire: the gate stopped a bug of the node's, noted in its Outcome
    └── SettingsError               never on the wire: a bad setting, named by its key

`render()` is the only place that turns one into an OpenAI error body and headers.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import ClassVar

import msgspec


class Fault(StrEnum):
    """Whose doing an error is; a breaker counts those of `UPSTREAM` and those of `NODE` apart."""

    CLIENT = "client"
    NODE = "node"
    ENGINE = "engine"
    UPSTREAM = "upstream"


class SpillwayError(Exception):
    """Base of the family.

    `status` is the HTTP status, `type` and `code` are OpenAI's strings, `param` names the offending field.
    `should_retry` is what `x-should-retry` says (None: leave it to the client). `may_try_elsewhere` tells the
    dispatcher whether another backend could still answer, provided nothing has reached the client, and `may_try_again`
    whether the same one might, a moment later. `rule` is the
    `Reason` of a routing rule that said no, spelled as in headers and logs; None for every other error.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = "internal_error"
    fault: ClassVar[Fault] = Fault.NODE
    should_retry: ClassVar[bool | None] = None
    may_try_elsewhere: ClassVar[bool] = False
    may_try_again: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        rule: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.rule = rule


class InvalidRequest(SpillwayError):
    """The request itself is wrong; retrying it unchanged cannot help."""

    status = 400
    type = "invalid_request_error"
    code: ClassVar[str | None] = None
    fault = Fault.CLIENT
    should_retry: ClassVar[bool | None] = False


class ContextLengthExceeded(InvalidRequest):
    """Prompt and output do not fit the backend's context; a larger one may still take the request."""

    code = "context_length_exceeded"
    may_try_elsewhere = True


class OutputTooLong(ContextLengthExceeded):
    """More output is asked for than the backend could write after any prompt; only the client can mend that."""

    may_try_elsewhere = False


class CostBudgetTooSmall(InvalidRequest):
    """Only the cloud can serve the request, and it could cost more there than its `cost_budget_usd`."""

    code = "cost_budget"


class UnsupportedMedia(InvalidRequest):
    """Remote or unreadable media."""

    code = "unsupported_media"


class UnsupportedContentType(InvalidRequest):
    """Not JSON, or compressed."""

    status = 415
    code = "unsupported_content_type"


class RequestTooLarge(InvalidRequest):
    """The body is over the limit."""

    status = 413
    code = "request_too_large"


class HeadersTooLarge(InvalidRequest):
    """Too many or too long headers."""

    status = 431
    code = "headers_too_large"


class RequestTimeout(InvalidRequest):
    """The client did not send its request in time."""

    status = 408
    code = "request_timeout"
    should_retry = None


class NotFound(InvalidRequest):
    """Unknown path."""

    status = 404
    code = "not_found"


class MethodNotAllowed(InvalidRequest):
    """Known path, other method."""

    status = 405
    code = "method_not_allowed"


class ModelNotFound(InvalidRequest):
    """No such model in the catalogue, or not one this key may see."""

    status = 404
    code = "model_not_found"


class AuthenticationFailed(InvalidRequest):
    """No key, or not one of ours."""

    status = 401
    code = "invalid_api_key"


class PermissionDenied(InvalidRequest):
    """The key is good, but not for this model. The code is OpenAI's."""

    status = 403
    code = "model_not_found"


class ForeignOrigin(InvalidRequest):
    """Asked for under a name that is not the node's, or by another page in a browser."""

    status = 403
    code = "foreign_origin"


class PrivateNotServable(InvalidRequest):
    """Pinned to the premises, and nothing on the premises can serve it."""

    status = 403
    code = "private_not_servable"


class Refused(SpillwayError):
    """A rule said no: no capacity in time, or the cloud is not allowed and local is full.

    429 means the node is contended, 503 that there is no capacity at all at the moment.
    """

    status = 503
    type = "server_error"
    code = "no_capacity"

    def __init__(self, message: str, *, rule: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s, rule=rule)


class RefusedBusy(Refused):
    """Capacity exists and is taken: come back shortly."""

    status = 429
    type = "rate_limit_error"
    code = "overloaded"


class EngineAway(Refused):
    """Only the local engine may serve the request, and it is starting, down or hanging."""

    code = "engine_unavailable"


class Unaffordable(Refused):
    """Nothing may be spent on the request; what is free may still serve it."""


class BudgetSpent(Unaffordable):
    """A budget (of the key or of the node) has no room for what the request could cost at worst."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"
    should_retry = False


class LedgerUnavailable(Unaffordable):
    """The ledger cannot be written: nothing that costs money leaves until it can."""

    code = "ledger_unavailable"


class RateLimited(SpillwayError):
    """The key has used up its requests or tokens for this minute."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class MoreThanAMinute(RateLimited):
    """The request alone asks for more tokens than the key may use in a minute."""

    should_retry = False


class KeysUnavailable(SpillwayError):
    """The database of keys cannot be read, and the key is not one that the node knows already."""

    status = 503
    code = "keys_unavailable"


class TooManyConnections(SpillwayError):
    """The node holds as many connections as it may; this one is closed unread."""

    status = 503
    code = "too_many_connections"


class TooManyViewers(SpillwayError):
    """As many watch the dashboard's feed as may."""

    status = 503
    code = "too_many_viewers"


class ShuttingDown(SpillwayError):
    """The node ends before the request has arrived or been answered: it can be sent again, to whoever comes next."""

    status = 503
    code = "shutting_down"


class HostExhausted(SpillwayError):
    """The machine has no memory or file descriptors left for another request."""

    status = 503
    code = "host_exhausted"


class HostStrained(SpillwayError):
    """Memory or file descriptors are running short: the node holds fewer requests at once until they are back."""

    status = 429
    type = "rate_limit_error"
    code = "host_strained"


class EgressRefused(SpillwayError):
    """Something in the node asked to send what the rules do not let out. The client meets it as any other bug."""

    code = "egress_forbidden"


class BackendError(SpillwayError):
    """A backend failed. Before the first chunk the dispatcher may try another one."""

    status = 502
    code = "backend_error"
    fault = Fault.UPSTREAM
    may_try_elsewhere = True


class EngineUnavailable(BackendError):
    """The local engine is dead, starting, asleep or stopping."""

    status = 503
    code = "engine_unavailable"
    fault = Fault.ENGINE


class EngineDied(EngineUnavailable):
    """The local engine died, or was ended because it hung, while it worked on this request."""


class RequestQuarantined(BackendError):
    """The request was running at two deaths of the local engine, which is therefore not given it for a while."""

    status = 503
    code = "request_quarantined"
    fault = Fault.ENGINE
    should_retry = False


class EngineFailed(BackendError):
    """The local engine failed while working on this request."""

    status = 500
    code = "engine_error"
    fault = Fault.ENGINE


class EngineBusy(BackendError):
    """The engine's own admission control refused."""

    status = 429
    type = "rate_limit_error"
    code = "engine_busy"
    fault = Fault.ENGINE


class UpstreamError(BackendError):
    """The provider answered with a failure we cannot name better."""

    code = "upstream_error"
    may_try_again: ClassVar[bool] = True


class UpstreamConnect(UpstreamError):
    """DNS or connection failure."""

    code = "upstream_unreachable"
    fault = Fault.NODE


class UpstreamPoolFull(UpstreamConnect):
    """Every connection the settings allow to the provider was in use; says nothing of the provider."""

    may_try_again = False


class UpstreamTls(UpstreamError):
    """The provider's certificate does not verify."""

    code = "upstream_tls"
    fault = Fault.NODE
    may_try_again = False


class UpstreamTimeout(UpstreamError):
    """A clock ran out: connect, first content, between chunks or total."""

    status = 504
    code = "upstream_timeout"
    may_try_again = False


class UpstreamConnectTimeout(UpstreamTimeout):
    """No connection to the provider within the connect clock."""

    fault = Fault.NODE


class UpstreamTruncated(UpstreamError):
    """The provider's answer ended early or broke its own format."""

    code = "upstream_truncated"


class UpstreamRateLimited(UpstreamError):
    """The provider said 429."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    may_try_again = False


class UpstreamQuota(UpstreamError):
    """The provider wants money before it goes on."""

    status = 503
    code = "upstream_quota"
    may_try_again = False


class UpstreamAuth(UpstreamError):
    """The provider refuses the operator's key."""

    code = "upstream_auth"
    may_try_again = False


class UpstreamRejected(UpstreamError):
    """The provider refuses a request we hold to be valid; sending it again, here or elsewhere, cannot help."""

    code = "upstream_rejected"
    should_retry = False
    may_try_elsewhere = False
    may_try_again = False


class SettingsError(SpillwayError):
    """A setting, catalogue entry or price file is wrong. The message names file, key and reason."""


def error_body(error: SpillwayError) -> bytes:
    """The OpenAI error document: ``{"error": {"message", "type", "param", "code"}}``."""
    return msgspec.json.encode(
        {
            "error": {
                "message": error.message,
                "type": error.type,
                "param": error.param,
                "code": error.code,
            }
        }
    )


def render(error: SpillwayError) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body for `error`.

    `Retry-After` is whole seconds, rounded up and at least 1, on every 429 and 503; `x-should-retry` appears
    where retrying is known to help or not to.
    """
    headers = {"content-type": "application/json"}
    if error.status in (429, 503):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s or 1.0)))
    if error.should_retry is not None:
        headers["x-should-retry"] = "true" if error.should_retry else "false"
    if isinstance(error, AuthenticationFailed):
        headers["www-authenticate"] = "Bearer"
    if error.rule is not None:
        headers["x-spillway-reason"] = error.rule
    return error.status, headers, error_body(error)
