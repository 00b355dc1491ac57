"""The requests as numbers, and time cut into slots and cells: what `node.simulate.optimum_program` is built from."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from node.routing.profile import EngineProfile
from node.simulate.values import TraceRequest

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]

_MOST_CELLS = 240
_SLOTS_PER_BUDGET = 20
_MOST_TICKS = 400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One entry a request: tokens of prompt and of decode, KV tokens held on average and from the start, cost."""

    prompt: Floats
    decode: Floats
    held: Floats
    start: Floats
    cost: Floats


def work_of(requests: Sequence[TraceRequest], costs: Sequence[int]) -> Work:
    """The requests as the program counts them. `costs` are their prices in the cloud, in nano-dollars."""
    own_kv = np.array([max(0, each.prompt_tokens - each.prefix_hit_tokens) for each in requests], dtype=np.float64)
    output = np.array([max(1, each.output_tokens) for each in requests], dtype=np.float64)
    return Work(
        prompt=np.maximum(own_kv, 1),
        decode=output - 1,
        held=own_kv + output / 2,
        start=own_kv,
        cost=np.array(costs, dtype=np.float64),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Slots and cells, and in which of them each request arrives and falls due; all rounded outward.

    `slot_s` and `slot_cell` have one entry a slot. A prompt may be computed from slot `arrives` to slot `due`, decode
    tokens from cell `arrives_cell` on; at the ends of the cells from `arrives_cell` up to, without, `due_cell` a
    request has arrived and need not have its first token.
    """

    tick_s: float
    cell_s: float
    cells: int
    slot_s: Floats
    slot_cell: Ints
    arrives: Ints
    due: Ints
    arrives_cell: Ints
    due_cell: Ints


def grid_of(arrivals_s: Sequence[float], budget_s: float, slot_s: float | None) -> Grid:
    """The grid for requests that arrive then and have `budget_s` for their first token. `slot_s` is the finest slot."""
    arrival = np.array(arrivals_s, dtype=np.float64)
    arrival -= arrival.min()
    span_s = float(arrival.max()) + budget_s
    tick_s = slot_s if slot_s is not None else max(budget_s / _SLOTS_PER_BUDGET, span_s / _MOST_TICKS)
    ticks_per_cell = max(1, math.ceil(max(budget_s / 2, span_s / _MOST_CELLS) / tick_s - 1e-9))
    first = np.floor(arrival / tick_s + 1e-9).astype(np.int64)  # a billionth of a tick, so that exact ones stay so
    last = np.maximum(first + 1, np.ceil((arrival + budget_s) / tick_s - 1e-9).astype(np.int64))
    cells = int(-(-last.max() // ticks_per_cell))
    borders = np.unique(np.concatenate([first, last, np.arange(cells + 1) * ticks_per_cell]))
    return Grid(
        tick_s=tick_s,
        cell_s=tick_s * ticks_per_cell,
        cells=cells,
        slot_s=np.diff(borders) * tick_s,
        slot_cell=borders[:-1] // ticks_per_cell,
        arrives=np.searchsorted(borders, first),
        due=np.searchsorted(borders, last) - 1,
        arrives_cell=first // ticks_per_cell,
        due_cell=-(-last // ticks_per_cell) - 1,
    )


def classes_of(work: Work, most: int) -> Ints:
    """A class for each request with decode tokens, -1 for the others: alike in decode tokens and in KV held.

    Splits the class with the most tokens times spread at the middle of its wider side until there are `most`.
    """
    decodes = np.flatnonzero(work.decode > 0)
    sides = np.log(np.stack([work.decode[decodes], work.held[decodes]]))

    def entry(members: Ints) -> tuple[float, int, Ints, int]:
        spread = np.ptp(sides[:, members], axis=1)
        loss = float(spread.sum() * work.decode[decodes[members]].sum())
        return -loss, int(members[0]), members, int(spread.argmax())

    heap = [entry(np.arange(len(decodes)))] if len(decodes) else []
    while heap and len(heap) < most and heap[0][0] < 0:
        _, _, members, side = heapq.heappop(heap)
        values = sides[side, members]
        low = values <= (values.min() + values.max()) / 2
        heapq.heappush(heap, entry(members[low]))
        heapq.heappush(heap, entry(members[~low]))
    label = np.full(len(work.decode), -1, dtype=np.int64)
    for k, (_, _, members, _) in enumerate(heap):
        label[decodes[members]] = k
    return label


def pace(work: Work, grid: Grid, profile: EngineProfile) -> tuple[Ints, Ints, Floats]:
    """How many decode tokens a request can have left at a cell's end, where that is not 0: request, cell, tokens."""
    step = profile.step
    full = min(profile.max_sequences, profile.max_batched_tokens)
    slowest_s = max(
        step.step_s(full, profile.max_batched_tokens - full), step.step_s(1, profile.max_batched_tokens - 1)
    )
    decode_only_s = step.step_s(full, 0)
    slots = len(grid.slot_s)
    arrived = np.concatenate([[0.0], np.cumsum(np.bincount(grid.arrives, work.prompt, slots))])
    due = np.concatenate([[0.0], np.cumsum(np.bincount(grid.due, work.prompt, slots))])
    border = np.searchsorted(grid.slot_cell, np.arange(grid.cells + 1))  # each cell's first slot
    prompt_s = step.per_prefill_token_s * (arrived[border[1:]] - due[border[:-1]])
    steps = np.maximum(grid.cell_s / slowest_s, (grid.cell_s - prompt_s) / decode_only_s)
    steps_before = np.concatenate([[0.0], np.cumsum(steps)])

    decoding = np.flatnonzero(work.decode > 0)
    first = np.maximum(grid.due_cell + 1, 0)[decoding]  # the first cell that lies wholly after its first token is due
    target = steps_before[first] + work.decode[decoding]
    last = np.searchsorted(steps_before, target, side="left")  # nothing is left at its start, if it is one of the cells
    arrives = grid.arrives_cell[decoding]
    spans = np.maximum(0, last - 1 - arrives)
    who = np.repeat(decoding, spans)
    cell = np.arange(len(who)) - np.repeat(np.cumsum(spans) - spans, spans) + np.repeat(arrives, spans)
    done = np.maximum(0.0, steps_before[cell + 1] - np.repeat(steps_before[first], spans))
    return who, cell, np.maximum(0.0, work.decode[who] - done)
