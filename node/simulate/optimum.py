"""The clairvoyant optimum: what no router, knowing the whole trace, could have paid the cloud less than.

A linear program that every schedule of the engine satisfies, so its minimum is a lower bound on the spend of every
router that gives each request its first token inside the budget. The engine is that of `node.routing.profile`: a step
with n decoding sequences and P prompt tokens takes base + b·n + c·P seconds, n <= N (`max_sequences`), n + P <= B
(`max_batched_tokens`), and what runs holds at most K (`kv_tokens`). Of request i, p_i prompt tokens are computed
between arrival and arrival + budget (the step with the last of them emits the first token), then o_i - 1 decode
tokens, one in every step.

Time is cut in two: fine slots for prompts, coarser cells for everything else. x_i is the share of i served here.

Prompts, per slot t:
 1. P_t tokens, at most what a slot holds of full steps; what has been computed by any time is no more than had
    arrived and no less than was due. All windows are equally long, so first come is first due, and this sum over
    requests loses nothing against one variable per request and slot. Slots in which nothing arrives or falls due are
    merged, also without loss.

Steps, per cell. Each row holds for every step and is linear in what the step holds, so it holds for sums over steps;
of a step across a border each side gets its share.
 2. base·S + b·D + c·P <= seconds in the cell; D <= N·S; D + P <= B·S.

Decode tokens, per cell, by class k of requests alike in o and in the KV they hold:
 3. D_k, never more than had arrived.

KV cache, per cell. The j-th decode token of i is computed while i holds p_i + j tokens; on average over its tokens
that is h_i = p_i + o_i/2. Charging h_i for each token instead is off by φ_i = d·(o_i - 1 - d)/2 after d of them,
which is 0 before the first and after the last. With Φ the sum of φ_i over those that run
 4. H + P <= K·S + (Φ at the cell's end) - (Φ at its start), where H is what is done in the cell of Σ h_i·(o_i -
    1)·x_i. What is left of it lies between the least and the greatest h of each class times the tokens left of that
    class. A prompt token in the step holds its own place; tokens found in the prefix cache may be shared with others
    and count nothing. By class, with the longest o: Φ_k is at most (o - 1)/2 times the tokens left, Σ Φ_k·8/(o - 1)²
    <= N, and Σ Φ_k·2/(o - 1) <= K, as i holds its d tokens.

Residents, at each cell's end. The engine never holds a decoding sequence back, so what had its prompt computed and is
not finished runs. W_k are the decode tokens left of those whose first token was due:
 5. Σ W_k/(o_k - 1) <= N, with the longest o of the class, as one sequence has at most o - 1 left;
 6. Σ W_k·p/(o - 1) <= K, with the least p/(o - 1) of the class, as i holds at least p_i, so at least p_i/(o_i - 1)
    times what it has left;
 7. i has at most (o_i - 1)·x_i less the steps since its first token was due left, or nothing. While it runs the
    engine is not idle, so a cell has at least (seconds - c·Q)/(base + b·N) steps, Q being all prompts that can be
    computed in it (those that arrive by its end, without those due by its start), and at least one per longest
    possible step.

No sequence is preempted: knowing the lengths, a router need not fill the cache until that happens. Row 7 takes it
that no prompt is computed here too late. A request that cannot be served alone (prompt longer than the budget, more
tokens than context or cache hold) has x_i = 0, and is paid for unless it is pinned.

What is relaxed: requests may be split between here and the cloud; work may be stopped and resumed, in any order,
within a slot or cell; a running sequence may be slowed down or hurried (5 to 7 limit how much can be put off, most of
all at the end of a burst and of the trace); a short batch costs no more per token than a full one; places of
sequences whose prompt is being computed are free; the cloud is instant.

How tight it is: on six public traces offering 1.5 to 3 times what a GPU-like engine can do, `upper_nano_usd` (what is
split goes to the cloud whole) is 0.1 to 9 % above it; at 0.7 and 1.0 times up to 15 %, and more where less than 1 % of
the bill need be spent at all. Halving slots or cells, or doubling classes, moves it by less than 2 %. What the engine's
steps cost beyond that, only a schedule on the engine tells.

The result does not hang on the solver's tolerances: the bound is recomputed from the dual values, which give a lower
bound by weak duality whatever their quality.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from node.errors import SettingsError
from node.money import Price, Usage
from node.routing.profile import EngineProfile
from node.simulate.values import TraceRequest

try:
    import numpy as np
    from scipy import sparse
    from scipy.optimize import linprog
except ImportError:  # an extra; `lower_bound` says so
    linprog = None

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats: TypeAlias = npt.NDArray[np.float64]
    Ints: TypeAlias = npt.NDArray[np.int64]

PINNED_WEIGHT = 10
"""What a pinned request that is late counts, in times its cloud price: enough that the program is late with one only
where it must, and little enough that the numbers stay well scaled."""

_CLASSES = 16
_MOST_CELLS = 240
_SLOTS_PER_BUDGET = 20
_MOST_TICKS = 400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What `lower_bound` found.

    `spend_nano_usd` is the bound; `upper_nano_usd` what the program's solution costs when every spillable request it
    splits goes to the cloud whole, so that the best unsplit solution lies about between the two; `all_cloud_nano_usd`
    the price of all spillable requests. `pinned_late_nano_usd` is what the pinned requests that even the program cannot
    serve in time would have cost (0 in all but overloaded traces; without those that cannot be served even alone).
    `local_share` is x_i, in the order given.
    """

    spend_nano_usd: int
    upper_nano_usd: int
    all_cloud_nano_usd: int
    pinned_late_nano_usd: int
    local_share: tuple[float, ...]
    slot_s: float
    cell_s: float
    slots: int
    variables: int
    solve_s: float

    def allowing(self, *, late_nano_usd: int, pinned_late_nano_usd: int = 0) -> int:
        """The bound for a router that served requests here which missed their budget.

        `late_nano_usd` is what the spillable ones among them would have cost in the cloud, `pinned_late_nano_usd` what
        the pinned ones would have (without those that no engine could serve in time even alone). It drops them from the
        schedule, so it takes it that they delayed nobody (row 7).
        """
        more = max(0, pinned_late_nano_usd - self.pinned_late_nano_usd)
        return max(0, self.spend_nano_usd - late_nano_usd - PINNED_WEIGHT * more)


