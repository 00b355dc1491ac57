import _overhead
import pytest
from _harness.wrk import Window


def cell(arm: str, connections: int, round_: int, *, p50_s: float, requests: int) -> _overhead.Cell:
    window = Window(requests, 2.0, 0, p50_s, p50_s * 2, 0.1)
    return _overhead.Cell(arm, connections, round_, window, cpu_s=1.0, rss_bytes=2**20)


CELLS = [
    cell("upstream", 1, 0, p50_s=0.0001, requests=9000),
    cell("node", 1, 0, p50_s=0.0006, requests=1500),
    cell("node", 64, 0, p50_s=0.05, requests=1300),
    cell("litellm", 64, 0, p50_s=0.5, requests=100),
]


def test_bars_compare_the_node_with_litellm_and_with_the_upstream_alone() -> None:
    throughput, added, failed = _overhead.bars(CELLS)
    assert throughput.measured == 13
    assert throughput.met
    assert added.measured == pytest.approx(0.5)
    assert added.met
    assert failed.met


def test_a_bench_without_the_node_meets_none_of_its_bars() -> None:
    throughput, added, _ = _overhead.bars([c for c in CELLS if c.arm != "node"])
    assert not throughput.met
    assert not added.met


def test_the_table_has_a_row_per_arm() -> None:
    shown = _overhead.summary(CELLS, ["node", "litellm"], 64)
    assert "| node" in shown
    assert "650" in shown
