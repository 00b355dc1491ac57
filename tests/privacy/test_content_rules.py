"""A request that says something private stays on the premises, whatever else is true, and its answer says why."""

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from node.audit.refusals import refused_by
from node.privacy.content import ContentRules
from node.privacy.detectors import Detector
from node.settings import ContentRulesSettings, PrivacySettings
from tests.cloud.cloud_node import CloudNode, cloud_node

RULES = ContentRules(
    ContentRulesSettings(
        detect=tuple(Detector),
        words=("Project Falcon", "streng geheim", "Müller GmbH"),
        patterns={"ticket": "ACME-[0-9]{6}"},
    )
)
MAIL = "jane@example.com"
FULL_WIDTH = {ord(" "): "\u3000", **{ord("0") + digit: chr(0xFF10 + digit) for digit in range(10)}}


async def found(body: Any, rules: ContentRules = RULES, *, unreadable: bool = False) -> str | None:
    return await rules.match(body, unreadable=unreadable)


def said(text: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        (said("Hello, what is 17 times 23?"), None),
        (said(f"Write to {MAIL}"), "email"),
        (said([{"type": "text", "text": "hi"}, {"type": "text", "text": f"to {MAIL}"}]), "email"),
        ({"messages": [{"role": "system", "content": f"You are {MAIL}"}, {"role": "user", "content": "hi"}]}, "email"),
        ({"prompt": ["fine", f"not {MAIL}"]}, "email"),
        ({"tools": [{"function": {"parameters": {"properties": {MAIL: {"type": "string"}}}}}]}, "email"),
        ({"tools": [{"function": {"parameters": {"enum": [4111111111111111]}}}]}, "payment_card"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": f'{{"to": "{MAIL}"}}'}}]}]},
         "email"),
        (said("card 4111 1111 1111 1111"), "payment_card"),
        (said("card " + "4111 1111 1111 1111".translate(FULL_WIDTH)), "payment_card"),
        (said("card 4111\u00a01111\u202f1111\u20091111"), "payment_card"),
        (said("jane\u200b@exam\u00adple.com"), "email"),
        (said("to DE89 3704 0044 0532 0130 00"), "iban"),
        (said("about PROJECT\n falcon!"), "words"),
        (said("STRENG GEHEIM"), "words"),
        (said("projects falconry"), None),
        (said("see ACME-123456"), "ticket"),
        (said("see ACME-12345"), None),
    ],
)  # fmt: skip
async def test_everything_that_would_be_sent_is_looked_at(body: dict[str, Any], rule: str | None) -> None:
    assert await found(body) == rule


def called(arguments: str) -> dict[str, Any]:
    return {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": arguments}}]}]}


def answered(content: str) -> dict[str, Any]:
    return {"messages": [{"role": "tool", "tool_call_id": "1", "content": content}]}


def within(value: Any, *, deep: int) -> str:
    """JSON in JSON, as deep as asked."""
    for _ in range(deep):
        value = json.dumps({"n": value})
    return str(value)


HIDDEN = [
    ("x\n4111 1111 1111 1111", "payment_card"),
    ("x\nDE89 3704 0044 0532 0130 00", "iban"),
    ("\tDE89 3704 0044 0532 0130 00", "iban"),
    ("the Müller GmbH", "words"),
    ("MÜLLER\nGMBH", "words"),
    ("card " + "4111 1111 1111 1111".translate(FULL_WIDTH), "payment_card"),
    ("\U0001f600 see\nACME-123456", "ticket"),
]


@pytest.mark.parametrize("place", [called, answered, said])
@pytest.mark.parametrize("deep", [1, 2, 3, 4])
@pytest.mark.parametrize(("value", "rule"), HIDDEN)
async def test_json_in_a_string_hides_nothing(place: Any, deep: int, value: str, rule: str) -> None:
    text = within(value, deep=deep)
    assert await found(place(text)) == rule
    assert await found(place(" \n" + text)) == rule
    assert await found(place(text[:-1])) == rule  # cut off, and so no JSON
    assert await found(place("It says: " + text + " and more")) == rule


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (json.dumps("x\n4111 1111 1111 1111"), "payment_card"),
        (json.dumps({"x\n4111 1111 1111 1111": 1}), "payment_card"),
        (json.dumps([{"a": [["Müller GmbH"]]}]), "words"),
        ('{"a": "M\\u00fcller GmbH", "a": "fine"}', "words"),
        (r'{"to": "jane\u0040example.com"}', "email"),
        (r"{'to': 'jane\u0040example.com'", "email"),
        (r"jane\u0040example.com", "email"),
        (r"\ud83djane\u0040example.com", "email"),
        (r"jane\u0040example.com\ud83d", "email"),
        ("C:\\new\\table\\users \\u12 \\x \\", None),
        (json.dumps({"path": "C:\\new\\Müller"}), None),
        (json.dumps({"text": "fine", "n": [1, 2.5, None, True]}), None),
    ],
)
async def test_escapes_hide_nothing(text: str, rule: str | None) -> None:
    assert await found(said(text)) == rule
    assert await found(called(text)) == rule


