"""What can be set on the emulator. Times are seconds, money is nano-dollars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from node.emulator.prices import HOLYSHEEP, ModelPrice


class ErrorShape(StrEnum):
    """The two error bodies HolySheep's own articles show, and OpenAI's."""

    TYPED = "typed"
    """``{"error": {"type": "rate_limit_error", "message": ...}}``"""
    CODED = "coded"
    """``{"error": {"code": "rate_limit_exceeded", "type": "rate_limit", "retry_after": 1.2, "request_id": ...}}``"""
    OPENAI = "openai"
    """``{"error": {"message", "type", "param", "code"}}``"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatorConfig:
    """Everything the emulator is told.

    TTFT is log-normal around `ttft_median_s` with `ttft_sigma`; every token after the first comes `pace_s` later,
    times a per-call log-normal factor with `pace_sigma`. Answers are `answer_tokens_median` long (log-normal,
    `answer_tokens_sigma`), cut at the request's `max_tokens`. All of it follows from `seed` and the request.
    `api_key` None accepts any bearer token but still wants one. `requests_per_minute` and `max_concurrent` None mean
    no limit. `log_prompts` keeps the prompts' text, otherwise only their SHA-256; `bill_answers` puts on the bill what
    would be said in full, however a switch spoils it. `redirect_to` is where a redirect points.
    """

    seed: int = 0
    host: str = "127.0.0.1"
    port: int = 0
    api_key: str | None = None
    ttft_median_s: float = 0.35
    ttft_sigma: float = 0.25
    pace_s: float = 0.012
    pace_sigma: float = 0.1
    answer_tokens_median: float = 96.0
    answer_tokens_sigma: float = 0.4
    keepalive_s: float = 0.25
    prices: Mapping[str, ModelPrice] = field(default_factory=lambda: HOLYSHEEP)
    requests_per_minute: int | None = None
    max_concurrent: int | None = None
    error_shape: ErrorShape = ErrorShape.TYPED
    bill_path: Path | None = None
    log_path: Path | None = None
    fsync: bool = False
    log_prompts: bool = False
    bill_answers: bool = False
    redirect_to: str = "https://elsewhere.invalid/v1/chat/completions"
    tls_cert: Path | None = None
    tls_key: Path | None = None
