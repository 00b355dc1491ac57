"""The clairvoyant optimum: what no router, knowing the whole trace, could have paid the cloud less than.

A linear program that every schedule of the engine satisfies, so its minimum is a lower bound on the spend of every
router that gives each request its first token inside the budget. Its rows, and what they leave out of a real engine:
`node.simulate.optimum_program`.

A request that cannot be served alone (prompt longer than the budget, more tokens than context or cache hold) is paid
for unless it is pinned.

How tight it is: on six public traces offering 1.5 to 3 times what a GPU-like engine can do, `upper_nano_usd` (what is
split goes to the cloud whole) is 0.1 to 9 % above it; at 0.7 and 1.0 times up to 15 %, and more where less than 1 % of
the bill need be spent at all. Halving slots or cells, or doubling classes, moves it by less than 2 %. What the engine's
steps cost beyond that, only a schedule on the engine tells.

The result does not hang on the solver's tolerances: the bound is recomputed from the dual values, which give a lower
bound by weak duality whatever their quality.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from node.errors import SettingsError
from node.money import Price
from node.routing.profile import EngineProfile
from node.simulate.values import TraceRequest

PINNED_WEIGHT = 10
"""What a pinned request that is late counts, in times its cloud price: enough that the program is late with one only
where it must, and little enough that the numbers stay well scaled."""


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
    if find_spec("scipy") is None:
        raise SettingsError("the optimum needs scipy: .venv/bin/pip install scipy (it is in the extra `simulate`)")
    import numpy as np

    from node.simulate.optimum_grid import grid_of, work_of
    from node.simulate.optimum_program import program_of

    started = time.perf_counter()
    costs = [price.cost_of_nano_usd(each.prompt_tokens, each.output_tokens) for each in requests]
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
    grid = grid_of([requests[i].arrival_s for i in fitting], ttft_budget_s, slot_s)
    work = work_of([requests[i] for i in fitting], [costs[i] for i in fitting])
    is_pinned = np.array([i in pinned for i in fitting])
    weight = np.where(is_pinned, PINNED_WEIGHT, 1) * work.cost
    program = program_of(work, grid, profile, weight)
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
            cost = [price.cost_of_nano_usd(each.prompt_tokens, each.output_tokens) for each in inside]
            for seconds, nano in sorted(zip(work, cost, strict=True), key=lambda pair: pair[1] / max(pair[0], 1e-12)):
                if excess <= 0:
                    break
                total += nano * min(1.0, excess / max(seconds, 1e-12))
                excess -= seconds
        best = max(best, total)
    never = sum(
        price.cost_of_nano_usd(each.prompt_tokens, each.output_tokens)
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
