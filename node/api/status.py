"""What a node says of itself: whether it is ready, what it serves, and how everything in it stands."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from node.api.door import Door
from node.catalogue import Model
from node.dispatch.lane import Lane
from node.dispatch.providers import Providers
from node.guard import SocketGuard
from node.local.supervision import Supervision
from node.local.supervisor import Supervisor
from node.routing.values import EngineState
from node.store.cache import MemoryCache
from node.store.ledger import SqlLedger
from node.store.totals import Totals
from node.watch.host_watch import HostWatch
from node.watch.loop_watch import LoopWatch
from node.watch.watch import GpuWatch

Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The documents of `/readyz`, `/v1/models` and `/admin/stats`, from the parts they tell of; built in `node.app`.

    `models` are those of the moment; `engines` has those that run here.
    """

    models: Callable[[], Mapping[str, Model]]
    engines: Mapping[str, Supervisor]
    lanes: Mapping[str, Lane]
    providers: Providers
    totals: Totals
    cache: MemoryCache
    ledger: SqlLedger
    gpus: GpuWatch
    guard: SocketGuard
    door: Door
    host: HostWatch
    loop: LoopWatch
    clock: Callable[[], float]

    def readiness(self) -> Document:
        """Whether every served model has somewhere to go, and each engine's state and life. Not while the node ends.

        An engine that starts for the first time is waited for; after that the cloud may stand in for it.
        """
        now_s = self.clock()
        routes: dict[str, Document] = {}
        for name, model in self.models().items():
            engine = self.engines.get(name)
            cloud = any(
                option.available and option.price is not None
                for option in self.providers.options_for(model, now_s, frozenset())
            )
            routes[name] = {
                "engine": engine.state.value if engine else None,
                "cloud": cloud,
                "supervision": engine.document() if engine else None,
                "ready": has_a_route(engine.supervision if engine else None, cloud),
            }
        ready = all(route["ready"] for route in routes.values())
        return {"ready": ready and not self.door.closed, "draining": self.door.closed, "models": routes}

    def model_list(self) -> Document:
        """The OpenAI model list, with the context each model really has here."""
        data = []
        for name, model in self.models().items():
            supervisor = self.engines.get(name)
            if supervisor is not None:
                context: int | None = supervisor.engine.context_tokens
            else:
                context = max((each.context_tokens for each in model.cloud), default=None)
            data.append({"id": name, "object": "model", "created": 0, "owned_by": "spillway", "max_model_len": context})
        return {"object": "list", "data": data}

    def stats(self) -> Document:
        """Totals, cache, queues, engines and GPUs at this moment."""
        gpus = self.gpus.state()
        return {
            **self.totals.document(),
            "cache": {"entries": len(self.cache), "bytes": self.cache.used_bytes},
            "queues": {name: lane.depth for name, lane in self.lanes.items()},
            "providers": self.providers.document(self.clock()),
            "ledger": self.ledger.document(),
            "sockets": self.guard.document(),
            "door": {
                "inside": self.door.inside,
                "held_bytes": self.door.held_bytes,
                "turned_away": dict(sorted(self.door.turned_away.items())),
                "strain": dataclasses.asdict(self.host.strain()),
            },
            "loop": self.loop.document(),
            "engines": {name: _engine_document(lane) for name, lane in self.lanes.items() if lane.engine is not None},
            "supervision": {name: engine.document() for name, engine in self.engines.items()},
            "gpus": None if gpus.gpus is None else [dataclasses.asdict(gpu) for gpu in gpus.gpus],
            "no_gpu_because": gpus.reason,
        }


def has_a_route(engine: Supervision | None, cloud: bool) -> bool:
    """Whether a model can be served: by its engine, None where it has none, or where `cloud` may stand in for it."""
    if engine is None:
        return cloud
    if engine.state is EngineState.STARTING and engine.starts == 1:
        return False
    return engine.state is EngineState.READY or cloud


def _engine_document(lane: Lane) -> Document:
    assert lane.engine is not None
    document = dataclasses.asdict(lane.engine.load(lane.in_flight))
    del document["capabilities"]
    return document