def lower_bound(
    requests: Sequence[TraceRequest],
    profile: EngineProfile,
    price: Price,
    *,
    ttft_budget_s: float,
    pinned: frozenset[int] = frozenset(),
    slot_s: float | None = None,
) -> Bound:
    """The least any router could have paid the cloud for `requests` (see the module), with the engine given.

    `pinned` are indices into `requests` that never leave. Where not all of them can be served in time, those late count
    `PINNED_WEIGHT` times their price, so the bound holds for every router late with no more of them (by price) than
    `pinned_late_nano_usd`; see `Bound.allowing` for others. `slot_s` is the finest slot, a 20th of the budget by
    default: finer is tighter and slower.

    Raises SettingsError without scipy, RuntimeError when the solver gives up.
    """
    if linprog is None:
        raise SettingsError("the optimum needs scipy: .venv/bin/pip install scipy (it is in the extra `simulate`)")
    started = time.perf_counter()
    costs = [price.cost_nano_usd(Usage(each.prompt_tokens, each.output_tokens)) for each in requests]
    all_cloud = sum(cost for i, cost in enumerate(costs) if i not in pinned)
    fitting = [i for i, each in enumerate(requests) if _fits(each, profile, ttft_budget_s)]
    if not fitting:
        return Bound(
            spend_nano_usd=all_cloud,
            upper_nano_usd=all_cloud,
            all_cloud_nano_usd=all_cloud,
            pinned_late_nano_usd=0,
            local_share=(0.0,) * len(requests),
            slot_s=slot_s or 0.0,
            cell_s=0.0,
            slots=0,
            variables=0,
            solve_s=time.perf_counter() - started,
        )
    grid = _grid([requests[i].arrival_s for i in fitting], ttft_budget_s, slot_s)
    work = _work([requests[i] for i in fitting], [costs[i] for i in fitting])
    is_pinned = np.array([i in pinned for i in fitting])
    weight = np.where(is_pinned, PINNED_WEIGHT, 1) * work.cost
    program = _program(work, grid, profile, weight)
    least, shares = program.solve()

    late = work.cost * (1 - shares)
    pinned_late = float(late[is_pinned].sum())
    never = sum(cost for i, cost in enumerate(costs) if i not in pinned) - float(work.cost[~is_pinned].sum())
    split = shares < 1 - 1e-6
    spend = never + float(weight.sum()) + least - PINNED_WEIGHT * pinned_late
    everywhere = np.zeros(len(requests))
    everywhere[fitting] = shares
    return Bound(
        spend_nano_usd=min(all_cloud, max(0, math.floor(spend))),
        upper_nano_usd=math.ceil(never + float(work.cost[split & ~is_pinned].sum())),
        all_cloud_nano_usd=all_cloud,
        pinned_late_nano_usd=math.floor(pinned_late),
        local_share=tuple(everywhere.tolist()),
        slot_s=grid.tick_s,
        cell_s=grid.cell_s,
        slots=len(grid.slot_s),
        variables=program.variables,
        solve_s=time.perf_counter() - started,
    )


