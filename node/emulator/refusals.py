"""What a call gets that is not answered: the provider's error bodies, its rate headers, and the refusing switches."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from functools import cache

from node.emulator.config import ErrorShape
from node.emulator.requests import BadRequest
from node.emulator.switches import Switch

GZIP_BOMB_BYTES = 100 * 1024 * 1024
_HTML = b"<html><head><title>%d</title></head><body><center><h1>Upstream trouble</h1></center></body></html>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An error before any work. `retry_after` is the header, `retry_after_s` the number in the body."""

    status: int
    type: str
    code: str
    message: str
    param: str | None = None
    retry_after: str | None = None
    retry_after_s: float | None = None

    def body(self, shape: ErrorShape, request_id: str) -> bytes:
        """The error document in one of the provider's shapes."""
        error: dict[str, object]
        if shape is ErrorShape.TYPED:
            error = {"type": self.type, "message": self.message}
        elif shape is ErrorShape.OPENAI:
            error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        else:
            error = {"code": self.code, "type": self.type.removesuffix("_error"), "request_id": request_id}
        if self.retry_after_s is not None and shape is not ErrorShape.OPENAI:
            error["retry_after"] = self.retry_after_s
        return json.dumps({"error": error}).encode()


def rate_limited(message: str, *, retry_after: str | None = None, retry_after_s: float | None = None) -> Refusal:
    """A 429."""
    return Refusal(
        status=429,
        type="rate_limit_error",
        code="rate_limit_exceeded",
        message=message,
        retry_after=retry_after,
        retry_after_s=retry_after_s,
    )


def bad_request(error: BadRequest) -> Refusal:
    """The error for a body that cannot be answered."""
    kind = "not_found_error" if error.status == 404 else "invalid_request_error"
    code = error.code or "invalid_request"
    return Refusal(status=error.status, type=kind, code=code, message=error.message, param=error.param)


def unauthorized(credentials: str) -> Refusal:
    """A 401, which quotes what it was sent, as real providers have been seen to do."""
    return Refusal(
        status=401,
        type="authentication_error",
        code="invalid_api_key",
        message=f"Incorrect API key provided: {credentials.removeprefix('Bearer ')}",
    )


def for_switch(switch: Switch, credentials: str, now_s: float) -> Refusal | None:
    """The error a refusing switch answers with in JSON; None when `switch` is not one of those."""
    retry_after = _RETRY_AFTER.get(switch)
    if retry_after is not None:
        return rate_limited("slow down", retry_after=retry_after)
    if switch is Switch.RATE_LIMIT_DATE:
        return rate_limited("slow down", retry_after=formatdate(now_s + 7, usegmt=True))
    if switch is Switch.RATE_LIMIT:
        return rate_limited("slow down")
    if switch is Switch.RATE_LIMIT_IN_BODY:
        return rate_limited("slow down", retry_after_s=1.2)
    if switch is Switch.UNAUTHORIZED:
        return unauthorized(credentials)
    return _FIXED.get(switch)


def html_error(switch: Switch) -> tuple[int, bytes] | None:
    """Status and HTML body of the switches that fail like a gateway in front of the provider."""
    status = _HTML_STATUS.get(switch)
    return None if status is None else (status, _HTML % status)


@cache
def gzip_bomb() -> bytes:
    """About 100 kB of gzip that unpacks to `GZIP_BOMB_BYTES` of JSON string."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = b"0" * (1024 * 1024)
    parts = [packer.compress(b'{"id":"')]
    parts += [packer.compress(block) for _ in range(GZIP_BOMB_BYTES // len(block))]
    return b"".join([*parts, packer.compress(b'"}'), packer.flush()])


_RETRY_AFTER: Mapping[Switch, str] = {
    Switch.RATE_LIMIT_SECONDS: "7",
    Switch.RATE_LIMIT_ZERO: "0",
    Switch.RATE_LIMIT_NEGATIVE: "-5",
    Switch.RATE_LIMIT_HUGE: "9999",
    Switch.RATE_LIMIT_NONSENSE: "abc",
}

_HTML_STATUS: Mapping[Switch, int] = {
    Switch.ERROR_500: 500,
    Switch.ERROR_502: 502,
    Switch.ERROR_503: 503,
    Switch.ERROR_504: 504,
}

_FIXED: Mapping[Switch, Refusal] = {
    Switch.PAYMENT_REQUIRED: Refusal(
        status=402, type="billing_error", code="insufficient_balance", message="balance exhausted"
    ),
    Switch.INSUFFICIENT_QUOTA: Refusal(
        status=429, type="insufficient_quota", code="insufficient_quota", message="you exceeded your current quota"
    ),
    Switch.FORBIDDEN: Refusal(
        status=403, type="permission_error", code="forbidden", message="this key may not do that"
    ),
    Switch.BAD_REQUEST: Refusal(
        status=400, type="invalid_request_error", code="invalid_request", message="the provider dislikes this request"
    ),
    Switch.FLAPPING: Refusal(
        status=503, type="overloaded_error", code="service_unavailable", message="temporarily overloaded"
    ),
}
