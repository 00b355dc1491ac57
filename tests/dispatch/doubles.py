"""An engine, a cloud and a house around them, all scripted: what they answer, and what they noticed."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from random import Random
from types import MappingProxyType

from node.backend import Backend, Call, Chunk, Kind
from node.catalogue import CloudEquivalent, LocalModel, Model
from node.dispatch.accounts import Entry, Settlement
from node.dispatch.conversations import Conversations
from node.dispatch.dispatcher import Answer, Dispatcher, ServedModel
from node.dispatch.hedging import Hedging
from node.dispatch.lane import Lane
from node.dispatch.outcome import Outcome
from node.dispatch.providers import Providers, ProviderState
from node.dispatch.standing import Standing
from node.errors import SpillwayError, Unaffordable
from node.money import Budget, Price, Usage
from node.routing.breaker import BreakerLimits
from node.routing.permit import EgressPermit
from node.routing.policy import OverflowPolicy, Policy
from node.routing.profile import StepModel
from node.routing.retry_budget import RetryBudget, RetryLimits
from node.routing.targets import TargetsPolicy
from node.routing.ttft import ProviderTtft
from node.routing.values import EngineLoad, EngineState, Features, Limits, Residency, Zone
from tests.dispatch.virtual_time import now_s
from tests.routing.stories import REQUEST

PRICE = Price(Decimal(1), Decimal(2))
ROLE = Chunk(b"role;")
HELLO = Chunk(b"hello;", has_content=True, output_tokens=1)
END = Chunk(b"end;", output_tokens=1, usage=Usage(10, 1), finish_reason="stop")

Step = Chunk | SpillwayError | float
"""What a backend does next: yield a chunk, fail, or take so many seconds."""
WHOLE: tuple[Step, ...] = (ROLE, HELLO, END)


class ScriptedBackend:
    """Plays its script. `opened` and `closed` count the streams that began and that were let go, whatever the way."""

    def __init__(self, name: str, script: Sequence[Step] = WHOLE, *, counted: Usage | None = None) -> None:
        self.name = name
        self.served_model = f"{name}-model"
        self.script = script
        self.counted = counted
        self.opened = 0
        self.closed = 0

    async def open(self, call: Call) -> AsyncGenerator[Chunk, None]:
        """The script, step by step."""
        self.opened += 1
        try:
            for step in self.script:
                if isinstance(step, SpillwayError):
                    raise step
                if isinstance(step, Chunk):
                    yield step
                else:
                    await asyncio.sleep(step)
        finally:
            self.closed += 1

    def usage_so_far(self) -> Usage | None:
        """What the story says it has counted."""
        return self.counted


@dataclass
class ScriptedEngine:
    """A local engine with a given load: too cold to predict, unless told how long its steps take.

    `asked` counts how often its load was asked for, `left` how many went to the cloud.
    """

    serves: ScriptedBackend = field(default_factory=lambda: ScriptedBackend("local"))
    state: EngineState = EngineState.READY
    slots: int = 2
    step: StepModel | None = None
    sequences_per_s: float | None = None
    asked: int = 0
    left: int = 0

    def load(self, in_flight: int) -> EngineLoad:
        """With no step model only its state and its slots count."""
        self.asked += 1
        return EngineLoad(
            state=self.state,
            capabilities=frozenset(),
            context_tokens=4096,
            max_sequences=self.slots,
            in_flight=in_flight,
            running=min(in_flight, self.slots),
            step=self.step,
            sequences_per_s=self.sequences_per_s,
            ttft_doubt=0.0,
            queue_doubt=0.0,
        )

    def leaves(self) -> None:
        """Another one goes to the cloud."""
        self.left += 1

    def backend(self) -> Backend:
        """The one scripted backend."""
        return self.serves


@dataclass
class ScriptedProvider:
    """A provider with one scripted backend; it keeps the permits it was shown."""

    serves: ScriptedBackend
    permits: list[EgressPermit] = field(default_factory=list)
    spent_s: list[float] = field(default_factory=list)

    def bind(
        self, equivalent: CloudEquivalent, permit: EgressPermit, *, prompt_tokens_estimate: int, spent_s: float
    ) -> Backend:
        """The one scripted backend."""
        self.permits.append(permit)
        self.spent_s.append(spent_s)
        return self.serves

    def first_content_s(self, model: str) -> float:
        """Half a minute."""
        return 30.0


class BookLedger:
    """A ledger in memory. With `refuses` nothing is admitted."""

    def __init__(self) -> None:
        self.available = True
        self.refuses: Unaffordable | None = None
        self.out: dict[str, Entry] = {}
        self.settled: dict[str, Settlement] = {}
        self.released: dict[str, Settlement] = {}
        self.noted: dict[str, tuple[Entry, Settlement]] = {}

    async def admit(self, entry: Entry, budget: Budget) -> None:
        """One turn of the loop later."""
        await asyncio.sleep(0)
        if self.refuses is not None:
            raise self.refuses
        assert entry.id not in self.out
        self.out[entry.id] = entry

    def settle(self, entry_id: str, settlement: Settlement) -> None:
        """Once only."""
        del self.out[entry_id]
        self.settled[entry_id] = settlement

    def release(self, entry_id: str, settlement: Settlement) -> None:
        """Once only."""
        del self.out[entry_id]
        self.released[entry_id] = settlement

    def note(self, entry: Entry, settlement: Settlement) -> None:
        """Once only."""
        assert entry.id not in self.noted
        self.noted[entry.id] = entry, settlement


class House:
    """One model, one engine, the named clouds, and every outcome that was reported.

    A provider takes 0.5 s at worst; with the budget of 2 s and no margin, the last safe moment is 1.5 s after arrival.
    """

    def __init__(
        self,
        engine: ScriptedEngine | None = None,
        clouds: Sequence[ScriptedBackend] = (),
        limits: Limits | None = None,
        policy: Policy | None = None,
        zones: Mapping[str, Zone] = MappingProxyType({}),
        hedging: Hedging | None = None,
        vram_free_bytes: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.outcomes: list[Outcome] = []
        self.ledger = BookLedger()
        self.engine = engine
        self.clouds = {cloud.name: ScriptedProvider(cloud) for cloud in clouds}
        self.random = Random(1).random
        self.providers = Providers(
            {
                name: ProviderState(cloud, 1.0, ProviderTtft(0.5), self._standing(name), zones.get(name, Zone.CLOUD))
                for name, cloud in self.clouds.items()
            },
            lambda: 0.0,  # of equals, the first
            may_spend=lambda: self.ledger.available,
        )
        self.model = Model(
            name="demo",
            summary="",
            local=LocalModel(source="demo", revision=None, context_tokens=4096, capabilities=frozenset()),
            cloud=tuple(_equivalent(name) for name in self.clouds),
            reference=PRICE,
        )
        self.lane = Lane(
            engine=engine,
            policy=policy or TargetsPolicy(OverflowPolicy(limits or Limits(feed_ahead=0, margin_s=0.0))),
            cloud_options=lambda failed: self.providers.options_for(self.model, now_s(), failed),
            vram_free_bytes=vram_free_bytes,
            clock=now_s,
        )
        self.conversations = Conversations(now_s)
        self.dispatcher = Dispatcher(
            served={"demo": ServedModel(self.model, self.lane)},
            providers=self.providers,
            conversations=self.conversations,
            retries=RetryBudget(RetryLimits()),
            ledger=self.ledger,
            random=self.random,
            clock=now_s,
            on_outcome=self.outcomes.append,
            hedging=hedging,
        )

    async def answer(self, request: Features = REQUEST, *, stream: bool = True) -> Answer:
        """The answer to `request`, once it has begun."""
        return await self.dispatcher.answer(call_for(request, stream=stream), request)

    def _standing(self, name: str) -> Standing:
        return Standing(name, self.random, BreakerLimits(), slow_s=10.0)

    @property
    def outcome(self) -> Outcome:
        """The one outcome there is."""
        (outcome,) = self.outcomes
        return outcome


def _equivalent(provider: str) -> CloudEquivalent:
    return CloudEquivalent(
        provider=provider,
        model=f"{provider}-model",
        context_tokens=100_000,
        max_output_tokens=None,
        capabilities=frozenset(),
        price=PRICE,
        priced_on=None,
    )


def call_for(request: Features, *, stream: bool = True) -> Call:
    """The call that goes with `request`."""
    return Call(
        request_id=request.request_id,
        kind=Kind.CHAT,
        model=request.model,
        body={},
        stream=stream,
        include_usage=True,
        max_output_tokens=request.max_output_tokens,
        created_s=0,
        tenant="t",
    )


def named(name: str, *, pinned: bool = False, arrived_s: float = 1000.0, choices: int = 1) -> Features:
    """A request of that name."""
    return replace(
        REQUEST,
        request_id=name,
        residency=Residency.PREMISES if pinned else Residency.ANY,
        arrived_s=arrived_s,
        give_up_s=arrived_s + 60,
        choices=choices,
    )


async def read(answer: Answer) -> bytes:
    """Everything in `answer`, which is then closed."""
    try:
        return b"".join([chunk.data async for chunk in answer])
    finally:
        await answer.aclose()
