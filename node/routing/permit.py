"""The right to leave this machine, once, for one request.

The egress gate sends nothing without an `EgressPermit`, and `grant()` is the only place that makes one. It
looks at the request's residency again, so a mistake anywhere upstream of it still cannot let a pinned request out: its
permit is good for one provider on the premises, and the gate knows for itself which those are.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass

from node.routing.values import CloudOption, Decision, Features, Residency, Target, Zone

_GRANTED = object()


class EgressForbidden(Exception):
    """Somebody asked for a permit that the rules do not give. A bug in the node, never a client's mistake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressPermit:
    """Who may leave (`request_id`), to whom (`provider`, `model`), by what rule, at what worst-case price.

    `residency` is the request's: a pinned one is sent to a provider on the premises and to no other.
    """

    request_id: str
    residency: Residency
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
    return option.price.cost_of_nano_usd(features.prompt_tokens_bound, features.choices * features.max_output_tokens)


def grant(features: Features, decision: Decision) -> EgressPermit:
    """A permit for the request that `decision` sends to a provider.

    Raises `EgressForbidden` if the request is pinned and the provider not on the premises, the decision is not a cloud
    one, or the price is unknown.
    """
    if decision.target is not Target.CLOUD or decision.cloud is None:
        raise EgressForbidden(f"request {features.request_id} was not decided for the cloud")
    if features.residency is not Residency.ANY and decision.cloud.zone is not Zone.PREMISES:
        raise EgressForbidden(f"request {features.request_id} is pinned to the premises")
    reserved = worst_case_nano_usd(features, decision.cloud)
    if reserved is None:
        raise EgressForbidden(f"the price of {decision.cloud.model} at {decision.cloud.provider} is unknown")
    return EgressPermit(
        request_id=features.request_id,
        residency=features.residency,
        provider=decision.cloud.provider,
        model=decision.cloud.model,
        rule=decision.reason.value,
        reserved_nano_usd=reserved,
        seal=_GRANTED,
    )
