"""Part three: what durable accounting costs: the node as it is, beside the same node that writes nothing down.

Requests per second are those of 64 connections that are always busy. There, a request takes 64 times what one costs,
whatever it waits for; so what accounting adds to the latency is measured on 64 connections that pause.

This file is the second one: ``python _ledger_cost.py serve --config FILE`` runs a node whose ledger forgets at once. It
exists in no other place: a node without a ledger is not to be had.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _harness import gateways, wrk
from _harness.node import start_node
from _harness.process import Service, free_port, running, settle, usage
from _harness.rounds import abba
from _harness.stats import median, median_difference, median_ratio
from _overhead import node_config, post, verify

import node.app
import node.cli
from node.dispatch.accounts import Entry, Settlement
from node.money import Budget

ARMS = ("durable", "forgetful")
_CONNECTIONS = 64
# Of what the node without a ledger can do: as busy as one would run a server.
_PACED_SHARE = 0.4


class ForgetfulLedger:
    """Admits everything and writes nothing."""

    available = True
    node = "forgetful"
    forgotten = 0

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def document(self) -> dict[str, Any]:
        return {}

    async def admit(self, entry: Entry, budget: Budget) -> None:
        pass

    def settle(self, entry_id: str, settlement: Settlement) -> None:
        pass

    release = settle

    def note(self, entry: Entry, settlement: Settlement) -> None:
        pass

    def audit(self, row: object) -> None:
        pass


@dataclass(frozen=True)
class Cell:
    """One arm in one round at 64 connections."""

    arm: str
    window: wrk.Window
    cpu_s: float
    paced: wrk.Window


@dataclass(frozen=True)
class Cost:
    """Medians over rounds: what accounting leaves of the requests per second, and what it adds at p50 of the paced."""

    throughput_ratio: float | None
    added_p50_s: float | None
    durable_per_s: float | None
    forgetful_per_s: float | None
    durable_cpu_s: float | None
    forgetful_cpu_s: float | None
    durable_paced_p50_s: float | None
    forgetful_paced_p50_s: float | None
    paced_per_s: float | None


@contextmanager
def _arm(arm: str, folder: Path, upstream: Service) -> Iterator[Service]:
    port, mine = free_port(), folder / arm
    (mine / "catalogue").mkdir(parents=True)
    config = node_config(upstream, port, mine / "catalogue")
    env = {"SPILLWAY_DATA": str(mine / "data")}
    if arm == "durable":
        with start_node(config, env, directory=mine, port=port) as service:
            yield service
        return
    (mine / "spillway.yaml").write_text(config)
    with running(
        "the node without a ledger",
        [sys.executable, __file__, "serve", "--config", str(mine / "spillway.yaml")],
        url=f"http://127.0.0.1:{port}", ready_path="/readyz", log=mine / "node.log", env={"HOME": str(mine), **env},
    ) as service:  # fmt: skip
        yield service


def measure(folder: Path, *, rounds: int, window_s: float) -> tuple[Cost, list[Cell]]:
    """Both arms in alternating rounds at 64 connections."""
    folder.mkdir()
    with ExitStack() as stack:
        upstream = stack.enter_context(gateways.static_upstream(folder))
        services = {arm: stack.enter_context(_arm(arm, folder, upstream)) for arm in ARMS}
        for service in services.values():
            verify(service)
            post(service, _CONNECTIONS, 2.0)
            settle(service.pid)
        pause_s = _CONNECTIONS / (_PACED_SHARE * post(services["forgetful"], _CONNECTIONS, window_s).requests_per_s)
        cells = []
        for _, arm in abba(list(ARMS), rounds):
            service = services[arm]
            before = usage(service.pid)
            window = post(service, _CONNECTIONS, window_s)
            after = usage(service.pid)
            settle(service.pid)
            paced = wrk.load(
                f"{service.url}/v1/chat/completions", gateways.QUESTION,
                connections=_CONNECTIONS, duration_s=window_s, pause_s=pause_s,
            )  # fmt: skip
            cells.append(Cell(arm, window, after.cpu_s - before.cpu_s, paced))
            settle(service.pid)
    ours = [cell for cell in cells if cell.arm == "durable"]
    others = [cell for cell in cells if cell.arm == "forgetful"]
    return Cost(
        throughput_ratio=median_ratio(
            [each.window.requests_per_s for each in ours], [each.window.requests_per_s for each in others]
        ),
        added_p50_s=median_difference([each.paced.p50_s for each in ours], [each.paced.p50_s for each in others]),
        durable_per_s=median(each.window.requests_per_s for each in ours),
        forgetful_per_s=median(each.window.requests_per_s for each in others),
        durable_cpu_s=median(each.cpu_s / each.window.requests for each in ours if each.window.requests),
        forgetful_cpu_s=median(each.cpu_s / each.window.requests for each in others if each.window.requests),
        durable_paced_p50_s=median(each.paced.p50_s for each in ours),
        forgetful_paced_p50_s=median(each.paced.p50_s for each in others),
        paced_per_s=median(each.paced.requests_per_s for each in ours),
    ), cells


if __name__ == "__main__":
    setattr(node.app, "SqlLedger", ForgetfulLedger)  # noqa: B010, the name is that module's own
    raise SystemExit(node.cli.main())
