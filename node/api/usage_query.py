"""The query of a usage URL: `?by=key,day&since=7d&until=2026-11-30&key=alice`."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from node.errors import InvalidRequest
from node.store.moments import since_us, until_us
from node.store.usage import Part, Question


def parse_usage_query(pairs: Iterable[tuple[str, str]], now_us: int, allowed: Collection[str]) -> Question:
    """What is asked for. `by` may be repeated, or list several.

    Raises `InvalidRequest` for a parameter that is not `allowed`, one that is there twice, and a bad value: a
    misspelt one must not silently report something else.
    """
    by: dict[Part, None] = {}
    given: dict[str, str] = {}
    for name, value in pairs:
        if name not in allowed:
            raise InvalidRequest(f"{name!r} is not a parameter; there are {', '.join(allowed)}.", param=name)
        if name == "by":
            by.update(dict.fromkeys(_parts(value)))
        elif name in given:
            raise InvalidRequest(f"{name} is there twice.", param=name)
        else:
            given[name] = value
    since = since_us(given["since"], now_us) if "since" in given else None
    until = until_us(given["until"], now_us) if "until" in given else None
    if since is not None and until is not None and since >= until:
        raise InvalidRequest("since is not before until.", param="since")
    return Question(by=tuple(by), since_us=since, until_us=until, caller=given.get("key"))


def _parts(text: str) -> list[Part]:
    try:
        return [Part(name.strip()) for name in text.split(",")]
    except ValueError:
        raise InvalidRequest(f"by: expected {', '.join(Part)}, got {text[:40]!r}.", param="by") from None
