"""A sentence for every reason. `static/reasons.js` has the same, which a test holds to this."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from node.routing.values import Reason

SENTENCES: Final[Mapping[str, str]] = MappingProxyType(
    {
        Reason.WITHIN_BUDGET: "The engine was going to answer within the budget.",
        Reason.PINNED: "It is pinned to the premises.",
        Reason.CONTENT_RULE: "A content rule pinned it to the premises.",
        Reason.SLOT_OPENED: "It waited in the queue, and the engine's turn came in time.",
        Reason.PREFERS_LOCAL: "It asked to stay, and the engine could still take it.",
        Reason.LOCAL_ONLY_FEATURE: "It wants something that only the engine offers.",
        Reason.NO_CLOUD_EQUIVALENT: "The model has no stand-in in the cloud.",
        Reason.CLOUD_FAILED: "A provider failed on it, and another one or the engine took over.",
        Reason.PREDICTED_LATE: "The engine was going to be too late.",
        Reason.LAST_MOMENT: "It waited to its last safe moment, and no place opened here.",
        Reason.DISPLACED: "It left so that one that cannot leave, or is dearer to send, may be in time.",
        Reason.SAME_CONVERSATION: "The conversation's earlier part is there.",
        Reason.QUEUE_DEPTH: "The node's queue was as long as it may be.",
        Reason.KV_CACHE_USAGE: "The engine's KV cache was too full.",
        Reason.LOW_VRAM: "Too little GPU memory was free.",
        Reason.ENGINE_NOT_READY: "The engine was starting or down.",
        Reason.CLOUD_ONLY_FEATURE: "It wants something that the engine does not offer.",
        Reason.CLOUD_ONLY_LENGTH: "It is longer than the engine's context.",
        Reason.CLOUD_ONLY_MODEL: "The model has no engine here.",
        Reason.LOCAL_FAILED: "The engine failed on it, and the cloud took over.",
        Reason.HEDGED: "It was late here, and a copy that was sent to the cloud was faster.",
        Reason.CACHE_HIT: "The same question was answered before.",
        Reason.NO_SLOT: "It waited for the engine.",
        Reason.NO_PREMISES_CAPACITY: "It may not leave, and the engine could not take it in time.",
        Reason.PRIVATE_NOT_SERVABLE: "It may not leave, and nothing on the premises has the model.",
        Reason.NOT_SERVABLE: "Nothing that it may go to can do what it asks for.",
        Reason.CONTEXT_LENGTH: "It is longer than anything here or there can read.",
        Reason.COST_BUDGET: "The cloud would have cost more than the request allows.",
        Reason.BUDGET_SPENT: "A budget had too little left for what it could cost.",
        Reason.LEDGER_UNAVAILABLE: "What it costs could not be written down, so it might not leave.",
        Reason.UNKNOWN_PRICE: "The cloud's price for the model is not known, so it is not spent.",
        Reason.NO_PROVIDER: "No provider could be called at the moment.",
    }
)
"""One for every member of `Reason`; a reason in the feed is one of these strings."""
