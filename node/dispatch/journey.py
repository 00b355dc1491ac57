"""What the dispatcher notes down while a request is on its way; it ends as one Outcome."""

from __future__ import annotations

from dataclasses import dataclass

from node.backend import Call, Kind
from node.catalogue import Model
from node.dispatch.outcome import Ending, Outcome
from node.errors import ContextLengthExceeded, InvalidRequest, PrivateNotServable, Refused, RefusedBusy, SpillwayError
from node.money import Usage
from node.routing.values import Decision, Features, Reason


@dataclass(slots=True)
class Journey:
    """One request's notes.

    `answer_nano_usd` is the price of the answer itself; `spent_nano_usd` adds up all attempts, also those that came
    to nothing.
    """

    call: Call
    features: Features
    model: Model
    decision: Decision | None = None
    decided_s: float = 0.0
    backend: str | None = None
    served_model: str | None = None
    attempts: int = 0
    queue_s: float = 0.0
    first_content_s: float | None = None
    usage: Usage | None = None
    answer_nano_usd: int = 0
    spent_nano_usd: int = 0

    def outcome(self, ending: Ending, error: SpillwayError | None, now_s: float) -> Outcome:
        """The request's one Outcome."""
        features, decision, reference = self.features, self.decision, self.model.reference
        first_s = self.first_content_s
        ttft_excess_s = queue_excess_s = None
        if first_s is not None and decision is not None:
            if decision.predicted_ttft_s is not None:
                ttft_excess_s = first_s - self.decided_s - decision.predicted_ttft_s
            if decision.expected_at_s is not None:
                queue_excess_s = first_s - decision.expected_at_s
        return Outcome(
            request_id=self.call.request_id,
            kind=self.call.kind,
            model=self.call.model,
            tenant=self.call.tenant,
            ending=ending,
            backend=self.backend,
            served_model=self.served_model,
            reason=decision.reason if decision else None,
            attempts=self.attempts,
            queue_s=self.queue_s,
            ttft_s=None if first_s is None else first_s - features.arrived_s,
            predicted_ttft_s=decision.predicted_ttft_s if decision else None,
            ttft_budget_s=features.ttft_budget_s,
            total_s=now_s - features.arrived_s,
            prompt_bytes=features.prompt_bytes,
            usage=self.usage,
            cost_nano_usd=self.spent_nano_usd,
            reference_nano_usd=reference.cost_nano_usd(self.usage) if reference and self.usage else None,
            error_code=error.code if error else None,
            choices=features.choices,
            ttft_excess_s=ttft_excess_s,
            queue_excess_s=queue_excess_s,
        )


def ending_of(error: SpillwayError) -> Ending:
    """How a request that failed with `error` ended."""
    return Ending.REFUSED if isinstance(error, Refused | PrivateNotServable) else Ending.FAILED


_WHY_REFUSED = {
    Reason.NO_PREMISES_CAPACITY: "it is pinned to the premises and the engine has no capacity for it",
    Reason.NO_CLOUD_EQUIVALENT: "the engine has no capacity for it and no cloud equivalent is declared",
    Reason.COST_BUDGET: "the engine has no capacity for it and the cloud would exceed its cost_budget_usd",
    Reason.UNKNOWN_PRICE: "the engine has no capacity for it and the price of its cloud equivalent is not known",
    Reason.NO_PROVIDER: "the engine has no capacity for it and no cloud provider is available",
}


def refusal(decision: Decision, journey: Journey, *, busy: bool) -> SpillwayError:
    """The error for a decision to refuse. `busy`: capacity exists and is taken (429), else there is none (503)."""
    rule, features = decision.reason, journey.features
    if rule is Reason.PRIVATE_NOT_SERVABLE:
        return PrivateNotServable(
            f"The request is pinned to the premises, and nothing on the premises can serve `{features.model}` "
            f"with what it asks for{_listed(features)}.",
            param="model",
        )
    if rule is Reason.CONTEXT_LENGTH:
        return ContextLengthExceeded(
            f"The prompt (about {features.prompt_tokens_estimate} tokens) is longer than the context of everything "
            f"that may serve `{features.model}` with what the request asks for.",
            param="messages" if journey.call.kind is Kind.CHAT else "prompt",
        )
    if rule is Reason.NOT_SERVABLE:
        return InvalidRequest(
            f"Neither the local engine nor a declared cloud equivalent of `{features.model}` can do what the "
            f"request asks for{_listed(features)}."
        )
    why = _WHY_REFUSED.get(rule, "there is no capacity for it")
    error = RefusedBusy if busy else Refused
    return error(f"The request was refused: {why}.", rule=rule.value, retry_after_s=decision.retry_after_s)


def _listed(features: Features) -> str:
    needs = ", ".join(sorted(features.needs))
    return f" ({needs})" if needs else ""
