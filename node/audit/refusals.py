"""Which requests were refused to leave: what the audit chain tells of those that no permit was made for."""

from __future__ import annotations

from typing import Final

from node.dispatch.outcome import Ending, Outcome
from node.errors import EgressRefused
from node.routing.values import CONTENT, Reason, Residency
from node.store.audit import AuditRow
from node.store.schema import AuditEvent

# Those of money say no to leaving also where the request is then served here, only late. `BUDGET_SPENT` is the ledger's
# to write, at the moment it refuses; so is `LEDGER_UNAVAILABLE`, but for requests that it was not even asked about.
_RULES: Final = frozenset(
    {
        Reason.NO_PREMISES_CAPACITY,
        Reason.PRIVATE_NOT_SERVABLE,
        Reason.COST_BUDGET,
        Reason.UNKNOWN_PRICE,
    }
)


def refused_by(outcome: Outcome) -> str | None:
    """The rule that refused to let the ended request leave; None for a request that no rule kept from leaving.

    In this order: ``egress_forbidden`` (a bug of the node's was stopped), ``content:<rule>`` for every request that a
    content rule pinned, however it ended, and the reason of the decision: pinned and not servable here, or no money for
    the cloud. Other pinned requests that the engine served as always are no events: nobody wanted to send them.
    """
    if outcome.error_code == EgressRefused.code:
        return EgressRefused.code
    if outcome.pinned_by is not None and outcome.pinned_by.startswith(CONTENT):
        return outcome.pinned_by
    if outcome.reason is Reason.LEDGER_UNAVAILABLE and outcome.ending is Ending.REFUSED:
        return outcome.reason.value
    return outcome.reason.value if outcome.reason in _RULES else None


def refusal_row(outcome: Outcome, *, node: str, at_us: int) -> AuditRow | None:
    """The audit row of an ended request that was refused to leave, None for any other."""
    rule = refused_by(outcome)
    if rule is None:
        return None
    return AuditRow(
        at_us=at_us,
        node=node,
        event=AuditEvent.REFUSED,
        request_id=outcome.request_id,
        caller=outcome.tenant,
        residency=(Residency.ANY if outcome.may_leave else Residency.PREMISES).value,
        rule=rule,
        provider=None,
        model=outcome.model,
        prompt_bytes=outcome.prompt_bytes,
        reserved_nano_usd=None,
    )
