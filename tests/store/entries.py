"""Attempts that leave for the cloud, and how they end."""

from __future__ import annotations

from node.dispatch.accounts import Entry, Settlement
from node.dispatch.outcome import Ending
from node.money import Usage
from node.routing.values import Reason, Residency

DOLLAR = 1_000_000_000


def entry(number: int, *, caller: str = "alice", nano_usd: int = DOLLAR) -> Entry:
    """The attempt ``r<number>.1``, which costs `nano_usd` at worst."""
    return Entry(
        id=f"r{number}.1",
        request_id=f"r{number}",
        parent_id=None,
        caller=caller,
        backend="holysheep",
        model="demo",
        served_model="big",
        kind="chat",
        rule=Reason.LAST_MOMENT,
        residency=Residency.ANY,
        may_leave=True,
        prompt_bytes=10,
        max_output_tokens=100,
        ttft_budget_s=2.0,
        reserved_nano_usd=nano_usd,
    )


def done(nano_usd: int) -> Settlement:
    """It was answered, and cost this."""
    return Settlement(charged_nano_usd=nano_usd, ending=Ending.DONE, usage=Usage(5, 7), total_s=1.5, queue_s=0.5)
