"""The plain values routing thinks with. Times are monotonic seconds, money integer nano-dollars."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from node.money import Price


class Residency(StrEnum):
    """Where a request's bytes may go."""

    PREMISES = "premises"
    ANY = "any"


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
    SLOT_OPENED = "slot_opened"
    PREFERS_LOCAL = "prefers_local"
    LOCAL_ONLY_FEATURE = "local_only_feature"
    NO_CLOUD_EQUIVALENT = "no_cloud_equivalent"
    CLOUD_FAILED = "cloud_failed"
    # sent to the cloud
    PREDICTED_LATE = "predicted_late"
    LAST_MOMENT = "last_moment"
    QUEUE_DEPTH = "queue_depth"
    KV_CACHE_USAGE = "kv_cache_usage"
    LOW_VRAM = "low_vram"
    ENGINE_NOT_READY = "engine_not_ready"
    CLOUD_ONLY_FEATURE = "cloud_only_feature"
    CLOUD_ONLY_MODEL = "cloud_only_model"
    LOCAL_FAILED = "local_failed"
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
    UNKNOWN_PRICE = "unknown_price"
    NO_PROVIDER = "no_provider"


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What routing may know of one request.

    `prompt_tokens_estimate` is the expected size (for time), `prompt_tokens_bound` an upper bound (for money).
    `max_output_tokens` is the effective cap for one choice. Budgets run from `arrived_s`. `give_up_s` is the latest
    time at which the node still starts the request: the client's own budget if it set one, else the settings' patience.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """The local engine at this moment. Rates are measured; None means not measured yet (a cold engine).

    `queued_prefill_tokens` are prompt tokens handed to the engine and not yet computed. `in_flight` counts
    sequences the node has given it and not got back; it is the node's own count, never stale, while `running`
    and `waiting` are the scheduler's, as of its last step. `sequences_per_s` is how fast sequences finish while
    it is full.
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
    prefill_tokens_per_s: float | None = None
    step_s: float | None = None
    sequences_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLoad:
    """The node's own queue in front of the engine, as seen by the request being decided: what is ahead of it.

    `depth` counts all who wait there; `waited` is true when the request being decided is one of them.
    """

    depth: int = 0
    waited: bool = False
    sequences_ahead: int = 0
    prompt_tokens_ahead: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudOption:
    """One declared cloud equivalent of the model, as it stands now.

    `ttft_high_s` is the high percentile of its measured time to first token; before the first measurement the
    settings' assumption stands in. `available` is false while the provider is paused, isolated or its breaker open.
    `price` None means unknown, and an unknown price is never spent.
    """

    provider: str
    model: str
    capabilities: frozenset[Capability]
    context_tokens: int
    max_output_tokens: int | None
    price: Price | None
    ttft_high_s: float
    available: bool = True
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
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

    `feed_ahead` is how many sequences beyond `max_sequences` the engine may hold, so that it never idles
    between two of ours. `margin_s` is taken off the last safe moment for our own work. `ttft_safety` (0 to 1]
    divides a predicted TTFT before it is compared with what is left of the budget: an untrained prediction is
    wrong by such factors, and a late local answer cannot be taken back.
    """

    max_queue_depth: int | None = None
    max_kv_cache_usage: float | None = 0.98
    min_free_vram_bytes: int | None = None
    feed_ahead: int = 1
    margin_s: float = 0.1
    ttft_safety: float = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Where a request goes and why.

    `cloud` is set for `Target.CLOUD`. For `Target.WAIT`, `leave_at_s` is the last safe moment at which it must be
    decided again (None: it cannot leave; ask again at `give_up_s`). `predicted_ttft_s` is the local prediction,
    None when the engine is too cold to know. `retry_after_s` goes with `Target.REFUSE`.
    """

    target: Target
    reason: Reason
    cloud: CloudOption | None = None
    leave_at_s: float | None = None
    predicted_ttft_s: float | None = None
    retry_after_s: float | None = None
