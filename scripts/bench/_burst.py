"""Burst: far more streamed requests than a small engine can take at once, a fifth of them pinned to the premises.

The cloud is `python -m node.emulator`, a process with a log and a bill of its own: what leaves the node and what it
costs is read there, not from the node. Arrivals are an open loop at seeded random times, so that a slow answer delays
no later request; every time is the client's, from the planned arrival.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from pathlib import Path

from _harness import load, options
from _harness.emulator import Emulator, start_emulator
from _harness.node import read_stats, start_node
from _harness.process import CannotRun, Service, free_port, settle
from _harness.report import Bar, describe_machine, finish, number, table
from _harness.stats import percentile

TTFT_BUDGET_S = 2.0
MAX_TOKENS = 48
PINNED_SHARE = 0.2
MARKER = "KEEPONPREMISES"  # in every pinned prompt: it must not show up in the emulator's log
SMALL_BATCHES = (4, 2, 1)  # tried in this order, until what the engine can take is well below what arrives
WARM_UP_CALLS, CAPACITY_CALLS = 40, 120
MOST_OF_ARRIVALS = 0.6
UNPINNED = "ordinary"  # in every other prompt: it must show up there, or the log proves nothing
KEY_ENV, KEY = "BENCH_PROVIDER_KEY", "bench-provider-key"
STATS_WITHIN_S = 10.0
SUBJECTS = ("the queue", "the cache", "a token", "the engine", "the cloud", "a budget", "the bill", "streaming")


@dataclass(frozen=True)
class Plan:
    """How many bursts, and for each how many requests arrive within how many seconds; the rest is up to the seed."""

    bursts: int
    requests: int
    within_s: float
    max_num_seqs: int
    cloud_ttft_ms: float
    cloud_pace_ms: float
    seed: int


@dataclass(frozen=True)
class Request:
    """One request of a burst; `at_s` counts from the beginning of the burst."""

    at_s: float
    prompt: str
    pinned: bool


@dataclass(frozen=True)
class Answered:
    """What became of one request. All times in seconds from the beginning of its burst."""

    burst: int
    pinned: bool
    arrival_s: float
    first_token_s: float | None
    end_s: float
    backend: str
    reason: str
    model: str
    queue_ms: float | None
    status: int | None
    completion_tokens: int | None
    error: str | None

    @property
    def ok(self) -> bool:
        """Answered to the end."""
        return self.status == 200 and self.error is None

    @property
    def ttft_s(self) -> float | None:
        """An answer without any text has no first token: its end is taken, when all there was to say was known."""
        if not self.ok:
            return None
        return (self.end_s if self.first_token_s is None else self.first_token_s) - self.arrival_s

    @property
    def in_budget(self) -> bool:
        """Whether the promise was kept."""
        return self.ttft_s is not None and self.ttft_s <= TTFT_BUDGET_S


@dataclass(frozen=True)
class Books:
    """Both sides' books at the end: what the node says it spent, and what the emulator billed and logged."""

    spent_nano_usd: Decimal
    billed_nano_usd: int
    calls_billed: int
    pinned_logged: int
    unpinned_logged: int


def burst(plan: Plan, number_: int) -> list[Request]:
    """The requests of one burst, by arrival; another number gives other times and prompts."""
    chance = random.Random(plan.seed * 1000 + number_)
    arrivals = sorted(chance.uniform(0, plan.within_s) for _ in range(plan.requests))
    pinned = set(chance.sample(range(plan.requests), round(plan.requests * PINNED_SHARE)))
    return [
        Request(
            at_s,
            f"Please explain {chance.choice(SUBJECTS)} ({MARKER if index in pinned else UNPINNED} {number_}-{index}).",
            index in pinned,
        )
        for index, at_s in enumerate(arrivals)
    ]


def call(node: Service, request: Request) -> load.Call:
    """The request on the wire."""
    wishes = {"require_local": True} if request.pinned else {"ttft_budget_ms": TTFT_BUDGET_S * 1000}
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": request.prompt}],
        "max_tokens": MAX_TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
        "spillway": wishes,
    }
    return load.Call(f"{node.url}/v1/chat/completions", json.dumps(body).encode(), stream=True)


def answered(number_: int, requests: Sequence[Request], records: Sequence[load.Record]) -> list[Answered]:
    """The records of one burst, told in its own time."""
    told = []
    for request, record in zip(requests, records, strict=True):
        headers = {name.lower(): value for name, value in record.headers.items()}
        queue_ms = headers.get("x-spillway-queue-ms")
        told.append(
            Answered(
                burst=number_,
                pinned=request.pinned,
                arrival_s=record.start_s,
                first_token_s=None if record.ttft_s is None else record.start_s + record.ttft_s,
                end_s=record.start_s + record.end_s,
                backend=headers.get("x-spillway-backend", "none"),
                reason=headers.get("x-spillway-reason", "none"),
                model=headers.get("x-spillway-model", "none"),
                queue_ms=None if queue_ms is None else float(queue_ms),
                status=record.status,
                completion_tokens=None if record.usage is None else record.usage.get("completion_tokens"),
                error=record.error,
            )
        )
    return told


