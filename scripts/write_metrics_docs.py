#!/usr/bin/env python3
"""Write the tables of docs/metrics.md from what a node offers, so that the page cannot drift from the code."""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from prometheus_client.core import Metric

from node.app import Node
from node.settings import Settings

_PAGE = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"
_LISTED = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def page(text: str) -> str:
    """`text` with its tables as they should be."""
    families = list(Node(Settings(), environ={}).metrics.registry.collect())
    return _LISTED.sub(
        lambda found: found[1] + _table(each for each in families if _is_of(each, found[2])) + found[3], text
    )


def _is_of(family: Metric, group: str) -> bool:
    return family.name.startswith(group)


def _table(families: Iterable[Metric]) -> str:
    rows = [f"| `{_name(each)}` | {_labels(each)} | {each.documentation} |\n" for each in families]
    return "".join(["| metric | labels | what |\n|---|---|---|\n", *sorted(rows)])


def _name(family: Metric) -> str:
    return family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")


def _labels(family: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in getattr(family, "_labelnames", ()))
    return f"{labels} (histogram)".strip() if family.type == "histogram" else labels


if __name__ == "__main__":
    before = _PAGE.read_text()
    after = page(before)
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if after == before else "docs/metrics.md is stale: run scripts/write_metrics_docs.py")
    _PAGE.write_text(after)
