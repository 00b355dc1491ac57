"""`spillway serve` that also writes down what became of each request: CONFIG and OUTCOMES (a file) as arguments."""

import json
import sys
from pathlib import Path
from typing import Any, TextIO

from node import serve
from node.app import Node
from node.dispatch.outcome import Outcome
from node.settings import load_settings


def recording(into: TextIO) -> type[Node]:
    """A node that writes a line for each outcome."""

    class Recording(Node):
        def _on_outcome(self, outcome: Outcome) -> None:
            super()._on_outcome(outcome)
            line: dict[str, Any] = {
                "request_id": outcome.request_id,
                "queue_s": outcome.queue_s,
                "predicted_ttft_s": outcome.predicted_ttft_s,
                "ttft_s": outcome.ttft_s,
            }
            print(json.dumps(line), file=into, flush=True)

    return Recording


def main() -> None:
    """Serves until told to stop."""
    config, outcomes = map(Path, sys.argv[1:])
    with outcomes.open("w") as into:
        serve.Node = recording(into)  # type: ignore[attr-defined]
        serve.serve(load_settings(config), load=lambda: load_settings(config), where=str(config))


if __name__ == "__main__":
    main()
