"""The plain values routing thinks with. Times are monotonic seconds, money integer nano-dollars."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from node.money import Price
from node.routing.frozen import value
from node.routing.profile import StepModel


class Residency(StrEnum):
    """Where a request's bytes may go."""

    PREMISES = "premises"
    ANY = "any"


class Zone(StrEnum):
    """Where a provider's machines stand."""

    PREMISES = "premises"
    CLOUD = "cloud"


class Capability(StrEnum):
    """What a request can ask for that not every model or server can do. The catalogue declares these."""

    TOOLS = "tools"
    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    GUIDED = "guided"
    LOGPROBS = "logprobs"
    PROMPT_LOGPROBS = "prompt_logprobs"
    MANY_CHOICES = "n"
    SEED = "seed"
    LOGIT_BIAS = "logit_bias"
    VISION = "vision"
    AUDIO = "audio"
    COMPLETIONS = "completions"
    TOKEN_PROMPT = "token_prompt"
    VLLM_SAMPLING = "vllm_sampling"
    REASONING_EFFORT = "reasoning_effort"


class EngineState(StrEnum):
    """The local engine's life."""

    STARTING = "starting"
    READY = "ready"
    SUSPECT = "suspect"
    DOWN = "down"
    ASLEEP = "asleep"


CONTENT: Final = "content:"
"""How `Features.pinned_by` begins where a content rule pinned the request; the rule's name follows."""


class Target(StrEnum):
    """What a decision says to do."""

    LOCAL = "local"
    CLOUD = "cloud"
    CACHE = "cache"
    WAIT = "wait"
    REFUSE = "refuse"


