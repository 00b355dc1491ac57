"""What the dispatcher notes down while a request is on its way; it ends as one Outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from node.backend import Call, Kind
from node.catalogue import CloudEquivalent, Model
from node.dispatch.accounts import worth
from node.dispatch.outcome import Ending, Foreseen, Outcome
from node.errors import (
    BudgetSpent,
    ContextLengthExceeded,
    CostBudgetTooSmall,
    EngineAway,
    Fault,
    InvalidRequest,
    LedgerUnavailable,
    OutputTooLong,
    PrivateNotServable,
    Refused,
    RefusedBusy,
    SpillwayError,
)
from node.money import Usage, nano_to_usd_text
from node.routing.values import CONTENT, Decision, EngineState, Features, Reason


@dataclass(slots=True)
class Journey:
    """One request's notes.

    `answer_nano_usd` is the price of the answer itself; `spent_nano_usd` adds up all attempts, also those that came
    to nothing. `opened` counts entries in the ledger, `attempts` what was really begun.
    """

    call: Call
    features: Features
    model: Model
    decision: Decision | None = None
    decided_s: float = 0.0
    backend: str | None = None
    served_model: str | None = None
    opened: int = 0
    attempts: int = 0
    queue_s: float = 0.0
    first_content_s: float | None = None
    usage: Usage | None = None
    answer_nano_usd: int = 0
    spent_nano_usd: int = 0

    def outcome(self, ending: Ending, error: SpillwayError | None, now_s: float) -> Outcome:
        """The request's one Outcome."""
        features, decision = self.features, self.decision
        at_list, in_cloud = (None, None) if self.usage is None else worth(self.model, self.usage)
        first_s = self.first_content_s
        foreseen: list[Foreseen] = []
        if first_s is not None and decision is not None:
            if decision.predicted_ttft_s is not None:
                took_s = first_s - self.decided_s
                foreseen.append(Foreseen(predicted_s=decision.predicted_ttft_s, took_s=took_s, queued=False))
            if (expected := decision.expected) is not None:
                took_s = first_s - expected.made_at_s
                foreseen.append(Foreseen(predicted_s=expected.ttft_s, took_s=took_s, queued=True))
        return Outcome(
            request_id=self.call.request_id,
            kind=self.call.kind,
            model=self.call.model,
            tenant=self.call.tenant,
            ending=ending,
            backend=self.backend,
            served_model=self.served_model,
            reason=_reason(decision, error),
            attempts=self.attempts,
            queue_s=self.queue_s,
            ttft_s=None if first_s is None else first_s - features.arrived_s,
            predicted_ttft_s=decision.predicted_ttft_s if decision else None,
            ttft_budget_s=features.ttft_budget_s,
            total_s=now_s - features.arrived_s,
            prompt_bytes=features.prompt_bytes,
            usage=self.usage,
            cost_nano_usd=self.spent_nano_usd,
            reference_nano_usd=at_list,
            cloud_nano_usd=in_cloud,
            error_code=error.code if error else None,
            choices=features.choices,
            foreseen=tuple(foreseen),
            may_leave=features.may_leave,
            pinned_by=features.pinned_by,
            was_kept=decision is not None and decision.was_kept,
            most_tokens=features.most_tokens,
        )


def _reason(decision: Decision | None, error: SpillwayError | None) -> Reason | None:
    """What the header says too: a budget says no after the decision, when the price is written down."""
    if isinstance(error, BudgetSpent):
        return Reason.BUDGET_SPENT
    return decision.reason if decision else None


def ending_of(error: SpillwayError) -> Ending:
    """How a request that failed with `error` ended."""
    if error.rule is not None:
        return Ending.REFUSED
    return Ending.REJECTED if error.fault is Fault.CLIENT else Ending.FAILED


def cancelled_by(cancelled: asyncio.CancelledError) -> SpillwayError | None:
    """For what we cancelled a request ourselves, None where its client has hung up.

    It comes as the argument of `Task.cancel`: through every wait on the way, without anybody handing it on.
    """
    why = cancelled.args[0] if cancelled.args else None
    return why if isinstance(why, SpillwayError) else None


def check_output_length(call: Call, features: Features, model: Model, cloud: Iterable[CloudEquivalent]) -> None:
    """Raise `OutputTooLong` for a `max_tokens` beyond what anything that may serve the request could write.

    `cloud` are the equivalents it may go to.
    """
    asked = call.body.get("max_tokens")
    if asked is None:
        return
    limits = [model.local.context_tokens] if model.local is not None else []
    limits += [each.max_output_tokens or each.context_tokens for each in cloud]
    if limits and asked > max(limits):
        raise OutputTooLong(
            f"max_tokens={asked} is more than anything that may serve `{features.model}` can write: at most "
            f"{max(limits)} tokens.",
            param="max_tokens",
        )


