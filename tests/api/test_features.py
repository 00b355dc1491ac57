"""What routing gets to know of a request: pins add up, budgets have defaults, the bound on money is one."""

from dataclasses import replace

import pytest

from node.api.features import Admitted, admit
from node.api.schema import ParsedRequest
from node.api.wishes import RoutingWishes
from node.backend import Kind
from node.caller import Caller
from node.dispatch.experience import Experience
from node.money import Budget
from node.routing.values import Capability, Residency
from node.settings import ApiSettings, PrivacySettings, RoutingSettings, Settings

PARSED = ParsedRequest(
    kind=Kind.CHAT,
    model="demo",
    body={"messages": []},
    stream=True,
    include_usage=True,
    max_tokens=50,
    choices=2,
    needs=frozenset({Capability.TOOLS}),
    prompt_bytes=400,
    messages=3,
    media_parts=0,
    deterministic=True,
    wishes=RoutingWishes(),
    ignored=(),
)
ANYONE = Caller("team", Residency.ANY)
DEFAULTS = Settings(routing=RoutingSettings(ttft_budget_ms=2000, max_wait_s=60))


def admitted(
    parsed: ParsedRequest = PARSED,
    caller: Caller = ANYONE,
    settings: Settings = DEFAULTS,
    experience: Experience | None = None,
    stay_with: str | None = None,
) -> Admitted:
    learned = experience or Experience()
    return admit(parsed, caller, settings, learned, request_id="r", arrived_s=1000.0, stay_with=stay_with)


def wishing(**wishes: float | bool) -> ParsedRequest:
    return replace(PARSED, wishes=RoutingWishes(**wishes))  # type: ignore[arg-type]


def test_request_without_wishes_gets_the_defaults() -> None:
    features = admitted().features
    assert (features.ttft_budget_s, features.latency_budget_s) == (2.0, None)
    assert (features.arrived_s, features.give_up_s) == (1000.0, 1060.0)
    assert (features.residency, features.prefer_local, features.cost_budget_nano_usd) == (Residency.ANY, False, None)


@pytest.mark.parametrize(
    ("parsed", "caller", "settings"),
    [
        (wishing(require_local=True), ANYONE, DEFAULTS),
        (PARSED, Caller("clinic", Residency.PREMISES), DEFAULTS),
        (PARSED, ANYONE, Settings(privacy=PrivacySettings(residency=Residency.PREMISES))),
        (PARSED, ANYONE, Settings(privacy=PrivacySettings(pinned_models=("demo",)))),
    ],
    ids=["request", "key", "node", "model"],
)
def test_any_one_pin_holds(parsed: ParsedRequest, caller: Caller, settings: Settings) -> None:
    assert admitted(parsed, caller, settings).features.residency is Residency.PREMISES


def test_request_cannot_loosen_the_pin_of_its_key() -> None:
    pinned = Caller("clinic", Residency.PREMISES)
    assert admitted(wishing(require_local=False), pinned).features.residency is Residency.PREMISES


def test_own_budget_is_a_promise_and_ends_the_wait() -> None:
    features = admitted(wishing(ttft_budget_s=5.0)).features
    assert (features.ttft_budget_s, features.give_up_s) == (5.0, 1005.0)


def test_first_token_may_not_take_longer_than_the_whole_answer() -> None:
    features = admitted(wishing(latency_budget_s=0.5)).features
    assert (features.ttft_budget_s, features.latency_budget_s, features.give_up_s) == (0.5, 0.5, 1000.5)
    both = admitted(wishing(latency_budget_s=0.5, ttft_budget_s=0.2)).features
    assert (both.ttft_budget_s, both.latency_budget_s) == (0.2, 0.5)


def test_operators_latency_budget_is_a_default_and_no_promise_of_the_client() -> None:
    settings = Settings(routing=RoutingSettings(latency_budget_ms=8000))
    features = admitted(settings=settings).features
    assert features.latency_budget_s == 8.0
    assert admitted(wishing(latency_budget_s=3.0), settings=settings).features.latency_budget_s == 3.0


