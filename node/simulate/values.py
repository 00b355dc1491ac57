"""What the simulator reads: one request of a trace. Times are seconds from the start of the trace."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One recorded request.

    `prefix_hit_tokens` of the prompt were in the prefix cache when it came. `client` is whoever sent it, empty where
    the trace does not say. `output_tokens` is hindsight: routing must not see it before the answer is over.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    prefix_hit_tokens: int = 0
    client: str = ""