def node_config(cloud: Service, port: int, plan: Plan) -> str:
    """The demo model held to a small batch, the emulator in HolySheep's place, no answer from the cache."""
    return f"""listen: {{port: {port}}}
models: [demo]
engine: {{demo: {{max_num_seqs: {plan.max_num_seqs}}}}}
providers:
  holysheep: {{base_url: "{cloud.url}/v1", api_key_env: {KEY_ENV}, assumed_ttft_s: 1.0}}
cache: {{max_bytes: 0}}
"""


def capacity_per_s(node: Service, plan: Plan) -> float:
    """Requests per second the held engine can take, from pinned calls as fast as it answers them.

    The engine has run and knows its own pace afterwards. The cloud stays cold: the first overflow of the first burst
    finds no open connection and no measured TTFT.
    """
    rates = []
    for count in (WARM_UP_CALLS, CAPACITY_CALLS):
        prompts = [
            f"Please explain {SUBJECTS[each % len(SUBJECTS)]} ({MARKER} {count}-{each})." for each in range(count)
        ]
        calls = [call(node, Request(0, prompt, pinned=True)) for prompt in prompts]
        run = asyncio.run(load.closed_loop(calls.__getitem__, connections=plan.max_num_seqs + 2, requests=count))
        if failed := [record for record in run.records if not record.ok]:
            raise CannotRun(f"the node does not answer: {failed[0].status} {failed[0].error}")
        rates.append(count / run.duration_s)
        settle(node.pid)
    return rates[-1]


@contextmanager
def overloaded_node(emulator: Service, plan: Plan, directory: Path) -> Iterator[tuple[Service, Plan, float]]:
    """A node whose engine is held to so small a batch that the burst is too much for it on this machine.

    Gives the node, the plan with that batch, and what the engine can take per second. Raises CannotRun on a machine
    so fast that one sequence at a time is enough.
    """
    arriving_per_s = plan.requests / plan.within_s
    for max_num_seqs in SMALL_BATCHES:
        held = replace(plan, max_num_seqs=max_num_seqs)
        port = free_port()
        folder = directory / f"held-to-{max_num_seqs}"
        folder.mkdir()
        with start_node(node_config(emulator, port, held), {KEY_ENV: KEY}, directory=folder, port=port) as node:
            capacity = capacity_per_s(node, held)
            print(
                f"held to {max_num_seqs} sequences: takes {capacity:.0f} of {arriving_per_s:.0f} requests/s", flush=True
            )
            if capacity <= MOST_OF_ARRIVALS * arriving_per_s:
                yield node, held, capacity
                return
    raise CannotRun("this engine takes the whole burst one at a time; raise --requests or lower --within")


def read_books(node: Service, emulator: Emulator, requests: int) -> Books:
    """Both sides' books, once the node has closed all `requests`; raises CannotRun when it does not."""
    give_up_s = time.monotonic() + STATS_WITHIN_S
    while True:
        total = json.loads(read_stats(node), parse_float=Decimal)["total"]
        if total["requests"] >= requests:
            break
        if time.monotonic() > give_up_s:
            raise CannotRun(f"the node's totals tell of {total['requests']} requests, {requests} were sent")
        time.sleep(0.1)
    bill, log = emulator.bill(), emulator.log_lines()
    return Books(
        spent_nano_usd=Decimal(total["spent_usd"]) * 10**9,
        billed_nano_usd=sum(record["cost_nano_usd"] for record in bill),
        calls_billed=len(bill),
        pinned_logged=sum(MARKER in line for line in log),
        unpinned_logged=sum(UNPINNED in line for line in log),
    )


def summary(all_of_them: Sequence[Answered]) -> str:
    """Who was answered where, and how soon."""
    backends = sorted({a.backend for a in all_of_them})
    groups = [(name, [a for a in all_of_them if a.backend == name and not a.pinned]) for name in backends]
    groups += [(f"{name}, pinned", [a for a in all_of_them if a.backend == name and a.pinned]) for name in backends]
    groups += [("all unpinned", [a for a in all_of_them if not a.pinned]), ("all", list(all_of_them))]
    rows = []
    for name, members in ((name, members) for name, members in groups if members):
        ttfts_s = [a.ttft_s for a in members if a.ttft_s is not None]
        rows.append(
            [
                name,
                str(len(members)),
                *(number(percentile(ttfts_s, q)) for q in (50, 95, 99, 100)),
                f"{sum(a.in_budget for a in members) / len(members):.1%}",
                str(sum(not a.ok for a in members)),
            ]
        )
    header = [
        "answered by",
        "requests",
        "TTFT p50 s",
        "p95 s",
        "p99 s",
        "max s",
        f"TTFT ≤ {TTFT_BUDGET_S:g} s",
        "failed",
    ]
    return table(header, rows)


