"""What the pages show and no test does as it is written, each with the reason. Everything else is run."""

from __future__ import annotations

from typing import Final

NOT_RUN: Final = {
    # page, how the command begins: why it is only parsed, and its options looked up
    ("README.md", "scripts/serve"): "sets up .venv, and serves until it is stopped; tests/live starts what it starts",
    ("README.md", "scripts/test"): "runs the tests",
    ("docs/get-started.md", "scripts/serve"): "as above",
    ("README.md", "docker"): "needs Docker and a GPU",
    ("README.md", "scripts/demo"): "takes two minutes and an engine; tests/live/test_demo.py plays a short day",
    ("docs/demo.md", "scripts/demo"): "as above",
    ("docs/privacy.md", "sudo .venv/bin/spillway audit prove"): "takes minutes; tests/live/test_prove.py runs it",
    ("docs/top.md", "ssh"): "needs another machine",
    ("docs/top.md", "spillway top --url"): "looks at that machine; tests/dashboard/test_top.py gives it an address",
    ("docs/simulate.md", "spillway calibrate"): "takes more than a minute; tests/live/test_calibrate.py runs it",
}
"""Commands of shell blocks."""

ENDLESS: Final = {
    ("docs/dashboard.md", "curl -N"): "the feed lasts as long as the node",
}
"""Commands that are ended after a moment, and must have told of an event by then."""

SHOWN: Final = {
    ("README.md", "0:15  A burst"): "one day's terminal; tests/demo looks at what is printed",
    ("docs/engine.md", "starting"): "a drawing",
    ("docs/traces.md", "POST /v1"): "a drawing",
    ("docs/get-started.md", "Spillway listens"): "what `serve` says first; tests/docs/test_pages.py looks at it",
    ("docs/simulate.md", "step with 1 decoding"): "what `calibrate` prints; tests/test_calibrate.py looks at it",
    ("docs/simulate.md", "why overflow paid"): "an earlier version of the node, as the page says",
}
"""Blocks of text that nothing in a shell block prints."""

MAY_DIFFER: Final = {
    ("docs/get-started.md", "    128 holysheep"): "a fast machine may take all of them in time",
}
"""Lines of output that are not there on every machine. The commands are run, and the other lines looked at."""

ELSEWHERE: Final = {
    ("docs/architecture.md", "flowchart"): "tests/test_docs.py: every part of it is there",
    ("docs/cloud.md", "stateDiagram-v2"): "tests/test_docs.py: drawn from the breaker's table",
}
"""Blocks that another test holds."""
