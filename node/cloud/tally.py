"""What a call used: the provider's word where it can be believed, our own count where not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from node.money import Usage

# English runs at about four UTF-8 bytes per token, Chinese at about three; only used where nothing was reported.
_BYTES_PER_TOKEN: Final = 4
# Rendering adds tokens nobody sees: around messages, for tools, and after the last token of a choice.
_PROMPT_SLACK_TOKENS: Final = 1024
_CHOICE_SLACK_TOKENS: Final = 16
_DETAILS: Final = ("prompt_tokens_details", "completion_tokens_details")


@dataclass(slots=True)
class Tally:
    """Counts along one answer.

    `max_completion_tokens` is the cap over all choices. `pieces` are deltas with content: each is at least one
    token, so they bound the completion from below (not with `echo`, which sends the prompt back). A report beyond
    the cap, or with more prompt tokens than the request had bytes (and some slack for the template), is not believed.
    """

    max_completion_tokens: int
    choices: int
    prompt_estimate: Callable[[], int]
    echo: bool = False
    request_bytes: int = 0
    pieces: int = 0
    content_bytes: int = 0
    suspect: bool = False
    details: dict[str, Any] = field(default_factory=dict)
    _reported: tuple[int, int] | None = None

    def add(self, content_bytes: int) -> None:
        """One more delta, of so many bytes of generated text; 0 is not content and not counted."""
        if content_bytes:
            self.pieces += 1
            self.content_bytes += content_bytes

    def report(self, usage: object) -> None:
        """Take in a `usage` object, from any chunk. Counts in several of them are cumulative, so the largest holds."""
        if not isinstance(usage, Mapping):
            self.suspect = True
            return
        prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
        completion = usage.get("completion_tokens", usage.get("output_tokens"))
        if (
            not _is_count(prompt)
            or not _is_count(completion)
            or completion > self.max_completion_tokens
            or prompt > self.request_bytes + _PROMPT_SLACK_TOKENS
        ):
            self.suspect = True
            return
        before = self._reported or (0, 0)
        self._reported = (max(before[0], prompt), max(before[1], completion))
        for key in _DETAILS:
            if isinstance(details := usage.get(key), Mapping):
                self.details[key] = {name: count for name, count in details.items() if _is_count(count)}

    def usage(self) -> Usage:
        """The usage as it stands: never below our own count, `suspect` where the report did not fit the answer."""
        guess = max(self.pieces, min(self.max_completion_tokens, -(-self.content_bytes // _BYTES_PER_TOKEN)))
        if self._reported is None:
            return Usage(self.prompt_estimate(), guess, estimated=True, suspect=self.suspect)
        prompt, completion = self._reported
        estimated, suspect = False, self.suspect
        if prompt == 0:
            prompt, estimated, suspect = self.prompt_estimate(), True, True
        if completion == 0 and guess:
            completion, estimated, suspect = guess, True, True
        elif completion < self.pieces and not self.echo:
            completion, suspect = self.pieces, True
        elif completion - self._unseen() > self.content_bytes + self.choices * _CHOICE_SLACK_TOKENS:
            suspect = True  # no token is shorter than a byte; still within the cap, so charged as reported
        return Usage(prompt, completion, estimated=estimated, suspect=suspect)

    def usage_if_cut(self, unseen_tokens: int) -> Usage:
        """The usage of an answer that does not go on: always an estimate.

        `unseen_tokens` may have been generated beyond what has arrived, and will be on the bill.
        """
        usage = self.usage()
        completion = min(
            max(self.max_completion_tokens, usage.completion_tokens), usage.completion_tokens + unseen_tokens
        )
        return replace(usage, completion_tokens=completion, estimated=True)

    def _unseen(self) -> int:
        reasoning = self.details.get("completion_tokens_details", {}).get("reasoning_tokens", 0)
        return int(reasoning)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
