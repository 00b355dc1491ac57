"""vLLM's failures in our words: the one mapping at this edge."""

from __future__ import annotations

from http import HTTPStatus

from node.backend import Kind
from node.errors import (
    ContextLengthExceeded,
    EngineBusy,
    EngineDied,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    OutputTooLong,
    SpillwayError,
)

# How vLLM names the prompt when it is too long; clients know it under the request's own field.
_PROMPT_PARAMETERS = frozenset({"input_tokens", "input_text"})
_OUTPUT_PARAMETERS = frozenset({"max_tokens", "max_completion_tokens"})
# What vLLM says of a prompt that fills the context exactly; a client's own zero is refused before it gets here.
_NO_ROOM_WORDS = "max_tokens must be at least 1, got 0"
# The words of vLLM's errors about length (get_max_tokens, InputProcessor, TokenizeParams).
_LENGTH_WORDS = ("maximum context length", "maximum model length", "max_model_len", _NO_ROOM_WORDS)


def prompt_field(kind: Kind) -> str:
    """The request field that holds the prompt."""
    return "messages" if kind is Kind.CHAT else "prompt"


def from_exception(error: Exception, kind: Kind) -> SpillwayError:
    """What the caller gets for `error`, raised by vLLM (or its tokenizer, template or validator) on one request."""
    from jinja2 import TemplateError
    from pydantic import ValidationError
    from vllm.exceptions import GracefulHTTPError, VLLMClientError, VLLMNotFoundError, VLLMServerError
    from vllm.v1.engine.exceptions import EngineDeadError

    if isinstance(error, SpillwayError):
        return error
    if isinstance(error, EngineDeadError):
        return EngineDied("The local engine has stopped.")
    if isinstance(error, GracefulHTTPError):
        return EngineBusy(_message(error))
    if isinstance(error, ValidationError):
        return _from_pydantic(error)
    if isinstance(error, VLLMNotFoundError):
        return ModelNotFound(_message(error), param="model")
    if isinstance(error, VLLMServerError):
        return EngineFailed("The local engine failed on this request.")
    if isinstance(error, TemplateError):
        return InvalidRequest(f"The model's chat template refuses this conversation: {error}", param=prompt_field(kind))
    if isinstance(error, VLLMClientError | ValueError | TypeError | OverflowError | NotImplementedError):
        return _invalid(_message(error), getattr(error, "parameter", None), kind)
    return EngineFailed("The local engine failed on this request.")


def from_document(message: str, status: int, param: str | None, kind: Kind) -> SpillwayError:
    """What the caller gets for an error vLLM's serving objects return as a document instead of raising it."""
    if status == HTTPStatus.NOT_FOUND:
        return ModelNotFound(message, param=param)
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return EngineBusy(message)
    if status == HTTPStatus.NOT_IMPLEMENTED or status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return _invalid(message, param, kind)
    return EngineFailed("The local engine failed on this request.")


def no_room(prompt_tokens: int, context_tokens: int, kind: Kind) -> ContextLengthExceeded:
    """The error for a prompt that leaves no room for a single token of output."""
    return ContextLengthExceeded(
        f"This model's maximum context length is {context_tokens} tokens. However, your prompt contains "
        f"{prompt_tokens} input tokens, which leaves none for the output.",
        param=prompt_field(kind),
    )


def _message(error: Exception) -> str:
    # Not str(error): vLLM's validation errors append the offending value there, which may be all of the prompt.
    words = getattr(error, "message", None) or (error.args[0] if error.args else type(error).__name__)
    return str(words)


def _invalid(message: str, param: str | None, kind: Kind) -> InvalidRequest:
    if param in _PROMPT_PARAMETERS:
        return ContextLengthExceeded(message, param=prompt_field(kind))
    if any(words in message for words in _LENGTH_WORDS) and (param is None or param in _OUTPUT_PARAMETERS):
        if param is not None and _NO_ROOM_WORDS not in message:
            return OutputTooLong(message, param=param)
        return ContextLengthExceeded(message, param=param or prompt_field(kind))
    return InvalidRequest(message, param=param)


def _from_pydantic(error: Exception) -> InvalidRequest:
    details = error.errors(include_url=False, include_input=False)  # type: ignore[attr-defined]
    first = details[0] if details else {}
    # Pydantic puts names of union members ("list[str]", "function-after[...]") among the keys; clients know only keys.
    path = [str(part) for part in first.get("loc", ()) if isinstance(part, int) or str(part).isidentifier()]
    param = ".".join(path) or None
    return InvalidRequest(f"{param or 'body'}: {first.get('msg', 'invalid value')}", param=param)
