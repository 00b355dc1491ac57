"""Prompt tokens handed to the engine and not computed yet, next to vLLM's own count of whole prompts."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from node.local.prefill import PrefillQueue


@dataclass
class State:
    """As much of vLLM's state of a request as is looked at."""

    request_id: str
    prompt_len: int
    num_cached_tokens: int = 0
    is_prefilling: bool = True


class Engine:
    """vLLM's table of live requests, and steps that compute prompts in order, in chunks."""

    def __init__(self) -> None:
        self.states: dict[str, State] = {}
        self.computed: dict[str, int] = {}
        self.queue = PrefillQueue(self.states)

    def add(self, name: str, prompt_tokens: int, cached_tokens: int = 0) -> None:
        self.states[name] = State(name, prompt_tokens, cached_tokens)
        self.computed[name] = cached_tokens
        self.queue.handed_over(name, 1)

    def step(self, budget: int) -> None:
        left = budget
        for state in self.states.values():
            if state.is_prefilling and left:
                chunk = min(left, state.prompt_len - self.computed[state.request_id])
                self.computed[state.request_id] += chunk
                left -= chunk
                state.is_prefilling = self.computed[state.request_id] < state.prompt_len
        self.queue.stepped(budget - left)

    def abort(self, name: str) -> None:
        del self.states[name]
        self.queue.settle()

    @property
    def left(self) -> int:
        """What is really left, the tokens in the prefix cache of those not begun included: nobody knows those yet."""
        waiting = [state for state in self.states.values() if state.is_prefilling]
        return sum(state.prompt_len - self.computed[state.request_id] + state.num_cached_tokens for state in waiting)


def test_long_prompt_counts_less_with_every_chunk() -> None:
    engine = Engine()
    engine.add("long", 1000)
    left = [engine.queue.tokens]
    for _ in range(4):
        engine.step(300)
        left.append(engine.queue.tokens)
    assert left == [1000, 700, 400, 100, 0]


def test_tokens_in_the_prefix_cache_are_not_taken_for_progress() -> None:
    engine = Engine()
    engine.add("cached", 1000, 900)
    engine.add("next", 500)
    engine.step(300)
    assert engine.queue.tokens == 300


def test_several_sequences_of_one_call_are_several_prompts() -> None:
    queue = PrefillQueue({name: State(name, 50) for name in ("0_call", "1_call")})
    queue.handed_over("call", 2)
    assert queue.tokens == 100


def test_request_that_is_over_before_it_is_noticed_counts_nothing() -> None:
    queue = PrefillQueue({})
    queue.handed_over("gone", 1)
    assert queue.tokens == 0


def test_aborted_prompt_is_let_go_without_another_step() -> None:
    engine = Engine()
    engine.add("a", 1000)
    engine.step(300)
    engine.abort("a")
    assert engine.queue.tokens == 0


def test_prompt_computed_again_after_a_preemption_does_not_count_as_progress_for_ever() -> None:
    engine = Engine()
    engine.queue.stepped(5000)
    engine.add("a", 1000)
    assert engine.queue.tokens == 1000


class Prefills(RuleBasedStateMachine):
    """Without aborts the count is exact; with them it errs only upwards, and never beyond whole prompts."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine()
        self.names = 0
        self.aborted = False

    @rule(prompt_tokens=st.integers(1, 500), cached_share=st.floats(0, 0.99))
    def add(self, prompt_tokens: int, cached_share: float) -> None:
        self.names += 1
        self.engine.add(str(self.names), prompt_tokens, int(prompt_tokens * cached_share))

    @rule(budget=st.integers(1, 400))
    def step(self, budget: int) -> None:
        self.engine.step(budget)

    @precondition(lambda self: self.engine.states)
    @rule(which=st.integers(0))
    def abort(self, which: int) -> None:
        names = list(self.engine.states)
        name = names[which % len(names)]
        self.aborted |= self.engine.states[name].is_prefilling
        self.engine.abort(name)

    @invariant()
    def count_is_right(self) -> None:
        engine = self.engine
        whole = sum(state.prompt_len for state in engine.states.values() if state.is_prefilling)
        assert engine.left <= engine.queue.tokens <= whole
        if not self.aborted:
            assert engine.queue.tokens == engine.left


TestPrefills = Prefills.TestCase


def test_pairs_are_those_of_every_prompt_with_its_own_beginning() -> None:
    engine = Engine()
    engine.add("long", 1000)
    engine.add("short", 100)
    assert engine.queue.pairs(1000) == 1000 * 500
    engine.step(900)
    assert engine.queue.pairs(150) == 100 * 950 + 50 * 25
    assert engine.queue.pairs(500) == 100 * 950 + 100 * 50
