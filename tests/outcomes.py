"""An outcome to begin with, for the tests of what outcomes are fed to."""

from node.backend import Kind
from node.dispatch.outcome import Ending, Outcome
from node.routing.values import Reason

SERVED_HERE = Outcome(
    request_id="r",
    kind=Kind.CHAT,
    model="demo",
    tenant="app",
    ending=Ending.DONE,
    backend="local",
    served_model="demo",
    reason=Reason.WITHIN_BUDGET,
    attempts=1,
    queue_s=0.0,
    ttft_s=None,
    predicted_ttft_s=None,
    ttft_budget_s=2.0,
    total_s=1.0,
    prompt_bytes=40,
    usage=None,
    cost_nano_usd=0,
    reference_nano_usd=None,
    error_code=None,
)
"""The engine's whole answer to an unpinned request of no special caller, as bare as it can be."""