_NO_CLOUD = {
    Reason.UNKNOWN_PRICE: "the price of its cloud equivalent is not known",
    Reason.NO_PROVIDER: "no cloud provider is available",
    Reason.LEDGER_UNAVAILABLE: "what it costs in the cloud cannot be written down at the moment",
}
_ENGINE_IS = {
    EngineState.STARTING: "the engine is starting",
    EngineState.SUSPECT: "the engine makes no progress",
    EngineState.DOWN: "the engine is down",
    EngineState.ASLEEP: "the engine is asleep",
}
_ONLY_HERE = frozenset({Reason.NO_PREMISES_CAPACITY, Reason.NO_CLOUD_EQUIVALENT})


def refusal(decision: Decision, journey: Journey, *, engine: EngineState | None, busy: bool) -> SpillwayError:
    """The error for a decision to refuse.

    `engine`: how the engine here is that could serve it, given time; None: there is none. `busy`: it has work: a ready
    one's capacity is taken (429), else there is none (503).
    """
    rule, features = decision.reason, journey.features
    if rule is Reason.PRIVATE_NOT_SERVABLE:
        return PrivateNotServable(
            f"The request is pinned to the premises{_pinned_by(features)}, and nothing on the premises can serve "
            f"`{features.model}`{f' with what it asks for{_listed(features)}' if features.needs else ''}.",
            param="model",
            rule=rule,
        )
    if rule is Reason.CONTEXT_LENGTH:
        return ContextLengthExceeded(
            f"The prompt (about {features.prompt_tokens_estimate} tokens) is longer than the context of everything "
            f"that may serve `{features.model}` with what the request asks for.",
            param="messages" if journey.call.kind is Kind.CHAT else "prompt",
            rule=rule,
        )
    if rule is Reason.NOT_SERVABLE:
        return InvalidRequest(
            f"The local engine cannot do what the request asks for{_listed(features)}, and {_no_equivalent(journey)}."
            if journey.model.local is not None
            else f"There is no local engine for `{features.model}`, and {_no_equivalent(journey)}.",
            rule=rule,
        )
    if rule is Reason.COST_BUDGET and engine is None:
        return CostBudgetTooSmall(
            f"Only the cloud can serve the request, and it could cost more there than {_budget(features)}. Raise the "
            "budget, or ask for fewer tokens.",
            param="spillway.cost_budget_usd",
            rule=rule,
        )
    here = "only the cloud can serve it"
    if engine is not None:
        here = _ENGINE_IS.get(engine, "the engine has no capacity for it")
    if rule is Reason.NO_PREMISES_CAPACITY:
        there = here if engine is not None else "nothing there can take it at the moment"
        why = f"it is pinned to the premises{_pinned_by(features)}, and {there}"
    elif rule is Reason.COST_BUDGET:
        why = f"{here}, and the cloud could cost more than {_budget(features)}"
    elif rule is Reason.NO_CLOUD_EQUIVALENT:
        why = f"{here}, and {_no_equivalent(journey)}"
    else:
        why = f"{here}, and {_NO_CLOUD.get(rule, 'it may not leave')}"
    error = Refused
    if busy and engine is EngineState.READY:
        error = RefusedBusy
    elif rule is Reason.LEDGER_UNAVAILABLE:
        error = LedgerUnavailable
    elif engine in _ENGINE_IS and rule in _ONLY_HERE:
        error = EngineAway
    return error(f"The request was refused: {why}.", rule=rule.value, retry_after_s=decision.retry_after_s)


def _pinned_by(features: Features) -> str:
    """Who pinned it, as an insertion; only a content rule is news to the client."""
    by = features.pinned_by
    return f" by the content rule `{by.removeprefix(CONTENT)}`" if by is not None and by.startswith(CONTENT) else ""


def _no_equivalent(journey: Journey) -> str:
    """Why there is nothing in the cloud for the request, as the middle of a sentence."""
    model = journey.model
    if model.cloud:
        return f"none of its cloud equivalents can do what it asks for{_listed(journey.features)}"
    if model.out_of_reach:
        return f"no provider of its cloud equivalents is configured ({', '.join(model.out_of_reach)})"
    return f"no cloud equivalent of `{model.name}` is declared"


def _budget(features: Features) -> str:
    assert features.cost_budget_nano_usd is not None
    return f"its cost_budget_usd of {nano_to_usd_text(features.cost_budget_nano_usd)}"


def _listed(features: Features) -> str:
    needs = ", ".join(sorted(features.needs))
    return f" ({needs})" if needs else ""