def closed_form(
    requests: Sequence[TraceRequest],
    profile: EngineProfile,
    price: Price,
    *,
    ttft_budget_s: float,
    rounding_s: float = 0.0,
) -> int:
    """A much looser bound in nano-dollars that needs no solver: what arrives in a window and cannot be done in time.

    For windows of 1 to 120 s: the work that arrives in one, at the best rates the engine has, minus the time until the
    last of it had to have its first token, minus what N sequences can have left then. What is over is priced at the
    cheapest per unit of work. `rounding_s` widens every window at both ends, to compare with a program of such cells.
    """
    step, sequences = profile.step, profile.max_sequences
    per_decode_s = step.per_decode_s + step.base_s / sequences
    fitting = [each for each in requests if _fits(each, profile, ttft_budget_s)]
    longest = max((each.output_tokens for each in fitting), default=1)
    left_s = (longest - 1) * sequences * per_decode_s
    best = 0.0
    for window_s in (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0):
        windows: dict[int, list[TraceRequest]] = {}
        for each in fitting:
            windows.setdefault(math.floor(each.arrival_s / window_s), []).append(each)
        total = 0.0
        for k, inside in windows.items():
            until_s = max(each.arrival_s for each in inside) + ttft_budget_s
            work = [step.per_prefill_token_s * _own(each) + per_decode_s * (each.output_tokens - 1) for each in inside]
            excess = sum(work) - (until_s - k * window_s) - left_s - 2 * rounding_s
            cost = [price.cost_nano_usd(Usage(each.prompt_tokens, each.output_tokens)) for each in inside]
            for seconds, nano in sorted(zip(work, cost, strict=True), key=lambda pair: pair[1] / max(pair[0], 1e-12)):
                if excess <= 0:
                    break
                total += nano * min(1.0, excess / max(seconds, 1e-12))
                excess -= seconds
        best = max(best, total)
    never = sum(
        price.cost_nano_usd(Usage(each.prompt_tokens, each.output_tokens))
        for each in requests
        if not _fits(each, profile, ttft_budget_s)
    )
    return never + math.floor(best)


def _own(request: TraceRequest) -> int:
    """Prompt tokens to compute: those not in the prefix cache, and at least the last, which yields the first token."""
    return max(1, request.prompt_tokens - request.prefix_hit_tokens)