class Reason(StrEnum):
    """Why. Spelled the same in `x-spillway-reason`, logs, metrics and stored rows."""

    # served on the premises
    WITHIN_BUDGET = "within_budget"
    PINNED = "pinned"
    CONTENT_RULE = "content_rule"
    SLOT_OPENED = "slot_opened"
    PREFERS_LOCAL = "prefers_local"
    LOCAL_ONLY_FEATURE = "local_only_feature"
    NO_CLOUD_EQUIVALENT = "no_cloud_equivalent"
    CLOUD_FAILED = "cloud_failed"
    # sent to the cloud
    PREDICTED_LATE = "predicted_late"
    LAST_MOMENT = "last_moment"
    DISPLACED = "displaced"
    SAME_CONVERSATION = "same_conversation"
    QUEUE_DEPTH = "queue_depth"
    KV_CACHE_USAGE = "kv_cache_usage"
    LOW_VRAM = "low_vram"
    ENGINE_NOT_READY = "engine_not_ready"
    CLOUD_ONLY_FEATURE = "cloud_only_feature"
    CLOUD_ONLY_LENGTH = "cloud_only_length"
    CLOUD_ONLY_MODEL = "cloud_only_model"
    LOCAL_FAILED = "local_failed"
    HEDGED = "hedged"
    # answered from memory
    CACHE_HIT = "cache_hit"
    # waiting
    NO_SLOT = "no_slot"
    # refused; those from `COST_BUDGET` on also say why a late request stayed local all the same
    NO_PREMISES_CAPACITY = "no_premises_capacity"
    PRIVATE_NOT_SERVABLE = "private_not_servable"
    NOT_SERVABLE = "not_servable"
    CONTEXT_LENGTH = "context_length"
    COST_BUDGET = "cost_budget"
    BUDGET_SPENT = "budget_spent"
    LEDGER_UNAVAILABLE = "ledger_unavailable"
    UNKNOWN_PRICE = "unknown_price"
    NO_PROVIDER = "no_provider"


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What routing may know of one request.

    `prompt_tokens_estimate` is the expected size (for time), `prompt_tokens_bound` an upper bound (for money).
    `cached_tokens_estimate` of the prompt are expected in the engine's prefix cache; `output_tokens_estimate` is what
    one choice is expected to generate. `max_output_tokens` is the effective cap for one choice; `asks_output` says that
    the client set it, and means to have as many. Budgets run from `arrived_s`. `give_up_s` is the latest time at which
    the node still starts the request: the client's own budget if it set one, else the settings' patience. `stay_with`
    names the backend that answered this conversation's open tool call. Among those who wait, pinned or not, a higher
    `priority` goes first. `uncached_tokens_estimate` are the prompt tokens the engine is expected to compute, at least
    one; `may_leave` says whether its residency lets it leave the premises, and `pinned_by` who said that it may not:
    ``settings``, ``key``, ``model``, ``request`` or ``content:<rule>``.
    """

    request_id: str
    model: str
    residency: Residency
    prompt_bytes: int
    prompt_tokens_estimate: int
    prompt_tokens_bound: int
    max_output_tokens: int
    choices: int
    needs: frozenset[Capability]
    prefer_local: bool
    ttft_budget_s: float
    latency_budget_s: float | None
    cost_budget_nano_usd: int | None
    arrived_s: float
    give_up_s: float
    tenant: str = ""
    cached_tokens_estimate: int = 0
    output_tokens_estimate: float = 256.0
    stay_with: str | None = None
    asks_output: bool = False
    priority: int = 0
    pinned_by: str | None = None

    uncached_tokens_estimate: int = field(init=False)
    may_leave: bool = field(init=False)

    def __post_init__(self) -> None:
        """Works out, once, what every decision asks for many times."""
        object.__setattr__(
            self, "uncached_tokens_estimate", max(1, self.prompt_tokens_estimate - self.cached_tokens_estimate)
        )
        object.__setattr__(self, "may_leave", self.residency is Residency.ANY)

    @property
    def most_tokens(self) -> int:
        """What it may come to: the prompt as expected, and all of the output."""
        return self.prompt_tokens_estimate + self.max_output_tokens * self.choices


@value(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """The local engine at this moment. None means not measured yet (a cold engine), or not known.

    `queued_prefill_tokens` are prompt tokens handed to the engine and not yet computed. `in_flight` counts
    sequences the node has given it and not got back; it is the node's own count, never stale, while `running`
    and `waiting` are the scheduler's, as of its last step. `kv_cache_usage` is the used share of the KV cache without
    what prompts not yet computed will fill, and `kv_tokens` what it holds. `step` is the learned step model,
    `max_batched_tokens` what one step holds at most. The step under way computes `stepping_tokens` of the prompts and
    has done so for `stepping_s`; with `steps_ahead` 1 the one after it is already put together. `sequences_per_s` is
    how fast sequences finish, `tpot_s` how long one lately took per token. `ttft_doubt` makes of a predicted TTFT one
    that is seldom exceeded (`node.routing.observer.doubted_s`), `queue_doubt` of that of a request that has to wait in
    the node's queue. `first_token_s` is what a first token takes beside its steps: into tokens, to the engine and
    back, and whatever else the step model does not see.
    """

    state: EngineState
    capabilities: frozenset[Capability]
    context_tokens: int
    max_sequences: int
    in_flight: int = 0
    running: int = 0
    waiting: int = 0
    kv_cache_usage: float | None = None
    queued_prefill_tokens: int = 0
    step: StepModel | None = None
    max_batched_tokens: int = 8192
    kv_tokens: int | None = None
    stepping_tokens: int = 0
    stepping_s: float = 0.0
    steps_ahead: int = 0
    sequences_per_s: float | None = None
    tpot_s: float | None = None
    ttft_doubt: float = 0.3
    queue_doubt: float = 0.3
    first_token_s: float = 0.0


@value(frozen=True, slots=True, kw_only=True)
class Leaver:
    """A waiting request that could leave instead of another.

    `worth` is what its leaving costs, in nano-dollars per second of the engine's time; `prompt_tokens` are what the
    engine would be spared. `is_ahead` says that it is served before the request being decided: else its leaving would
    not help that one.
    """

    request_id: str
    worth: float
    prompt_tokens: int
    is_ahead: bool = True


@value(frozen=True, slots=True, kw_only=True)
class QueueLoad:
    """The node's own queue in front of the engine, as seen by the request being decided: what is ahead of it.

    `depth` counts all who wait there; `waited` is true when the request being decided is one of them, `kept` when it
    has been kept past its last safe moment. `prompt_tokens_ahead` are those the engine will have to compute,
    `kv_tokens_ahead` those the KV cache will have to hold, `entering_tokens` those of requests handed over
    that the engine does not count yet. `pinned_per_s` sequences with `pinned_tokens_per_s` prompt tokens came lately of
    those who cannot leave, and go before all who can. `cheapest` is the waiting request that may still leave safely
    and whose leaving costs least per second of the engine's time.
    """

    depth: int = 0
    waited: bool = False
    kept: bool = False
    sequences_ahead: int = 0
    prompt_tokens_ahead: int = 0
    kv_tokens_ahead: int = 0
    entering_tokens: int = 0
    pinned_per_s: float = 0.0
    pinned_tokens_per_s: float = 0.0
    reserved_sequences: float = 0.0
    reserved_kv_tokens: float = 0.0
    growth_tokens: float = 0.0
    cheapest: Leaver | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudOption:
    """One declared cloud equivalent of the model, as it stands now; one in zone `premises` may have pinned work.

    `ttft_high_s` is a high percentile of its measured time to first token, `ttft_likely_s` the median; before the first
    measurements the settings' assumption stands in for both. `available` is false while the provider is paused,
    isolated or its breaker open. `price` None means unknown, and an unknown price is never spent.
    """

    provider: str
    model: str
    capabilities: frozenset[Capability]
    context_tokens: int
    max_output_tokens: int | None
    price: Price | None
    ttft_high_s: float
    ttft_likely_s: float
    available: bool = True
    weight: float = 1.0
    zone: Zone = Zone.CLOUD


@value(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything routing looks at beside the request. A missing engine (`None`) means a cloud-only model."""

    engine: EngineLoad | None
    queue: QueueLoad = QueueLoad()
    cloud: tuple[CloudOption, ...] = ()
    vram_free_bytes: int | None = None
    cached: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The operator's settings that routing obeys. The first three are hard limits: beyond them load counts as exceeded.

    `feed_ahead` is how many sequences beyond `max_sequences` the engine may hold, so that it never idles between two of
    ours; None: an eighth of them. `feed_s` is how long a step full of prompts may take (None: a fifth of the request's
    TTFT budget, up to 0.6 s): no more is handed over than keeps such steps going, and the rest waits in the node's own
    queue, where it can still be overtaken and leave.
    `kv_share` is how much of the KV cache is filled: the rest is left for what runs to grow into beyond what is
    expected, except that those who cannot leave may have a part of it. `wait_doubt` is the share added to a wait for
    others to finish, which is known only on average. `margin_s` is taken off the last safe moment for our own work.
    `tpot_budget_s` bounds how many sequences may decode together: a step with that many takes no longer.
    """

    max_queue_depth: int | None = None
    max_kv_cache_usage: float | None = 0.98
    min_free_vram_bytes: int | None = None
    feed_ahead: int | None = None
    feed_s: float | None = None
    kv_share: float = 0.92
    wait_doubt: float = 0.2
    margin_s: float = 0.1
    tpot_budget_s: float | None = None


@value(frozen=True, slots=True)
class Expectation:
    """At `made_at_s` the first token was expected `ttft_s` later."""

    made_at_s: float
    ttft_s: float


@value(frozen=True, slots=True, kw_only=True)
class Decision:
    """Where a request goes and why.

    `cloud` is set for `Target.CLOUD`. For `Target.WAIT`, `leave_at_s` is the last safe moment at which it must be
    decided again (None: it stays; ask again now and then, at `look_at_s` for one, and at `give_up_s`), and `worth` what
    its leaving would cost, in nano-dollars per second of the engine's time (None: it may not leave any more, or the
    engine is too cold to tell). `displaces` is a waiting request that leaves in this one's place. `predicted_ttft_s` is
    the local prediction, None when the engine is too cold to know; `expected`, for one that waited, what was predicted
    when it was told to wait, or to stay for good. `was_kept` says that it had been told that, whatever it does now.
    `retry_after_s` goes with `Target.REFUSE`.
    """

    target: Target
    reason: Reason
    cloud: CloudOption | None = None
    leave_at_s: float | None = None
    look_at_s: float | None = None
    worth: float | None = None
    displaces: str | None = None
    predicted_ttft_s: float | None = None
    expected: Expectation | None = None
    was_kept: bool = False
    retry_after_s: float | None = None
