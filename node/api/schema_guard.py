"""Is this JSON Schema one that a grammar engine can be given? Answered in time linear in its size.

Only what may hurt or is plainly wrong is refused: size, depth, keywords of the wrong type, references that lead
outside, nowhere or in a circle without consuming anything, and patterns that `node.regexes` refuses. What a particular
grammar engine cannot express it says itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from node.api.body import MAX_DEPTH
from node.errors import InvalidRequest
from node.regexes import check_regex

MAX_SCHEMA_BYTES = 256 * 1024
MAX_COUNT = 1_000_000
_TYPES = frozenset({"string", "number", "integer", "object", "array", "boolean", "null"})
_ONE = frozenset(
    {"additionalProperties", "additionalItems", "contains", "propertyNames", "not", "if", "then", "else"}
    | {"unevaluatedItems", "unevaluatedProperties"}
)
_MANY = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_COUNTS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
_LOOKED_AT = (
    _ONE
    | _MANY
    | _NAMED
    | _COUNTS
    | {"$ref", "items", "type", "pattern", "required", "enum", "minimum", "maximum", "multipleOf"}
)
# Applied to the same value as the schema they stand in: a circle of these and references never ends.
_IN_PLACE = frozenset({"allOf", "anyOf", "oneOf", "not", "if", "then", "else"})
_Place = tuple[Any, int, str]


def check_schema(schema: dict[str, Any], param: str) -> None:
    """Refuse, with `InvalidRequest` for `param`, a JSON Schema that is too large, too deep, malformed or circular."""
    if len(msgspec.json.encode(schema)) > MAX_SCHEMA_BYTES:
        raise _refusal(param, f"the schema is larger than {MAX_SCHEMA_BYTES} bytes")
    try:
        _walk(schema)
    except _BadSchema as bad:
        raise _refusal(param, str(bad)) from None


class _BadSchema(Exception):
    """Says what is wrong, and where."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} at '{where[:200]}'")


def _walk(root: dict[str, Any]) -> None:
    waiting: list[_Place] = [(root, 0, "#")]
    same_value: dict[int, list[int]] = {}
    while waiting:
        node, depth, where = waiting.pop()
        if depth > MAX_DEPTH:
            raise _BadSchema(f"more than {MAX_DEPTH} levels", where)
        if id(node) in same_value:
            continue
        if isinstance(node, bool):
            continue
        if not isinstance(node, dict):
            raise _BadSchema("expected a schema (an object or a boolean)", where)
        edges = same_value[id(node)] = []
        for keyword, value in node.items():
            if keyword not in _LOOKED_AT or (keyword == "type" and isinstance(value, str) and value in _TYPES):
                continue
            _check_keyword(keyword, value, f"{where}/{keyword}")
            for sub in _sub_schemas(root, keyword, value, depth + 1, f"{where}/{keyword}"):
                waiting.append(sub)
                if keyword in _IN_PLACE or keyword == "$ref":
                    edges.append(id(sub[0]))
    _refuse_circles(same_value)


def _sub_schemas(root: dict[str, Any], keyword: str, value: Any, depth: int, where: str) -> Iterator[_Place]:
    if keyword == "$ref":
        # The target has its own depth, counted from here anew: a recursive schema has no deepest level.
        yield _resolve(root, value, where), 0, str(value)
    elif keyword in _NAMED:
        if not isinstance(value, dict):
            raise _BadSchema("expected an object of schemas", where)
        for name, sub in value.items():
            if keyword == "patternProperties":
                _check_pattern(name, where)
            yield sub, depth, f"{where}/{name}"
    elif keyword in _MANY or (keyword == "items" and isinstance(value, list)):
        if not isinstance(value, list) or (not value and keyword != "prefixItems"):
            raise _BadSchema("expected a list of schemas", where)
        for index, sub in enumerate(value):
            yield sub, depth, f"{where}/{index}"
    elif keyword in _ONE or keyword == "items":
        yield value, depth, where


def _check_keyword(keyword: str, value: Any, where: str) -> None:
    match keyword:
        case "type":
            names = value if isinstance(value, list) else [value]
            if not names or not all(isinstance(name, str) and name in _TYPES for name in names):
                raise _BadSchema("not a JSON type", where)
        case "pattern":
            _check_pattern(value, where)
        case "required":
            if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                raise _BadSchema("expected a list of property names", where)
        case "enum":
            if not isinstance(value, list) or not value:
                raise _BadSchema("expected a list with at least one value", where)
        case "minimum" | "maximum" | "multipleOf":
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise _BadSchema("expected a number", where)
        case _ if keyword in _COUNTS and (type(value) is not int or not 0 <= value <= MAX_COUNT):
            raise _BadSchema(f"expected an integer from 0 to {MAX_COUNT}", where)


def _check_pattern(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise _BadSchema("expected a regular expression", where)
    try:
        check_regex(value, where)
    except InvalidRequest as error:
        raise _BadSchema(error.message.partition(": ")[2].rstrip("."), where) from None


def _resolve(root: dict[str, Any], reference: Any, where: str) -> Any:
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        raise _BadSchema("only references into this schema ('#/...') are accepted", where)
    node: Any = root
    for step in reference.split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and key.isascii() and key.isdigit() and int(key[:9]) < len(node):
            node = node[int(key[:9])]
        elif isinstance(node, dict) and key in node:
            node = node[key]
        else:
            raise _BadSchema("the reference leads nowhere", where)
    return node


def _refuse_circles(edges: dict[int, list[int]]) -> None:
    """Depth-first search without recursion; `open_` holds the path being followed."""
    done: set[int] = set()
    for start in edges:
        path: list[tuple[int, Iterator[int]]] = [(start, iter(edges[start]))]
        open_ = {start}
        while path and start not in done:
            node, rest = path[-1]
            following = next((other for other in rest if other not in done), None)
            if following is None:
                path.pop()
                open_.discard(node)
                done.add(node)
            elif following in open_:
                raise _BadSchema("references form a circle that never consumes anything", "#")
            else:
                path.append((following, iter(edges.get(following, ()))))
                open_.add(following)


def _refusal(param: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid schema for '{param}': {why}.", param=param)
