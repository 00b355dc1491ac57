"""Nodes that start in a moment: this process has imported everything, and forks for each one.

Lines of JSON on standard input, one answer each on standard output:

    {"config": FILE, "log": FILE, "failpoint": NAME or null, "after": N}   a node; answers {"pid": N}
    {"wait": PID}                                                          answers {"status": N} once it has ended

With a failpoint the node kills itself (SIGKILL) when it gets there for the Nth time. They are put around the node's
own functions here: the node knows nothing of them.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import node.cli
import node.serve
from node.cloud.answer import Answer
from node.cloud.gate import EgressGate
from node.store.ledger import SqlLedger


class Countdown:
    """Ends this process at the Nth call."""

    def __init__(self, after: int) -> None:
        self._left = after

    def __call__(self) -> None:
        self._left -= 1
        if self._left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


def _around(owner: type, name: str, before: Callable[[], None] | None, after: Callable[[], None] | None) -> None:
    plain = getattr(owner, name)

    @functools.wraps(plain)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        if before is not None:
            before()
        result = plain(*arguments, **named)
        if after is not None:
            after()
        return result

    setattr(owner, name, wrapped)


def _around_async(owner: type, name: str, before: Callable[[], None] | None, after: Callable[[], None] | None) -> None:
    plain = getattr(owner, name)

    @functools.wraps(plain)
    async def wrapped(*arguments: Any, **named: Any) -> Any:
        if before is not None:
            before()
        result = await plain(*arguments, **named)
        if after is not None:
            after()
        return result

    setattr(owner, name, wrapped)


FAILPOINTS: dict[str, Callable[[Countdown], None]] = {
    "before the reservation is committed": lambda end: _around(SqlLedger, "_commit", end, None),
    "after the commit, before anybody is told": lambda end: _around(SqlLedger, "_commit", None, end),
    "after the reservation, before the request is sent": lambda end: _around_async(EgressGate, "send", end, None),
    "after the provider's status line": lambda end: _around_async(EgressGate, "send", None, end),
    "in the middle of an answer": lambda end: _around_async(Answer, "read", None, end),
    "at the end of an answer, before it is settled": lambda end: _around(SqlLedger, "settle", end, None),
    "settled, before that is committed": lambda end: _around(SqlLedger, "settle", None, end),
}


def _serve(order: dict[str, Any]) -> None:
    """In the child."""
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.setpgid(0, 0)
    if order["failpoint"] is not None:
        FAILPOINTS[order["failpoint"]](Countdown(order["after"]))
    os._exit(node.cli.main(["serve", "--config", order["config"]]))


def main() -> None:
    """Until standard input ends."""
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            answer = {"status": os.waitpid(order["wait"], 0)[1]}
        elif (pid := os.fork()) == 0:
            _serve(order)
        else:
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
