"""The right to leave the premises, once, for one request.

The egress gate sends nothing without an `EgressPermit`, and `grant()` is the only place that makes one. It
looks at the request's residency again, so a mistake anywhere upstream of it still cannot let a pinned request out.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass

from node.money import Usage
from node.routing.values import CloudOption, Decision, Features, Residency, Target

_GRANTED = object()


class EgressForbidden(Exception):
    """Somebody asked for a permit that the rules do not give. A bug in the node, never a client's mistake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressPermit:
    """Who may leave (`request_id`), to whom (`provider`, `model`), by what rule, at what worst-case price."""

    request_id: str
    provider: str
    model: str
    rule: str
    reserved_nano_usd: int
    seal: InitVar[object]  # not a field: dataclasses.replace() cannot carry it over to a forged copy

    def __post_init__(self, seal: object) -> None:
        if seal is not _GRANTED:
            raise EgressForbidden("an EgressPermit is made by node.routing.permit.grant() only")


def worst_case_nano_usd(features: Features, option: CloudOption) -> int | None:
    """The most this request can cost at `option`: prompt bound plus every choice at its full length.

    None when the price is unknown.
    """
    if option.price is None:
        return None
    return option.price.cost_nano_usd(
        Usage(features.prompt_tokens_bound, features.choices * features.max_output_tokens)
    )


def grant(features: Features, decision: Decision) -> EgressPermit:
    """A permit for the request that `decision` sends to the cloud.

    Raises `EgressForbidden` if the request is pinned, the decision is not a cloud one, or the price is unknown.
    """
    if features.residency is not Residency.ANY:
        raise EgressForbidden(f"request {features.request_id} is pinned to the premises")
    if decision.target is not Target.CLOUD or decision.cloud is None:
        raise EgressForbidden(f"request {features.request_id} was not decided for the cloud")
    reserved = worst_case_nano_usd(features, decision.cloud)
    if reserved is None:
        raise EgressForbidden(f"the price of {decision.cloud.model} at {decision.cloud.provider} is unknown")
    return EgressPermit(
        request_id=features.request_id,
        provider=decision.cloud.provider,
        model=decision.cloud.model,
        rule=decision.reason.value,
        reserved_nano_usd=reserved,
        seal=_GRANTED,
    )
