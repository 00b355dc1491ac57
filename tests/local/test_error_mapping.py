from __future__ import annotations

import pytest
from jinja2 import TemplateError
from pydantic import BaseModel, ValidationError
from vllm import exceptions as vllm
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

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
from node.local.errors import from_document, from_exception


@pytest.mark.parametrize(
    ("raised", "ours", "param"),
    [
        (EngineDeadError(), EngineDied, None),
        (vllm.QueueOverflowError(), EngineBusy, None),
        (vllm.MaxQueuedTokensError(), EngineBusy, None),
        (EngineGenerateError(), EngineFailed, None),
        (vllm.GenerationError(), EngineFailed, None),
        (vllm.VLLMValidationError("no", parameter="top_p", value=7), InvalidRequest, "top_p"),
        (vllm.VLLMValidationError("long", parameter="input_tokens", value=9), ContextLengthExceeded, "messages"),
        (vllm.VLLMValidationError("long", parameter="input_text", value=9), ContextLengthExceeded, "messages"),
        (
            vllm.VLLMValidationError("cannot be greater than max_model_len=8.", parameter="max_tokens", value=9),
            OutputTooLong,
            "max_tokens",
        ),
        (
            vllm.VLLMValidationError("max_tokens must be at least 1, got 0.", parameter="max_tokens", value=0),
            ContextLengthExceeded,
            "max_tokens",
        ),
        (ValueError("Input length (9) exceeds model's maximum context length (8)."), ContextLengthExceeded, "messages"),
        (vllm.VLLMNotFoundError("no such adapter"), ModelNotFound, "model"),
        (vllm.VLLMUnprocessableEntityError("bad image", parameter="url"), InvalidRequest, "url"),
        (TemplateError("roles must alternate"), InvalidRequest, "messages"),
        (ValueError("bad"), InvalidRequest, None),
        (TypeError("bad"), InvalidRequest, None),
        (NotImplementedError("bad"), InvalidRequest, None),
        (KeyError("a mistake of ours or of vLLM's"), EngineFailed, None),
        (AssertionError(), EngineFailed, None),
    ],
)
def test_every_failure_becomes_one_of_ours(raised: Exception, ours: type[SpillwayError], param: str | None) -> None:
    error = from_exception(raised, Kind.CHAT)
    assert type(error) is ours
    assert error.param == param


def test_every_error_class_of_vllm_is_mapped() -> None:
    pending = [vllm.VLLMError]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        error = from_exception(kind.__new__(kind, "m"), Kind.CHAT)
        assert error.status in (400, 404, 429, 500, 503), kind


def test_our_own_errors_pass_unchanged() -> None:
    error = EngineBusy("busy")
    assert from_exception(error, Kind.CHAT) is error


def test_prompt_that_is_too_long_is_named_as_the_client_knows_it() -> None:
    error = vllm.VLLMValidationError("long", parameter="input_tokens", value=9)
    assert from_exception(error, Kind.COMPLETION).param == "prompt"


def test_offending_value_is_not_repeated() -> None:
    error = from_exception(vllm.VLLMValidationError("bad", parameter="stop", value="secret words"), Kind.CHAT)
    assert "secret" not in error.message


def test_validation_names_the_field_and_not_the_validators_innards() -> None:
    class Body(BaseModel):
        stop: list[str] | int

    with pytest.raises(ValidationError) as caught:
        Body.model_validate({"stop": {"a": 1}})
    error = from_exception(caught.value, Kind.CHAT)
    assert isinstance(error, InvalidRequest)
    assert error.param is not None
    assert error.param.startswith("stop")
    assert "[" not in error.param


@pytest.mark.parametrize(
    ("status", "ours"),
    [(400, InvalidRequest), (422, InvalidRequest), (404, ModelNotFound), (500, EngineFailed), (501, InvalidRequest)],
)
def test_error_documents_are_mapped_by_status(status: int, ours: type[SpillwayError]) -> None:
    assert type(from_document("m", status, None, Kind.CHAT)) is ours


def test_overload_document_is_busy() -> None:
    assert isinstance(from_document("m", 503, None, Kind.CHAT), EngineBusy)


def test_length_document_may_be_tried_elsewhere() -> None:
    error = from_document("This model's maximum context length is 8 tokens.", 400, None, Kind.COMPLETION)
    assert isinstance(error, ContextLengthExceeded)
    assert error.may_try_elsewhere
    assert error.param == "prompt"


def test_output_that_is_too_long_is_the_clients_to_shorten() -> None:
    error = from_document("max_tokens=9 cannot be greater than max_model_len=8.", 400, "max_tokens", Kind.CHAT)
    assert isinstance(error, OutputTooLong)
    assert (error.status, error.code, error.may_try_elsewhere) == (400, "context_length_exceeded", False)
