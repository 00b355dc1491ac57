"""The linear program of `node.simulate.optimum`: what every schedule of the engine satisfies.

The engine is that of `node.routing.profile`: a step with n decoding sequences and P prompt tokens takes base + b·n +
c·P seconds, n <= N (`max_sequences`), n + P <= B (`max_batched_tokens`), and what runs holds at most K (`kv_tokens`).
Of request i, p_i prompt tokens are computed between arrival and arrival + budget (the step with the last of them emits
the first token), then o_i - 1 decode tokens, one in every step.

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
that no prompt is computed here too late.

What is relaxed: requests may be split between here and the cloud; work may be stopped and resumed, in any order,
within a slot or cell; a running sequence may be slowed down or hurried (5 to 7 limit how much can be put off, most of
all at the end of a burst and of the trace); a short batch costs no more per token than a full one; places of
sequences whose prompt is being computed are free; the cloud is instant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from node.routing.profile import EngineProfile
from node.simulate.optimum_grid import Floats, Grid, Ints, Work, classes_of, pace

_CLASSES = 16


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
class Program:
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
        """How many there are."""
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


def program_of(work: Work, grid: Grid, profile: EngineProfile, weight: Floats) -> Program:
    """The rows of the module's docstring, with its numbers. Tokens are counted in thousands, KV in fillings of it."""
    base_s, per_decode_s, per_prefill_s = (
        profile.step.base_s,
        profile.step.per_decode_s * 1e3,
        profile.step.per_prefill_token_s * 1e3,
    )
    sequences, batched, kv = profile.max_sequences / 1e3, profile.max_batched_tokens / 1e3, profile.kv_tokens / 1e3
    prompt, decode = work.prompt / 1e3, work.decode / 1e3
    label = classes_of(work, _CLASSES)
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
    who, cell, at_most = pace(work, grid, profile)  # 7
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
    return Program(
        requests=n,
        objective=objective,
        unit=max(1.0, float(weight.mean())),
        equal=equal.matrix(variables),
        equal_right=equal.right(),
        most=most.matrix(variables),
        most_right=most.right(),
        top=top,
    )
