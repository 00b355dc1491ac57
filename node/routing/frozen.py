"""Frozen values that cost no more to make than plain ones.

A frozen dataclass sets each of its fields through `object.__setattr__`, which makes a dozen fields take four times as
long. Deciding makes some ten values for each request, so theirs is left to the type checker: it sees
`dataclass(frozen=True)` and refuses whoever would change one; at run time they are like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as value
else:

    def value(*, frozen: bool, **options: Any) -> Any:
        """`dataclass` for a value made anew with every decision; equal and hashed by its fields."""
        return dataclass(unsafe_hash=frozen, **options)


__all__ = ["value"]
