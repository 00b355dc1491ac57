"""What deciding costs: microseconds of `Admission` for a request that passes through a queue of a given length."""

import random
import time
from decimal import Decimal

from node.money import Price
from node.routing.admission import Admission
from node.routing.policy import OverflowPolicy
from node.routing.profile import StepModel
from node.routing.values import CloudOption, EngineLoad, EngineState, Features, Limits, Residency, Target

QUEUES = (10, 100, 1_000, 10_000)
PASSES, BEST_OF = 1_000, 5
_SEQUENCES = 256
_APART_S = 0.02  # from one request to the next: about what such an engine takes
_STEP = StepModel(base_s=0.006, per_decode_s=0.00007, per_prefill_token_s=0.00003)
_OPTION = CloudOption(
    provider="cloud",
    model="simulated",
    capabilities=frozenset(),
    context_tokens=131_072,
    max_output_tokens=None,
    price=Price(Decimal("0.80"), Decimal("2.50")),
    ttft_high_s=0.8,
    ttft_likely_s=0.35,
)


def decision_costs(queues: tuple[int, ...] = QUEUES, passes: int = PASSES, best_of: int = BEST_OF) -> dict[int, float]:
    """Microseconds per request for each length: the best of `best_of` rounds, other work on the machine aside."""
    return {queue: min(_round_us(queue, passes, seed) for seed in range(best_of)) for queue in queues}


def _round_us(queue: int, passes: int, seed: int) -> float:
    """One arrival and one release a pass, so the queue keeps its length: the arrival is decided and waits, the head is
    decided and starts, the next one is asked and goes on waiting."""
    chance = random.Random(seed)
    admission = Admission(
        policy=OverflowPolicy(Limits(feed_ahead=1)), engine=_load, cloud_options=lambda failed: (_OPTION,)
    )
    running = []
    first = _SEQUENCES + queue + 1
    for index in range(first):
        features = _request(index, chance)
        decision, settled = admission.arrive(features, (index - first) * _APART_S)
        assert decision.target in (Target.LOCAL, Target.WAIT)
        assert not settled
        if decision.target is Target.LOCAL:
            admission.entered(features.request_id)
            running.append(features)
    assert admission.depth >= queue
    coming = [_request(index, chance) for index in range(first, first + passes)]
    began = time.process_time()
    for index, features in enumerate(coming):
        now_s = index * _APART_S
        admission.arrive(features, now_s)
        for placement in admission.release(running.pop(), now_s):
            admission.entered(placement.features.request_id)
            running.append(placement.features)
    return (time.process_time() - began) / passes * 1e6


def _load(in_flight: int) -> EngineLoad:
    running = min(in_flight, _SEQUENCES)
    return EngineLoad(
        state=EngineState.READY,
        capabilities=frozenset(),
        context_tokens=32_768,
        max_sequences=_SEQUENCES,
        in_flight=in_flight,
        running=running,
        waiting=in_flight - running,
        kv_cache_usage=0.5,
        queued_prefill_tokens=0,
        step=_STEP,
        kv_tokens=400_000,
        sequences_per_s=1_000.0,
    )


def _request(index: int, chance: random.Random) -> Features:
    """One of twenty callers'; its budget is long enough for it to wait, and no two are the same."""
    tokens = chance.randint(50, 400)
    return Features(
        request_id=str(index),
        model="simulated",
        residency=Residency.PREMISES if chance.random() < 0.2 else Residency.ANY,
        prompt_bytes=4 * tokens,
        prompt_tokens_estimate=tokens,
        prompt_tokens_bound=tokens,
        max_output_tokens=1_024,
        choices=1,
        needs=frozenset(),
        prefer_local=False,
        ttft_budget_s=10_000.0 * (1.0 + chance.random()),
        latency_budget_s=None,
        cost_budget_nano_usd=None,
        arrived_s=0.0,
        give_up_s=1e6,
        tenant=f"tenant-{chance.randrange(20)}",
        output_tokens_estimate=200.0,
    )