async def test_pattern_for_a_whole_line_finds_a_value_in_json() -> None:
    rules = ContentRules(ContentRulesSettings(patterns={"ticket": "(?m)^ACME-[0-9]{6}$"}))
    assert await found(called('{"id": "ACME-123456"}'), rules) == "ticket"
    assert await found(said('the "ACME-123456"'), rules) is None


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 50_000, "\\" * 200_000, '"' * 200_000, "\\u0041" * 40_000, "[1e999, NaN, " + "9" * 9000],
)
async def test_odd_json_is_looked_at_to_its_end(text: str) -> None:
    assert await found(said("[" + text)) is None
    assert await found(said("[" + text + " jane\\u0040example.com")) == "email"


async def test_escaped_text_counts_once_towards_the_limit() -> None:
    rules = ContentRules(ContentRulesSettings(detect=(Detector.EMAIL,), max_chars=1000))
    assert await found(said(json.dumps(["\n" * 400])), rules) is None


@pytest.mark.parametrize(
    "parts",
    [
        ("write to jane@exam", "ple.com"),
        ("4111 1111", " 1111 1111"),
        ("Project", " Falcon"),
        ('{"n": "M\\u00', 'fcller GmbH"}'),
        ("ACME-", "12", "3456"),
        ("4111 1111", "1111 1111"),
        ("4111-1111-", "1111-1111"),
        ("Project", "Falcon"),
        ("Say", "41111111", "11111111", "Thanks"),
        ("x" * 9000, "41111111", "11111111", "y" * 9000),
        ("x" * 9000, "4111 1111", "1111 1111", "y" * 9000),
        ("My card: 41111111", "11111111", "x" * 9000),
    ],
)
async def test_text_split_over_the_parts_of_a_message_is_seen_whole(parts: tuple[str, ...]) -> None:
    assert await found(said([{"type": "text", "text": part} for part in parts]))
    assert await found(said([{"type": "text", "text": "fine"}, {"type": "text", "text": "words"}])) is None


async def test_what_cannot_be_looked_into_is_pinned_where_there_are_rules() -> None:
    assert await found(said("fine"), unreadable=True) == "unreadable"
    assert await found(said("fine"), ContentRules(ContentRulesSettings()), unreadable=True) is None


async def test_more_text_than_is_looked_at_is_pinned_and_not_passed() -> None:
    rules = ContentRules(ContentRulesSettings(detect=(Detector.EMAIL,), max_chars=1000))
    assert await found(said("x" * 900), rules) is None
    assert await found(said("x" * 1001), rules) == "too_long"
    assert await found(said("\ufdfa" * 900), rules) == "too_long"  # each is eighteen characters, written out


@pytest.mark.parametrize("before", range(8192 - 24, 8192 + 8))
async def test_text_at_the_edge_of_two_slices_is_seen_whole(before: int) -> None:
    # `text_of` puts the names of the fields and the role in front, and a line's end behind each.
    lead = len("messages\nrole\nuser\ncontent\n")
    assert await found(said("." * (before - lead) + f" {MAIL} " + "." * 20_000)) == "email"


