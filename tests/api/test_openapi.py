"""The description of the endpoints agrees with what they accept."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from node.api.openapi import components, operation
from node.api.schema import parse_chat, parse_completion
from node.backend import Kind
from node.errors import InvalidRequest, error_body


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": {"schemas": components()}})


@pytest.mark.parametrize("kind", list(Kind))
def test_every_reference_of_an_operation_is_in_the_components(kind: Kind) -> None:
    text = json.dumps([operation(kind), components()])
    references = {piece.partition('"')[0] for piece in text.split("#/components/schemas/")[1:]}
    assert references <= components().keys()


def test_components_are_valid_json_schemas() -> None:
    for schema in components().values():
        Draft202012Validator.check_schema(schema)


def test_an_error_body_is_described() -> None:
    validator("Error").validate(json.loads(error_body(InvalidRequest("no", param="x"))))


CHAT = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}]}
COMPLETION = {"model": "demo", "prompt": "Hi"}


@pytest.mark.parametrize(
    ("name", "document", "valid"),
    [
        ("ChatRequest", CHAT, True),
        ("ChatRequest", {**CHAT, "temperature": 2.5}, False),
        ("ChatRequest", {**CHAT, "stop": []}, False),
        ("ChatRequest", {**CHAT, "logit_bias": {"x": 1}}, False),
        ("ChatRequest", {**CHAT, "messages": [{"role": "wizard", "content": "Hi"}]}, False),
        ("ChatRequest", {**CHAT, "spillway": {"require_local": True}}, True),
        ("ChatRequest", {**CHAT, "spillway": {"requirelocal": True}}, False),
        ("CompletionRequest", COMPLETION, True),
        ("CompletionRequest", {**COMPLETION, "prompt": [1, 2]}, True),
        ("CompletionRequest", {**COMPLETION, "prompt": [[1], [-2]]}, False),
        ("CompletionRequest", {**COMPLETION, "prompt": []}, False),
    ],
)
def test_description_and_parser_agree(name: str, document: dict[str, Any], valid: bool) -> None:
    parse = parse_chat if name == "ChatRequest" else parse_completion
    assert validator(name).is_valid(document) is valid
    if valid:
        parse(document)
    else:
        with pytest.raises(InvalidRequest):
            parse(document)
