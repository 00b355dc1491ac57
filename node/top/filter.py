"""What is looked for among the decisions: `who=cloud why=last_moment ended=failed`, and a part of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from node.dashboard.decisions import NOBODY, Query
from node.dashboard.feed import MOST_TEXT
from node.dispatch.outcome import Ending
from node.routing.values import Reason

HINT: Final = "who=local  why=last_moment  ended=failed, and a part of an id, key, model, reason or error"


class FilterError(ValueError):
    """A filter that can find nothing, with what it could say instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter(Query):
    """The node's own search, which it is sent to, as it is typed here."""

    @property
    def empty(self) -> bool:
        """Whether everything matches."""
        return not self.parameters()

    def parameters(self) -> dict[str, str]:
        """As `GET /dashboard/decisions` takes it."""
        given = {"backend": self.backend, "reason": self.reason, "ending": self.ending, "text": self.text}
        return {name: value for name, value in given.items() if value is not None}

    def __str__(self) -> str:
        names = {"backend": "who", "reason": "why", "ending": "ended"}
        return " ".join(
            f"{names[name]}={value}" if name in names else value for name, value in self.parameters().items()
        )


def parse_filter(text: str) -> Filter:
    """A filter as it is typed. Raises `FilterError` for a word that names nothing."""
    found: dict[str, str] = {}
    rest: list[str] = []
    for word in text.split():
        name, equals, value = word.partition("=")
        if not equals or not value:
            rest.append(word)
        elif name == "who":
            found["backend"] = NOBODY if value == "nobody" else value
        elif name == "why":
            found["reason"] = _one_of(value, tuple(Reason), "why")
        elif name == "ended":
            found["ending"] = _one_of(value, tuple(Ending), "ended")
        else:
            raise FilterError(f"{name}= is not known: there are who=, why= and ended=")
    looked_for = " ".join(rest)
    if len(looked_for) > MOST_TEXT:
        raise FilterError(f"more than {MOST_TEXT} characters are not looked for")
    return Filter(
        backend=found.get("backend"), reason=found.get("reason"), ending=found.get("ending"), text=looked_for or None
    )


def _one_of(value: str, known: tuple[str, ...], name: str) -> str:
    """The one of `known` that is `value`, or the only one that begins with it."""
    if value in known:
        return str(value)
    near = [each for each in known if each.startswith(value)]
    if len(near) == 1:
        return str(near[0])
    raise FilterError(f"{name}={value}: choose one of {', '.join(near or known)}")
