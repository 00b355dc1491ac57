"""From a decoded JSON object to a checked request: the face of the `schema_*` modules."""

from node.api.schema_chat import ChatRequest, parse_chat
from node.api.schema_common import DEFAULT_LIMITS, InputLimits, ParsedRequest
from node.api.schema_completion import CompletionRequest, parse_completion

__all__ = [
    "DEFAULT_LIMITS",
    "ChatRequest",
    "CompletionRequest",
    "InputLimits",
    "ParsedRequest",
    "parse_chat",
    "parse_completion",
]
