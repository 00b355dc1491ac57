"""Which fields of a request may leave the machine, and what we put beside them.

An allow-list, per endpoint and per message: what is not named here stays. Left out on purpose: `user`, `metadata`,
`store` and `service_tier` (they tell the provider who asked, ask it to keep the text, or change the price),
`best_of` (bills more than was reserved), and everything only vLLM or Spillway knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from node.backend import Call, Kind
from node.cloud.config import ProviderConfig

_SAMPLING: Final = frozenset(
    {"temperature", "top_p", "n", "stop", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs"}
)
ALLOWED: Final[Mapping[Kind, frozenset[str]]] = {
    Kind.CHAT: _SAMPLING
    | {
        "messages",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "functions",
        "function_call",
        "response_format",
        "top_logprobs",
        "reasoning_effort",
        "verbosity",
    },
    Kind.COMPLETION: _SAMPLING | {"prompt", "suffix", "echo"},
}
_MESSAGE: Final = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "refusal", "function_call"})


def outbound_fields(call: Call, config: ProviderConfig) -> dict[str, Any]:
    """The body to send, without `model`, which the egress gate adds from the permit.

    Carries the output cap always, and asks for usage in every stream. Fields that are null are left out: relays
    differ in what they make of them.
    """
    allowed = ALLOWED[call.kind]
    fields = {key: value for key, value in call.body.items() if key in allowed and value is not None}
    if call.kind is Kind.CHAT:
        fields["messages"] = [_message(message) for message in fields.get("messages", ())]
        fields[config.max_tokens_field] = call.max_output_tokens
    else:
        fields["max_tokens"] = call.max_output_tokens
    fields["stream"] = call.stream
    if call.stream:
        fields["stream_options"] = {"include_usage": True}
    return fields


def choices_asked(call: Call) -> int:
    """How many choices the answer has: `n`, for each prompt of a list of prompts."""
    n = call.body.get("n") or 1
    prompt = call.body.get("prompt")
    many = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
    return int(n) * (len(prompt) if many and isinstance(prompt, list) else 1)


def _message(message: Any) -> Any:
    if not isinstance(message, dict) or message.keys() <= _MESSAGE:
        return message
    return {key: value for key, value in message.items() if key in _MESSAGE}
