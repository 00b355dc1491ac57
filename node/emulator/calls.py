"""One accepted call: everything its answer will be, decided on arrival, and its line on the bill."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from random import Random
from typing import Any

from node.emulator.answers import Answer, write
from node.emulator.config import EmulatorConfig
from node.emulator.frames import Frames
from node.emulator.prices import ModelPrice
from node.emulator.replies import Draft, State, Timing, compose
from node.emulator.requests import Ask
from node.emulator.switches import Switch


@dataclass(slots=True)
class Call:
    """A call from arrival (`arrived_s`, monotonic) until it is on the bill, `with_text` that with all it says."""

    id: str
    ask: Ask
    answer: Answer
    timing: Timing
    price: ModelPrice
    switch: Switch | None
    arrived_s: float
    with_text: bool = False
    sent_tokens: int = 0
    settled: bool = False

    def draft(self, keepalive_s: float) -> Draft:
        """What goes over the wire."""
        answer = self.answer
        usage = {
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "total_tokens": answer.prompt_tokens + answer.completion_tokens,
            "cost_usd": self.price.cost_nano_usd(answer.prompt_tokens, answer.completion_tokens) / 1e9,
        }
        frames = Frames(id=self.id, model=self.ask.model, created=int(time.time()), chat=self.ask.chat)
        return compose(self.ask, answer, frames, self.timing, usage, self.switch, keepalive_s)

    def tokens_when_left(self, now_s: float) -> int:
        """What is billed to a client that left: what it was sent, or of a document it waited for what exists by now."""
        if self.ask.stream or self.switch is not None:
            return self.sent_tokens
        return self.timing.tokens_by(now_s - self.arrived_s, self.answer)

    def bill_record(self, state: State, completion_tokens: int) -> dict[str, Any]:
        """The line on the bill; from then on the call is settled."""
        self.settled = True
        prompt_tokens = self.answer.prompt_tokens
        record: dict[str, Any] = {
            "id": self.id,
            "at_s": round(time.time(), 6),
            "model": self.ask.model,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "cost_nano_usd": self.price.cost_nano_usd(prompt_tokens, completion_tokens),
            "state": state.value,
            "stream": self.ask.stream,
            "switch": self.switch and self.switch.value,
        }
        if self.with_text:
            record["answers"] = [choice.text for choice in self.answer.choices]
        return record


class Planner:
    """Turns asks into calls. All chance follows from the seed, the request and how often the same one came before."""

    def __init__(self, config: EmulatorConfig) -> None:
        self._config = config
        self._seen: dict[str, int] = {}

    def plan(self, ask: Ask, serial: int, switch: Switch | None, arrived_s: float) -> Call:
        """The call for `ask`. Requests with a `seed` or temperature 0 get the same words every time."""
        config = self._config
        before = self._seen.get(ask.digest, 0)
        self._seen[ask.digest] = before + 1
        words = Random(f"{config.seed}/{ask.digest}/{0 if ask.repeatable else before}")
        times = Random(f"{config.seed}/{ask.digest}/{before}/time")
        return Call(
            id=f"{'chatcmpl' if ask.chat else 'cmpl'}-emulated{config.seed}x{serial:08d}",
            ask=ask,
            answer=write(ask, words, median_tokens=config.answer_tokens_median, sigma=config.answer_tokens_sigma),
            timing=Timing(
                ttft_s=config.ttft_median_s * math.exp(config.ttft_sigma * times.gauss()),
                pace_s=config.pace_s * math.exp(config.pace_sigma * times.gauss()),
            ),
            price=config.prices[ask.model],
            switch=switch,
            arrived_s=arrived_s,
            with_text=config.bill_answers,
        )
