from dataclasses import replace

from node.backend import Call, Kind
from node.local.quarantine import Quarantine

CALL = Call(
    request_id="a",
    kind=Kind.CHAT,
    model="demo",
    body={"messages": [{"role": "user", "content": "poison"}], "temperature": 0.0},
    stream=True,
    include_usage=False,
    max_output_tokens=16,
    created_s=1,
    tenant="t",
)
AGAIN = replace(CALL, request_id="b", created_s=2, tenant="u", stream=False, body=dict(reversed(CALL.body.items())))
OTHER = replace(CALL, body={"messages": [{"role": "user", "content": "harmless"}]})


def test_row_66_a_request_that_ran_at_two_deaths_is_held_whoever_sends_it() -> None:
    quarantine = Quarantine()
    quarantine.died_with(CALL, 1, 0.0)
    quarantine.died_with(OTHER, 1, 0.0)
    assert quarantine.held_for_s(AGAIN, 1.0) is None
    quarantine.died_with(AGAIN, 2, 10.0)
    assert quarantine.held_for_s(CALL, 10.0) == 3600.0
    assert quarantine.held_for_s(OTHER, 10.0) is None


def test_many_copies_at_one_death_count_once() -> None:
    quarantine = Quarantine()
    for _ in range(5):
        quarantine.died_with(CALL, 1, 0.0)
    assert quarantine.held_for_s(CALL, 0.0) is None


def test_it_is_forgotten_after_an_hour() -> None:
    quarantine = Quarantine()
    quarantine.died_with(CALL, 1, 0.0)
    quarantine.died_with(CALL, 2, 100.0)
    assert quarantine.held_for_s(CALL, 3699.0) == 1.0
    assert quarantine.held_for_s(CALL, 3700.0) is None
    assert len(quarantine) == 0


def test_memory_is_bounded_and_the_oldest_go() -> None:
    quarantine = Quarantine()
    calls = [replace(CALL, body={"prompt": str(number)}) for number in range(5000)]
    for number, call in enumerate(calls):
        quarantine.died_with(call, 1, float(number) / 10)
    assert len(quarantine) == 4096
    quarantine.died_with(calls[0], 2, 501.0)
    quarantine.died_with(calls[-1], 2, 501.0)
    assert quarantine.held_for_s(calls[0], 502.0) is None
    assert quarantine.held_for_s(calls[-1], 502.0) is not None
