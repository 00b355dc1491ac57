"""A vLLM engine in virtual time: the V1 scheduler's rules, an `EngineProfile` for the durations, no model.

What it keeps of vLLM 0.32's scheduler: every running sequence gets one token per step; what is left of the step's
token budget goes to prompts, in chunks, first come, first served; a prompt is let in only when a sequence is free and
the whole of it fits the KV cache; when the cache overflows, the sequence let in last is thrown out and computed anew
later. With asynchronous scheduling (`EngineProfile.steps_ahead`) a step is put together when the one before it begins:
what comes or ends in between counts from the next. What it leaves out: blocks (tokens are counted one by one),
speculative decoding, several priorities.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

from node.routing.profile import EngineProfile

_MOST_AS_ONE = 16  # where steps get longer as the cache fills: within one run by less than a percent


@dataclass(slots=True, eq=False)
class Sequence:
    """One request in the engine. `owner` is whatever the caller wants to find again. Token counts are what is left.

    `prompt_left` are prompt tokens to compute (prefix hits are not among them), `output_left` tokens to generate.
    """

    owner: int
    prompt_tokens: int
    prompt_left: int
    output_left: int
    held_tokens: int = 0  # in the KV cache
    began: bool = False  # its first token is out
    ends_at_token: int = 0  # of the engine's running count of decode steps
    from_step: int = 0  # the first that can have it
    gone: bool = False


@dataclass(slots=True)
class StepReport:
    """What a run of equal steps did: `count` steps of `seconds` each, ended at `at_s`."""

    at_s: float
    count: int
    seconds: float
    decoding: int
    prefill_tokens: int
    began: list[int] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)


class SimulatedEngine:
    """Give it sequences with `submit`, ask `ends_s` when something happens next, and take it with `step`.

    Steps that only decode are run as one until something changes, so that an hour of them costs no time.
    """

    def __init__(self, profile: EngineProfile) -> None:
        self.profile = profile
        self._waiting: deque[Sequence] = deque()
        self._prefilling: list[Sequence] = []
        self._decoding: dict[int, Sequence] = {}
        self._ends: list[tuple[int, int, Sequence]] = []  # by the decode step they end with, then as they came
        self._decode_steps = 0
        self._came = 0
        self._step: StepReport | None = None
        self._chunks: list[tuple[Sequence, int]] = []
        self._began_s = 0.0
        self._number = 0  # of the first of the steps under way
        self._just_finished = 0  # in the last step
        self.kv_used_tokens = 0
        self.prefill_left_tokens = 0
        self.preemptions = 0
        self.busy_s = 0.0

    @property
    def running(self) -> int:
        """Sequences running: computing their prompt, or decoding."""
        return len(self._prefilling) + len(self._decoding)

    @property
    def prefilling_left_tokens(self) -> int:
        """Prompt tokens to compute of the sequences that run."""
        return sum(sequence.prompt_left for sequence in self._prefilling)

    @property
    def waiting(self) -> int:
        """Sequences handed over and not running."""
        return len(self._waiting)

    @property
    def ends_s(self) -> float | None:
        """When the steps under way end; None while idle."""
        return None if self._step is None else self._step.at_s

    def submit(self, sequence: Sequence, now_s: float) -> None:
        """Hand a sequence over. Steps under way are cut short after the one that runs at `now_s`."""
        self._waiting.append(sequence)
        self.prefill_left_tokens += sequence.prompt_left
        step = self._step
        if step is None:
            self._begin(now_s)
            return
        done = 1
        if step.count > 1:
            done = min(step.count, int((now_s - self._began_s) / step.seconds) + 1)
        done += self.profile.steps_ahead
        sequence.from_step = self._number + done
        if done < step.count:
            step.count = done
            step.at_s = self._began_s + done * step.seconds

    def step(self) -> StepReport:
        """End the steps under way, and begin the next."""
        report = self._step
        assert report is not None
        self._step = None
        self.busy_s += report.count * report.seconds
        self._number += report.count
        self._decode(report)
        self._prefill(report)
        self._just_finished = len(report.finished)
        if self._waiting or self._prefilling or self._decoding:
            self._begin(report.at_s)
        return report

    def _decode(self, report: StepReport) -> None:
        count = report.count
        self._decode_steps += count
        self.kv_used_tokens += count * len(self._decoding)
        while self._ends and self._ends[0][0] <= self._decode_steps:
            _, _, sequence = heapq.heappop(self._ends)
            if sequence.gone:
                continue
            del self._decoding[sequence.owner]
            sequence.gone = True
            self.kv_used_tokens -= sequence.held_tokens + sequence.output_left
            report.finished.append(sequence.owner)

    def _prefill(self, report: StepReport) -> None:
        for sequence, tokens in self._chunks:
            sequence.prompt_left -= tokens
            self.prefill_left_tokens -= tokens
            if sequence.prompt_left:
                continue
            self._prefilling.remove(sequence)
            if not sequence.began:
                sequence.began = True
                report.began.append(sequence.owner)
            sequence.output_left -= 1
            sequence.held_tokens += 1
            self.kv_used_tokens += 1
            if sequence.output_left <= 0:
                sequence.gone = True
                self.kv_used_tokens -= sequence.held_tokens
                report.finished.append(sequence.owner)
            else:
                sequence.ends_at_token = self._decode_steps + sequence.output_left
                self._decoding[sequence.owner] = sequence
                self._came += 1
                heapq.heappush(self._ends, (sequence.ends_at_token, self._came, sequence))
        self._chunks = []

    def _begin(self, now_s: float) -> None:
        profile = self.profile
        while self._decoding and self.kv_used_tokens + len(self._decoding) > profile.kv_tokens:
            self._preempt()
        decoding = len(self._decoding)
        kv_tokens = self.kv_used_tokens - self.prefilling_left_tokens
        kept = self._just_finished if profile.steps_ahead else 0  # places still taken when this was put together
        budget = profile.max_batched_tokens - decoding
        self._chunks = []
        for sequence in self._prefilling:
            if budget <= 0:
                break
            tokens = min(budget, sequence.prompt_left)
            self._chunks.append((sequence, tokens))
            budget -= tokens
        while self._waiting and budget > 0 and self.running + (kept if self.running else 0) < profile.max_sequences:
            sequence = self._waiting[0]
            if sequence.from_step > self._number and self.running:
                break
            if self.kv_used_tokens + sequence.prompt_tokens + decoding > profile.kv_tokens and self.running:
                break
            self._waiting.popleft()
            self._prefilling.append(sequence)
            sequence.held_tokens = sequence.prompt_tokens
            self.kv_used_tokens += sequence.prompt_tokens
            tokens = min(budget, sequence.prompt_left)
            self._chunks.append((sequence, tokens))
            budget -= tokens
        prefill_tokens = sum(tokens for _, tokens in self._chunks)
        pairs = sum(
            tokens * (sequence.prompt_tokens - sequence.prompt_left + tokens / 2) for sequence, tokens in self._chunks
        )
        count = 1
        if not self._chunks:
            while self._ends and self._ends[0][2].gone:
                heapq.heappop(self._ends)
            count = self._ends[0][0] - self._decode_steps
            count = max(1, min(count, (profile.kv_tokens - self.kv_used_tokens) // decoding))
            if profile.step.per_kv_token_s:
                count = min(count, _MOST_AS_ONE)
            if self._waiting and (kept or self._waiting[0].from_step > self._number):
                count = 1  # the next step may have it
        seconds = profile.step.step_s(decoding, prefill_tokens, kv_tokens + decoding * (count - 1) / 2, pairs)
        self._began_s = now_s
        self._step = StepReport(now_s + count * seconds, count, seconds, decoding, prefill_tokens)

    def _preempt(self) -> None:
        """Throw out the sequence let in last; what it has generated becomes part of the prompt to compute."""
        _, sequence = self._decoding.popitem()
        left = sequence.ends_at_token - self._decode_steps
        generated = sequence.output_left - left
        self.kv_used_tokens -= sequence.held_tokens + generated
        sequence.gone = True
        again = Sequence(
            sequence.owner,
            prompt_tokens=sequence.held_tokens + generated,
            prompt_left=sequence.held_tokens + generated,
            output_left=left,
            began=True,
        )
        self._waiting.appendleft(again)
        self.prefill_left_tokens += again.prompt_left
        self.preemptions += 1
        if len(self._decoding) == 0 and again.prompt_tokens > self.profile.kv_tokens:
            raise ValueError("a sequence is larger than the KV cache")
