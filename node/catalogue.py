"""The catalogue's values: which models this node knows, what runs them here, what may stand in for them in the cloud.

A model without an entry in `cloud` never leaves the premises: the declared equivalents *are* the operator's consent.
Files are read and checked in `node.catalogue_files`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from node.money import Price
from node.routing.values import Capability


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """How the local engine runs a model.

    `source` is a hub id, or an absolute folder for weights on disk; `revision` pins a hub id to a commit.
    `engine_args` are vLLM engine arguments by their Python names (``max_num_seqs``), passed through unchanged.
    """

    source: str
    revision: str | None
    context_tokens: int
    capabilities: frozenset[Capability]
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    engine_args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudEquivalent:
    """A model at a provider that may answer in a local model's place, and what it can do.

    `price` is None when the price file does not know it: then nothing is ever sent there.
    """

    provider: str
    model: str
    context_tokens: int
    max_output_tokens: int | None
    capabilities: frozenset[Capability]
    price: Price | None
    priced_on: date | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model clients can name. `reference` is the list price that savings are counted against.

    `out_of_reach` names the providers of declared equivalents that the settings do not configure; those equivalents are
    not in `cloud` once the model is served.
    """

    name: str
    summary: str
    local: LocalModel | None
    cloud: tuple[CloudEquivalent, ...]
    reference: Price | None
    out_of_reach: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All models by name."""

    models: Mapping[str, Model]

    def get(self, name: str) -> Model | None:
        """The model clients call `name`, or None."""
        return self.models.get(name)