def _fits(request: TraceRequest, profile: EngineProfile, ttft_budget_s: float) -> bool:
    """Whether an otherwise empty engine could serve it in time."""
    own, step = _own(request), profile.step
    prefill_s = math.ceil(own / profile.max_batched_tokens) * step.base_s + own * step.per_prefill_token_s
    tokens = request.prompt_tokens + request.output_tokens
    return (
        prefill_s <= ttft_budget_s * (1 + 1e-9)
        and tokens <= profile.context_tokens
        and tokens - 1 <= profile.kv_tokens  # the last token is never read again
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """One entry a request: tokens of prompt and of decode, KV tokens held on average and from the start, cost."""

    prompt: Floats
    decode: Floats
    held: Floats
    start: Floats
    cost: Floats


def _work(requests: Sequence[TraceRequest], costs: Sequence[int]) -> _Work:
    own_kv = np.array([max(0, each.prompt_tokens - each.prefix_hit_tokens) for each in requests], dtype=np.float64)
    output = np.array([max(1, each.output_tokens) for each in requests], dtype=np.float64)
    return _Work(
        prompt=np.maximum(own_kv, 1),
        decode=output - 1,
        held=own_kv + output / 2,
        start=own_kv,
        cost=np.array(costs, dtype=np.float64),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
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


def _grid(arrivals_s: Sequence[float], budget_s: float, slot_s: float | None) -> _Grid:
    arrival = np.array(arrivals_s, dtype=np.float64)
    arrival -= arrival.min()
    span_s = float(arrival.max()) + budget_s
    tick_s = slot_s if slot_s is not None else max(budget_s / _SLOTS_PER_BUDGET, span_s / _MOST_TICKS)
    ticks_per_cell = max(1, math.ceil(max(budget_s / 2, span_s / _MOST_CELLS) / tick_s - 1e-9))
    first = np.floor(arrival / tick_s + 1e-9).astype(np.int64)  # a billionth of a tick, so that exact ones stay so
    last = np.maximum(first + 1, np.ceil((arrival + budget_s) / tick_s - 1e-9).astype(np.int64))
    cells = int(-(-last.max() // ticks_per_cell))
    borders = np.unique(np.concatenate([first, last, np.arange(cells + 1) * ticks_per_cell]))
    return _Grid(
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


def _classes(work: _Work, most: int) -> Ints:
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


def _pace(work: _Work, grid: _Grid, profile: EngineProfile) -> tuple[Ints, Ints, Floats]:
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


class _Rows:
    """Sparse rows under construction: blocks of entries, each with its row, column and value."""

    def __init__(self) -> None:
        self.count = 0
        self._entries: list[tuple[Ints, Ints, Floats]] = []
        self._right: list[Floats] = []

    def block(self, right: Floats) -> int:
        """Adds as many rows as `right` has values; returns the first one's number."""
        first = self.count
        self.count += len(right)
        self._right.append(right)
        return first

    def add(self, rows: Ints, columns: Ints, values: Floats | float) -> None:
        """Adds `values` at `rows` and `columns`; entries at the same place add up."""
        self._entries.append((rows, columns, np.broadcast_to(np.asarray(values, dtype=np.float64), rows.shape)))

    def matrix(self, columns: int) -> Any:
        """All rows as a CSR matrix."""
        rows, cols, values = (np.concatenate(part) for part in zip(*self._entries, strict=True))
        return sparse.csr_array((values, (rows, cols)), shape=(self.count, columns))

    def right(self) -> Floats:
        """The right-hand side of every row."""
        return np.concatenate(self._right)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Program:
    """min objective·v with equal·v = equal_right, most·v <= most_right, 0 <= v <= top; the first `requests` v are x.

    One of the objective is `unit` nano-dollars.
    """

    requests: int
    objective: Floats
    unit: float
    equal: Any
    equal_right: Floats
    most: Any
    most_right: Floats
    top: Floats

    @property
    def variables(self) -> int:
        return len(self.objective)

    def solve(self, method: str = "highs-ipm") -> tuple[float, Floats]:
        """A lower bound on the minimum in nano-dollars, right whatever the solver's tolerances, and x."""
        answer = linprog(
            self.objective,
            A_ub=self.most,
            b_ub=self.most_right,
            A_eq=self.equal,
            b_eq=self.equal_right,
            bounds=np.stack([np.zeros(self.variables), self.top], axis=1),
            method=method,
        )
        if answer.x is None or answer.status != 0:
            raise RuntimeError(f"the optimum was not found: {answer.message}")
        equal, most = answer.eqlin.marginals, np.minimum(answer.ineqlin.marginals, 0.0)
        reduced = self.objective - self.equal.T @ equal - self.most.T @ most
        least = self.equal_right @ equal + self.most_right @ most + float(np.minimum(reduced, 0.0) @ self.top)
        return float(least) * self.unit, np.clip(answer.x[: self.requests], 0.0, 1.0)


def _program(work: _Work, grid: _Grid, profile: EngineProfile, weight: Floats) -> _Program:
    """The rows of the module's docstring, with its numbers. Tokens are counted in thousands, KV in fillings of it."""
    base_s, per_decode_s, per_prefill_s = (
        profile.step.base_s,
        profile.step.per_decode_s * 1e3,
        profile.step.per_prefill_token_s * 1e3,
    )
    sequences, batched, kv = profile.max_sequences / 1e3, profile.max_batched_tokens / 1e3, profile.kv_tokens / 1e3
    prompt, decode = work.prompt / 1e3, work.decode / 1e3
    label = _classes(work, _CLASSES)
    classes, cells, slots, n = int(label.max()) + 1, grid.cells, len(grid.slot_s), len(prompt)
    members = [np.flatnonzero(label == k) for k in range(classes)]
    longest = np.array([work.decode[each].max() for each in members])
    held_least = np.array([work.held[each].min() for each in members])
    held_most = np.array([work.held[each].max() for each in members])
    start = np.array([(work.start[each] / work.decode[each]).min() for each in members])
    total = np.array([decode[each].sum() for each in members])

    sizes = {"x": n, "P": slots, "waiting": slots, "ahead": slots, "S": cells, "H": cells, "H left": cells}
    sizes |= dict.fromkeys(("D", "left", "W", "Φ"), classes * cells)
    column, variables = {}, 0
    for name, size in sizes.items():
        column[name] = variables + np.arange(size)
        variables += size
    x, p, s, h, h_left = (column[name] for name in ("x", "P", "S", "H", "H left"))
    d, left, w, phi = (column[name].reshape(classes, cells) for name in ("D", "left", "W", "Φ"))
    decoding = np.flatnonzero(label >= 0)

    equal = _Rows()
    row = equal.block(np.zeros(slots)) + np.arange(slots)  # 1: waiting now = waiting before + arrived - computed
    equal.add(row, column["waiting"], 1.0)
    equal.add(row[1:], column["waiting"][:-1], -1.0)
    equal.add(row, p, 1.0)
    equal.add(row[grid.arrives], x, -prompt)
    row = equal.block(np.zeros(slots)) + np.arange(slots)  # 1: ahead now = ahead before + computed - due
    equal.add(row, column["ahead"], 1.0)
    equal.add(row[1:], column["ahead"][:-1], -1.0)
    equal.add(row, p, -1.0)
    equal.add(row[grid.due], x, prompt)
    table = (equal.block(np.zeros(classes * cells)) + np.arange(classes * cells)).reshape(classes, cells)  # 3
    equal.add(table.ravel(), left.ravel(), 1.0)
    equal.add(table[:, 1:].ravel(), left[:, :-1].ravel(), -1.0)
    equal.add(table.ravel(), d.ravel(), 1.0)
    equal.add(table[label[decoding], grid.arrives_cell[decoding]], x[decoding], -decode[decoding])
    fillings = decode * work.held / kv
    row = equal.block(np.zeros(cells)) + np.arange(cells)  # 4
    equal.add(row, h_left, 1.0)
    equal.add(row[1:], h_left[:-1], -1.0)
    equal.add(row, h, 1.0)
    equal.add(row[grid.arrives_cell], x, -fillings)

    most = _Rows()
    each_cell = np.arange(cells)
    d_cell = np.tile(each_cell, classes)
    cell_s = np.full(cells, grid.cell_s)
    row = most.block(cell_s) + each_cell  # 2
    most.add(row, s, base_s)
    most.add(row[d_cell], d.ravel(), per_decode_s)
    most.add(row[grid.slot_cell], p, per_prefill_s)
    row = most.block(np.zeros(cells)) + each_cell  # 2
    most.add(row, s, -sequences)
    most.add(row[d_cell], d.ravel(), 1.0)
    row = most.block(np.zeros(cells)) + each_cell  # 2
    most.add(row, s, -batched)
    most.add(row[d_cell], d.ravel(), 1.0)
    most.add(row[grid.slot_cell], p, 1.0)
    row = most.block(np.zeros(cells)) + each_cell  # 4
    most.add(row, s, -1.0)
    most.add(row, h, 1.0)
    most.add(row[d_cell], phi.ravel(), -1.0)
    most.add(np.tile(row[1:], classes), phi[:, :-1].ravel(), 1.0)
    most.add(row[grid.slot_cell], p, 1.0 / kv)
    for sign, bound in ((1.0, held_most), (-1.0, held_least)):
        row = most.block(np.zeros(cells)) + each_cell  # 4: what is left of H
        most.add(row, h_left, sign)
        most.add(row[d_cell], left.ravel(), -sign * np.repeat(bound / kv, cells))
    row = most.block(np.zeros(classes * cells)) + np.arange(classes * cells)  # 4: Φ
    most.add(row, phi.ravel(), 1.0)
    most.add(row, left.ravel(), np.repeat(-longest / 2 / kv, cells))
    row = most.block(np.ones(cells)) + each_cell
    most.add(row[d_cell], phi.ravel(), np.repeat(2 / longest, cells))
    row = most.block(np.ones(cells)) + each_cell
    most.add(row[d_cell], phi.ravel(), np.repeat(8 * profile.kv_tokens / profile.max_sequences / longest**2, cells))
    table = (most.block(np.zeros(classes * cells)) + np.arange(classes * cells)).reshape(classes, cells)
    most.add(table.ravel(), left.ravel(), 1.0)  # W >= what is left of those due
    most.add(table.ravel(), w.ravel(), -1.0)
    spans = np.maximum(0, grid.due_cell - grid.arrives_cell)[decoding]
    again = np.repeat(decoding, spans)
    cell = np.arange(len(again)) - np.repeat(np.cumsum(spans) - spans, spans) + grid.arrives_cell[again]
    most.add(table[label[again], cell], x[again], -decode[again])
    who, cell, at_most = _pace(work, grid, profile)  # 7
    table = (most.block(np.zeros(classes * cells)) + np.arange(classes * cells)).reshape(classes, cells)
    most.add(table.ravel(), left.ravel(), 1.0)
    most.add(table[label[who], cell], x[who], -at_most / 1e3)
    row = most.block(np.ones(cells)) + each_cell  # 5
    most.add(row[d_cell], w.ravel(), np.repeat(1 / (longest * sequences), cells))
    row = most.block(np.ones(cells)) + each_cell  # 6
    most.add(row[d_cell], w.ravel(), np.repeat(start / kv, cells))

    top = np.empty(variables)
    top[x] = 1.0
    top[p] = grid.slot_s / (per_prefill_s + base_s / batched)  # 1
    top[column["waiting"]] = top[column["ahead"]] = prompt.sum()
    top[s] = grid.cell_s / base_s
    top[h] = top[h_left] = fillings.sum()
    top[phi] = (longest / 2)[:, None]
    top[d] = top[left] = top[w] = total[:, None]
    objective = np.zeros(variables)
    objective[x] = -weight / max(1.0, weight.mean())
    return _Program(
        requests=n,
        objective=objective,
        unit=max(1.0, float(weight.mean())),
        equal=equal.matrix(variables),
        equal_right=equal.right(),
        most=most.matrix(variables),
        most_right=most.right(),
        top=top,
    )
