import json

import _local
import pytest
from _harness.process import Service


def cell(arm: str, round_: int, *, duration_s: float, api_cpu_s: float, failed: int = 0) -> _local.Cell:
    return _local.Cell(
        arm=arm,
        round=round_,
        requests=100,
        failed=failed,
        first_failure=None,
        duration_s=duration_s,
        api_cpu_s=api_cpu_s,
        ttft_p50_s=0.1,
        itl_p50_s=0.005,
        generator_cpu_share=0.2,
    )


CELLS = [
    cell("node", 0, duration_s=4, api_cpu_s=1),
    cell("vllm", 0, duration_s=5, api_cpu_s=2),
    cell("vllm", 1, duration_s=10, api_cpu_s=2),
    cell("node", 1, duration_s=8, api_cpu_s=1),
]


def test_bars_compare_the_node_with_vllm_within_each_round() -> None:
    throughput, cpu, failed = _local.bars(CELLS)
    assert throughput.measured == pytest.approx(1.25)
    assert cpu.measured == pytest.approx(0.5)
    assert throughput.met
    assert cpu.met
    assert failed.met


def test_a_node_slower_than_vllm_misses_its_bar() -> None:
    swapped = [cell("node", 0, duration_s=5, api_cpu_s=3), cell("vllm", 0, duration_s=4, api_cpu_s=2)]
    throughput, cpu, _ = _local.bars(swapped)
    assert not throughput.met
    assert not cpu.met


def test_failed_requests_are_no_throughput_and_miss_their_own_bar() -> None:
    broken = cell("node", 0, duration_s=10, api_cpu_s=1, failed=50)
    assert broken.requests_per_s == 5
    assert broken.cpu_per_request_s == pytest.approx(0.02)
    assert not _local.bars([broken, *CELLS[1:]])[2].met


def test_both_arms_are_asked_for_the_same_number_of_tokens_with_prompts_of_their_own() -> None:
    service = Service("node", 1, "http://127.0.0.1:1")
    first, second = (json.loads(_local.call(service, index).body) for index in (0, 1))
    assert first["max_tokens"] == _local.TOKENS
    assert first["ignore_eos"]
    assert first["messages"] != second["messages"]


def test_the_table_has_a_row_per_arm() -> None:
    shown = _local.summary(CELLS)
    assert "| node" in shown
    assert "| vllm" in shown