def reasons(all_of_them: Sequence[Answered]) -> str:
    """Why they went where they went."""
    counted = Counter((a.reason, a.backend) for a in all_of_them)
    rows = [[reason, backend, str(count)] for (reason, backend), count in counted.most_common()]
    return table(["reason", "answered by", "requests"], rows)


def share_in_budget(all_of_them: Sequence[Answered]) -> float | None:
    """Of the worst burst: the share of its unpinned requests whose first token came in time, in percent."""
    free = [a for a in all_of_them if not a.pinned]
    bursts = [[a for a in free if a.burst == number_] for number_ in {a.burst for a in free}]
    shares = [100 * sum(a.in_budget for a in of_burst) / len(of_burst) for of_burst in bursts]
    return min(shares, default=None)


def bars(all_of_them: Sequence[Answered], books: Books) -> list[Bar]:
    """The promises of this bench."""
    difference = abs(books.spent_nano_usd - books.billed_nano_usd)
    return [
        Bar("requests not answered to the end", sum(not a.ok for a in all_of_them), 0, "requests", at_least=False),
        Bar(
            f"unpinned requests with their first token within {TTFT_BUDGET_S:g} s, worst burst",
            share_in_budget(all_of_them),
            99,
            "%",
            at_least=True,
        ),
        Bar("pinned prompts in the emulator's log", books.pinned_logged, 0, "prompts", at_least=False),
        Bar("unpinned prompts in the emulator's log", books.unpinned_logged, 1, "prompts", at_least=True),
        Bar("the node's spend beside the emulator's bill", float(difference), 0, "nano-dollars apart", at_least=False),
    ]


def run(arguments: argparse.Namespace) -> int:
    """Starts both, sends the bursts, reports, and gives the exit status."""
    plan = Plan(
        bursts=1 if arguments.quick else 3,
        requests=arguments.requests,
        within_s=arguments.within,
        max_num_seqs=SMALL_BATCHES[0],
        cloud_ttft_ms=350,
        cloud_pace_ms=12,
        seed=arguments.seed,
    )
    machine = describe_machine()
    print(machine)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spillway-bench-")))
        spoken = [f"--ttft-ms={plan.cloud_ttft_ms}", f"--pace-ms={plan.cloud_pace_ms}", f"--seed={plan.seed}"]
        emulator = stack.enter_context(start_emulator(spoken, api_key=KEY, directory=directory))
        node, plan, capacity = stack.enter_context(overloaded_node(emulator.service, plan, directory))
        sent = WARM_UP_CALLS + CAPACITY_CALLS
        done: list[Answered] = []
        busiest = 0.0
        for number_ in range(plan.bursts):
            requests = burst(plan, number_)
            measured = asyncio.run(load.open_loop([(r.at_s, call(node, r)) for r in requests]))
            done += answered(number_, requests, measured.records)
            busiest = max(busiest, measured.generator_cpu_share)
            sent += len(requests)
            settle(node.pid)
        books = read_books(node, emulator, sent)
    print(
        f"\n{plan.bursts} x {plan.requests} requests within {plan.within_s:g} s, the engine held to "
        f"{plan.max_num_seqs} sequences ({capacity:.0f} requests/s), "
        f"the cloud's first token after {plan.cloud_ttft_ms:g} ms (median)"
    )
    print(f"\n{summary(done)}\n\n{reasons(done)}\n")
    print(
        f"the node spent {books.spent_nano_usd.normalize():f} nano-dollars; the emulator billed "
        f"{books.billed_nano_usd} for {books.calls_billed} calls"
    )
    print(f"the load generator used at most {busiest:.0%} of one core")
    for failed in [a for a in done if not a.ok][:5]:
        print(f"failed: {failed.status} {failed.error}", file=sys.stderr)
    return finish(
        bars(done, books),
        check=arguments.check,
        json_path=arguments.json,
        machine=machine,
        figures={
            "bench": "burst",
            "plan": asdict(plan),
            "ttft_budget_s": TTFT_BUDGET_S,
            "capacity_per_s": capacity,
            "books": {**asdict(books), "spent_nano_usd": f"{books.spent_nano_usd.normalize():f}"},
            "timeline": [asdict(a) for a in done],
        },
    )


def main() -> int:
    """Reads the options; 0 done, 1 a bar was missed (with --check), 2 the bench cannot run here."""
    parser = options.parser("A burst of streamed requests against an engine held to a small batch, and its bill.")
    parser.add_argument("--requests", type=int, default=200, metavar="N", help="per burst (default: %(default)s)")
    parser.add_argument("--within", type=float, default=5.0, metavar="S", help="seconds (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of times and prompts (default: %(default)s)")
    arguments = parser.parse_args()
    return options.main(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