async def test_long_text_is_looked_at_to_its_end_and_the_loop_turns_meanwhile() -> None:
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    turning = asyncio.create_task(turn())
    assert await found(said("The quick brown fox. " * 40_000 + MAIL)) == "email"
    turning.cancel()
    assert turns > 5


async def test_pattern_that_takes_too_long_pins() -> None:
    rules = ContentRules(ContentRulesSettings(patterns={"slow": "x.*x.*x.*x.*x.*x.*y"}))
    assert await found(said("x" * 8000), rules) == "slow"
    assert await found(said("plain"), rules) is None


@pytest.fixture
async def node(tmp_path: Path) -> Any:
    async with cloud_node(tmp_path, "one") as node:
        yield node


def use(node: CloudNode, **rules: Any) -> None:
    node.node.content_rules = ContentRules(ContentRulesSettings(**rules))


async def test_request_that_matches_does_not_leave_and_is_told_which_rule(node: CloudNode) -> None:
    use(node, detect=(Detector.EMAIL,))
    assert (await node.ask()).status == 200
    before = node.asked()
    answer = await node.ask(messages=[{"role": "user", "content": f"Write to {MAIL}"}])
    assert (answer.status, answer.error["code"]) == (403, "private_not_servable")
    assert "by the content rule `email`" in answer.error["message"]
    assert MAIL not in json.dumps(answer.error)
    assert node.asked() == before
    assert (node.outcome.pinned_by, node.outcome.may_leave) == ("content:email", False)
    assert refused_by(node.outcome) == "content:email"


async def test_request_with_token_ids_does_not_leave_where_there_are_rules(node: CloudNode) -> None:
    use(node, words=("falcon",))
    answer = await node.client.post("/v1/completions", json={"model": "m", "prompt": [1, 2, 3]})
    assert answer.status_code == 403
    assert node.outcome.pinned_by == "content:unreadable"


async def test_pinned_request_is_answered_on_the_premises_and_says_what_pinned_it(tmp_path: Path) -> None:
    async with cloud_node(tmp_path, "one", zone="premises") as node:
        use(node, detect=(Detector.EMAIL,))
        answer = await node.ask(messages=[{"role": "user", "content": MAIL}])
        assert (answer.status, answer.headers["x-spillway-pinned-by"]) == (200, "content:email")
        answer = await node.ask(spillway={"require_local": True}, messages=[{"role": "user", "content": MAIL}])
        assert answer.headers["x-spillway-pinned-by"] == "request"
        assert "x-spillway-pinned-by" not in (await node.ask()).headers


async def test_no_rule_loosens_another_pin(tmp_path: Path) -> None:
    async with cloud_node(tmp_path, "one") as node:
        use(node, detect=(Detector.EMAIL,))
        node.node.settings = msgspec.structs.replace(node.node.settings, privacy=PrivacySettings(pinned_models=("m",)))
        answer = await node.ask(messages=[{"role": "user", "content": "nothing special"}])
        assert answer.status == 403
        assert node.outcome.pinned_by == "model"
        assert node.asked() == 0


async def test_pin_in_the_wrong_place_is_refused_and_nothing_leaves(node: CloudNode) -> None:
    question = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    for fields, header in (({"require_local": True}, "x-other"), ({}, "x_spillway_require_local")):
        answer = await node.client.post("/v1/chat/completions", json={**question, **fields}, headers={header: "true"})
        assert answer.status_code == 400
        assert "x-spillway-require-local: true" in answer.json()["error"]["message"]
    assert node.asked() == 0


async def test_request_with_a_private_value_in_a_tool_result_does_not_leave(node: CloudNode) -> None:
    use(node, words=("Müller GmbH",))
    call = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    answer = await node.ask(
        messages=[
            {"role": "user", "content": "who?"},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": json.dumps({"n": "Müller GmbH"})},
        ]
    )
    assert (answer.status, node.outcome.pinned_by, node.asked()) == (403, "content:words", 0)
