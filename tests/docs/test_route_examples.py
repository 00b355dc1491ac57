"""The examples of docs/route.md: each request is read and decided by the objects that a node uses."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

import pytest

from node.api.features import admit
from node.api.schema import parse_chat
from node.caller import ANONYMOUS, Caller
from node.catalogue import Model
from node.catalogue_files import load_catalogue
from node.dispatch.experience import Experience
from node.policies import policy_for
from node.routing.profile import StepModel
from node.routing.values import CloudOption, EngineLoad, EngineState, QueueLoad, Snapshot, Target
from node.settings import Settings
from tests.docs.pages import REPO

_BASE: Final[dict[str, Any]] = {"model": "demo", "messages": [{"role": "user", "content": "What is Spillway?"}]}
_IMAGE: Final = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}]
_ROW: Final = re.compile(r"\| (?:(`[^`]+`)|nothing) \| ([^|]+) \| ([^|]+) \| `(\w+)`[^|]* \| (?:`(\w+)`)? *\|")


@dataclass(frozen=True)
class Example:
    asks: str
    node: str
    when: str
    goes_to: str
    reason: str

    def __str__(self) -> str:
        return f"{self.asks} {self.node} {self.when}"


def examples() -> list[Example]:
    text = (
        (REPO / "docs" / "route.md").read_text(encoding="utf-8").partition("\n## Examples\n")[2].partition("\n## ")[0]
    )
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| asks for")]
    found = [_ROW.fullmatch(row) for row in rows]
    assert all(found), [row for row, match in zip(rows, found, strict=True) if match is None]
    return [Example(*(part or "" for part in match.groups())) for match in found if match is not None]


@cache
def _demo() -> Model:
    return load_catalogue([REPO / "models"]).models["demo"]


def _snapshot(name: str) -> Snapshot:
    """The node at a moment, as the page describes it: the demo model with 64 sequences."""
    model = _demo()
    assert model.local is not None
    idle = EngineLoad(
        state=EngineState.READY,
        capabilities=model.local.capabilities,
        context_tokens=model.local.context_tokens,
        max_sequences=64,
        step=StepModel(base_s=0.002, per_decode_s=0.0004, per_prefill_token_s=0.00002),
        sequences_per_s=20.0,
    )
    full = replace(idle, in_flight=72, running=64, waiting=8)
    holysheep = tuple(
        CloudOption(
            provider=each.provider,
            model=each.model,
            capabilities=each.capabilities,
            context_tokens=each.context_tokens,
            max_output_tokens=each.max_output_tokens,
            price=each.price,
            ttft_high_s=1.0,
            ttft_likely_s=0.4,
        )
        for each in model.cloud
        if each.provider == "holysheep"
    )
    hundred = QueueLoad(depth=100, sequences_ahead=100, prompt_tokens_ahead=1000, kv_tokens_ahead=10_000, waited=False)
    match name:
        case "idle":
            return Snapshot(engine=idle, cloud=holysheep)
        case "full":
            return Snapshot(engine=full, cloud=holysheep)
        case "full, 100 wait":
            return Snapshot(engine=full, cloud=holysheep, queue=hundred)
        case "full, it is next":
            return Snapshot(engine=full, cloud=holysheep, queue=QueueLoad(depth=1, waited=True))
        case "room opens":
            return Snapshot(engine=replace(full, in_flight=71), cloud=holysheep, queue=QueueLoad(depth=1, waited=True))
        case "engine starts":
            return Snapshot(engine=replace(idle, state=EngineState.STARTING, step=None), cloud=holysheep)
        case "full, no cloud":
            away = tuple(replace(each, available=False) for each in holysheep)
            return Snapshot(engine=full, cloud=away, queue=QueueLoad(depth=1, waited=True))
        case "asked before":
            return Snapshot(engine=full, cloud=holysheep, cached=True)
    raise AssertionError(f"nobody knows how the node is when it is {name!r}")


def decide(example: Example) -> tuple[Target, str]:
    more = json.loads(example.asks.strip("`").replace("[image]", json.dumps(_IMAGE))) if example.asks else {}
    if "content" in more:
        more = {"messages": [{"role": "user", "content": more.pop("content")}], **more}
    parsed = parse_chat(_BASE | more)
    settings = Settings()
    admitted = admit(parsed, Caller(ANONYMOUS), settings, Experience(), request_id="r", arrived_s=1000.0)
    after_s = 0.0 if example.when == "on arrival" else float(example.when.removesuffix(" s later"))
    decision = policy_for(settings).decide(admitted.features, _snapshot(example.node), 1000.0 + after_s)
    return decision.target, decision.reason


@pytest.mark.parametrize("example", examples(), ids=str)
def test_request_goes_where_the_page_says_and_for_that_reason(example: Example) -> None:
    target, reason = decide(example)
    assert (target, reason if target is not Target.WAIT else "") == (example.goes_to, example.reason)