def test_missing_output_cap_is_filled_in_for_call_and_routing_alike() -> None:
    settings = Settings(api=ApiSettings(default_max_tokens=77))
    without = admitted(replace(PARSED, max_tokens=None), settings=settings)
    assert (without.call.max_output_tokens, without.features.max_output_tokens) == (77, 77)
    assert admitted(settings=settings).features.max_output_tokens == 50
    assert (without.features.asks_output, admitted().features.asks_output) == (False, True)


def test_expected_prompt_is_for_time_and_its_bound_for_money() -> None:
    features = admitted().features
    assert features.prompt_tokens_estimate == 100
    assert features.prompt_tokens_bound == 400 + 64 + 3 * 16
    pictures = admitted(replace(PARSED, media_parts=2)).features
    assert pictures.prompt_tokens_bound == features.prompt_tokens_bound + 2 * 4096


class Learned(Experience):
    """Knows of one caller that half of its prompts is cached and that its answers have 30 tokens."""

    def prompt_tokens(self, prompt_bytes: int) -> int:
        return prompt_bytes // 2

    def cached_tokens(self, tenant: str, prompt_tokens: int) -> int:
        return prompt_tokens // 2 if tenant == "team" else 0

    def output_tokens(self, tenant: str, max_output_tokens: int) -> float:
        return min(30.0 if tenant == "team" else 256.0, max_output_tokens)


def test_routing_is_told_what_earlier_answers_of_the_caller_taught() -> None:
    known = admitted(experience=Learned()).features
    assert (known.tenant, known.prompt_tokens_estimate, known.uncached_tokens_estimate) == ("team", 200, 100)
    assert known.output_tokens_estimate == 30.0
    other = admitted(caller=Caller("new", Residency.ANY), experience=Learned()).features
    assert (other.tenant, other.uncached_tokens_estimate, other.output_tokens_estimate) == ("new", 200, 50.0)


@pytest.mark.parametrize("backend", [None, "local", "holysheep"])
def test_conversation_in_the_middle_of_a_tool_call_says_where_it_is(backend: str | None) -> None:
    assert admitted(stay_with=backend).features.stay_with == backend


def test_key_says_what_may_be_spent_how_urgent_it_is_and_what_it_is_promised() -> None:
    caller = Caller("team", budget=Budget(day_nano_usd=5), priority=7, ttft_budget_s=0.5, cache_salt="salt")
    result = admitted(caller=caller)
    assert (result.call.budget, result.call.cache_salt) == (caller.budget, "salt")
    assert (result.features.priority, result.features.ttft_budget_s) == (7, 0.5)
    assert result.features.give_up_s == 1060.0  # a key's promise is a default, not a client's wish
    assert admitted(wishing(ttft_budget_s=3.0), caller).features.ttft_budget_s == 3.0
    assert "salt" not in repr(result.call)


def test_call_says_who_asked_for_what() -> None:
    result = admitted(wishing(cost_budget_nano_usd=9, prefer_local=True))
    call, features = result.call, result.features
    assert (call.request_id, features.request_id, call.response_id) == ("r", "r", "chatcmpl-r")
    assert (call.tenant, call.model, call.body) == ("team", "demo", {"messages": []})
    assert (call.stream, call.include_usage, result.cacheable) == (True, True, True)
    assert (features.choices, features.needs) == (2, PARSED.needs)
    assert (features.cost_budget_nano_usd, features.prefer_local) == (9, True)


@pytest.mark.parametrize(("wish", "deterministic", "cacheable"), [
    (None, True, True), (None, False, False), (True, False, True), (False, True, False),
])  # fmt: skip
def test_caching_is_for_deterministic_requests_unless_the_client_says_otherwise(
    wish: bool | None, deterministic: bool, cacheable: bool
) -> None:
    parsed = replace(PARSED, deterministic=deterministic, wishes=RoutingWishes(cache=wish))
    assert admitted(parsed).cacheable is cacheable
