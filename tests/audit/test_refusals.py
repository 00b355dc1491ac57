"""Which ended requests the audit chain tells of, though nothing of them left."""

from dataclasses import replace

import pytest

from node.audit.refusals import refusal_row, refused_by
from node.dispatch.outcome import Ending
from node.errors import EngineDied, PrivateNotServable, Refused
from node.routing.permit import EgressForbidden
from node.routing.values import EngineState, Reason
from tests.dispatch.doubles import House, ScriptedBackend, ScriptedEngine, named
from tests.dispatch.virtual_time import in_virtual_time
from tests.outcomes import SERVED_HERE

SERVED = replace(SERVED_HERE, tenant="alice", prompt_bytes=77)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"reason": Reason.PINNED, "may_leave": False, "pinned_by": "key"}, None),
        ({"reason": Reason.LAST_MOMENT, "backend": "cloud"}, None),
        ({"reason": Reason.NO_PROVIDER, "ending": Ending.REFUSED}, None),
        ({"reason": None, "ending": Ending.REJECTED}, None),
        ({"reason": Reason.NO_PREMISES_CAPACITY, "ending": Ending.REFUSED, "may_leave": False}, "no_premises_capacity"),
        ({"reason": Reason.PRIVATE_NOT_SERVABLE, "ending": Ending.REFUSED, "may_leave": False}, "private_not_servable"),
        ({"reason": Reason.BUDGET_SPENT, "ending": Ending.REFUSED}, None),
        ({"reason": Reason.BUDGET_SPENT}, None),
        ({"reason": Reason.LEDGER_UNAVAILABLE}, None),
        ({"reason": Reason.LEDGER_UNAVAILABLE, "ending": Ending.REFUSED}, "ledger_unavailable"),
        ({"reason": Reason.CONTENT_RULE, "may_leave": False, "pinned_by": "content:iban"}, "content:iban"),
        (
            {"reason": Reason.NO_PREMISES_CAPACITY, "ending": Ending.REFUSED, "pinned_by": "content:iban"},
            "content:iban",
        ),
        ({"ending": Ending.FAILED, "error_code": "egress_forbidden"}, "egress_forbidden"),
    ],
)
def test_only_what_a_rule_kept_from_leaving_is_an_event(changes: dict[str, object], rule: str | None) -> None:
    outcome = replace(SERVED, **changes)  # type: ignore[arg-type]
    assert refused_by(outcome) == rule
    row = refusal_row(outcome, node="here", at_us=5)
    assert (row is None) == (rule is None)
    if row is not None:
        assert (row.rule, row.caller, row.model, row.prompt_bytes, row.at_us) == (rule, "alice", "demo", 77, 5)
        assert row.residency == ("any" if outcome.may_leave else "premises")
        assert (row.provider, row.reserved_nano_usd) == (None, None)


@in_virtual_time
async def test_pinned_request_that_nothing_here_can_serve_is_an_event() -> None:
    home = House(None, [ScriptedBackend("cloud")])
    with pytest.raises(PrivateNotServable):
        await home.answer(named("r", pinned=True))
    assert [refused_by(outcome) for outcome in home.outcomes] == ["private_not_servable"]


@in_virtual_time
async def test_pinned_request_while_the_engine_is_down_is_an_event() -> None:
    home = House(ScriptedEngine(state=EngineState.DOWN), [ScriptedBackend("cloud")])
    with pytest.raises((Refused, EngineDied)):
        await home.answer(named("r", pinned=True))
    assert [refused_by(outcome) for outcome in home.outcomes] == ["no_premises_capacity"]


@in_virtual_time
async def test_what_the_permit_refuses_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise EgressForbidden("no")

    monkeypatch.setattr("node.dispatch.attempts.grant", refuse)
    home = House(None, [ScriptedBackend("cloud")])
    with pytest.raises(EgressForbidden):
        await home.answer()
    assert [refused_by(outcome) for outcome in home.outcomes] == ["egress_forbidden"]
