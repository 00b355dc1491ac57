"""The faults bench tells a good answer from each kind of bad one, and its weather and hour are what they say."""

from itertools import islice

import pytest
from _faults_clients import HERE, Asked, Heard, crowd
from _faults_engine import hour_of, told
from _faults_judge import Evidence, Said, Wrong, gather, judge
from _faults_weather import weather

from node.emulator.switches import Switch
from node.local.supervision import Rules

KEY = "secret-key"
TEXT = "Emulated answer — a b c d"
EVIDENCE = Evidence(arrivals=1, said=(Said("north", TEXT, None),))


def heard(**changes: object) -> Heard:
    """A streamed answer of north's, whole."""
    good: dict[str, object] = {
        "asked": Asked("request-1-00001", HERE, pinned=False, stream=True),
        "began_s": 0.0,
        "ended_s": 1.0,
        "status": 200,
        "backend": "north",
        "request_id": "r",
        "text": TEXT,
        "finish": "stop",
        "completion_tokens": 7,
        "done": True,
        "identities": {("chatcmpl-1", HERE)},
    }
    return Heard(**(good | changes))  # type: ignore[arg-type]


ERROR = {"message": "cut", "type": "server_error", "param": None, "code": "upstream_truncated"}


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({}, []),
        ({"text": TEXT[:20], "error": ERROR}, []),
        ({"text": TEXT[:20]}, [Wrong.TRUNCATED]),
        ({"text": TEXT[:20], "done": False, "broken": "closed"}, [Wrong.TRUNCATED]),
        ({"finish": None}, [Wrong.TRUNCATED]),
        ({"text": "Spillway is" + TEXT}, [Wrong.SPLICED]),
        ({"text": "Spillway is", "error": ERROR}, [Wrong.SPLICED]),
        ({"identities": {("chatcmpl-1", HERE), ("chatcmpl-2", HERE)}}, [Wrong.SPLICED]),
        ({"backend": "local"}, [Wrong.SPLICED]),
        ({"backend": "local", "text": "Spillway is a node."}, []),
        ({"backend": "local", "text": "Spillway is", "finish": "length"}, [Wrong.TRUNCATED]),
        ({"hung": True, "done": False, "text": "", "error": ERROR}, [Wrong.HUNG]),
        ({"status": 502, "error": {"message": "no"}}, [Wrong.MALFORMED]),
        ({"status": 503, "error": ERROR}, [Wrong.MALFORMED]),
        ({"status": 503, "error": ERROR, "retry_after": "2"}, []),
        ({"status": 502, "error": ERROR, "raw_error": f"... {KEY} ..."}, [Wrong.KEY_SHOWN]),
        ({"left": True, "done": False, "text": TEXT[:20]}, []),
    ],
)
def test_answer_is_judged_by_what_the_provider_was_to_say(changes: dict[str, object], wrong: list[Wrong]) -> None:
    assert judge(heard(**changes), EVIDENCE, KEY) == wrong


def test_pinned_request_that_a_provider_has_seen_is_found() -> None:
    pinned = heard(backend="local", text="Spillway is a node.", asked=Asked("request-1-00001", HERE, True, True))
    assert judge(pinned, EVIDENCE, KEY) == [Wrong.PIN_BROKEN]


def test_evidence_is_put_together_from_logs_and_bills() -> None:
    log = [
        {"request_id": "hs_req_1_00000001", "prompts": ["Please. (request-1-00001)"]},
        {"request_id": "hs_req_1_00000002", "prompts": ["Please. (request-1-00001)"]},
        {"request_id": "hs_req_1_00000003", "prompts": ["Hello"]},
    ]
    bill = [{"id": "chatcmpl-emulated1x00000002", "answers": [TEXT], "switch": "crlf"}]
    assert gather({"north": log}, {"north": bill}) == {
        "request-1-00001": Evidence(arrivals=2, said=(Said("north", TEXT, "crlf"),))
    }


def test_every_provider_goes_through_every_fault_and_the_same_seed_gives_the_same_weather() -> None:
    first, again = (list(islice(weather(7, ("north", "south")), 200)) for _ in range(2))
    assert first == again
    for name in ("north", "south"):
        assert {switch for episode in first for switch in episode.armed[name]} == {each.value for each in Switch}
    assert crowd(7, 50) == crowd(7, 50)
    assert crowd(7, 50) != crowd(8, 50)


def test_hour_finds_a_kill_only_where_steps_are_as_long_as_the_stall_limit() -> None:
    strict = Rules(stall_s=4.0)
    calm = hour_of([0.01] * 99 + [0.6], strict, 1)
    assert (calm.suspected, calm.killed, calm.suspected_strict, calm.killed_strict) == (0, 0, 0, 0)
    stormy = hour_of([0.01] * 999 + [9.0], strict, 1)
    assert stormy.killed == 0
    assert stormy.killed_strict > 0


def test_only_what_had_no_first_byte_at_the_blow_counts_as_unanswered() -> None:
    before = heard(first_s=4.0, began_s=3.0, ended_s=6.0, backend="local", text="Spillway is", error=ERROR)
    waiting = heard(began_s=4.5, ended_s=7.0, first_s=6.0)
    later = heard(began_s=30.0, ended_s=31.0, first_s=30.5)
    blow = told(
        [before, waiting, later],
        {"request-1-00001": EVIDENCE},
        fell_s=5.0,
        back_s=20.0,
        noticed_s=None,
        limit_s=None,
        load_s=18.0,
        first_load_s=15.0,
    )
    assert (blow.unanswered, blow.rescued, blow.by_cloud, blow.begun, blow.told, blow.wrong) == (1, 1, 1, 1, 1, 0)
    assert blow.overtime_s == 2.0


def test_calls_of_a_provider_that_was_started_anew_are_told_from_those_before() -> None:
    log = [
        {"request_id": "hs_req_1_00000001", "prompts": ["Please. (first)"]},
        {"request_id": "hs_req_2_00000001", "prompts": ["Please. (second)"]},
    ]
    bill = [
        {"id": f"chatcmpl-emulated{seed}x00000001", "answers": [text], "switch": None}
        for seed, text in ((1, "one"), (2, "two"))
    ]
    found = gather({"north": log}, {"north": bill})
    assert [found[marker].said[0].text for marker in ("first", "second")] == ["one", "two"]
