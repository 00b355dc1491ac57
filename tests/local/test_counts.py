"""vLLM's own metrics as the node offers them: what a scrape finds, also in the middle of answers."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from node.local.counts import EngineCounts
from node.local.outputs import Tally
from node.metrics.vllm import VllmMetrics


def said(counts: EngineCounts | None) -> list[str]:
    registry = CollectorRegistry()
    registry.register(VllmMetrics({"demo": lambda: counts}))
    return [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]


def test_tokens_of_answers_under_way_are_counted_and_those_of_ended_ones_stay() -> None:
    counts = EngineCounts()
    tally, other = Tally(), Tally()
    with counts.counting(tally):
        tally.prompt_tokens, tally.output_tokens = 10, 3
        assert (counts.prompt_tokens, counts.output_tokens) == (10, 3)
        with counts.counting(other):
            other.output_tokens = 4
        assert counts.output_tokens == 7
        tally.output_tokens = 5
    assert (counts.prompt_tokens, counts.output_tokens) == (10, 9)


def test_scrape_has_vllms_names_and_labels() -> None:
    counts = EngineCounts()
    for _ in range(2):
        counts.stepped(running=3, waiting=2, deferred=1, kv_cache_usage=0.5, queries=100, hits=40)
    counts.ended("stop")
    of = '{engine="0",model_name="demo"'
    assert {
        f"vllm:num_requests_running{of}}} 3.0",
        f"vllm:num_requests_waiting{of}}} 3.0",
        f'vllm:num_requests_waiting_by_reason{of},reason="capacity"}} 2.0',
        f"vllm:kv_cache_usage_perc{of}}} 0.5",
        f"vllm:prefix_cache_queries_total{of}}} 200.0",
        f"vllm:prefix_cache_hits_total{of}}} 80.0",
    } <= set(said(counts))
    assert 'vllm:request_success_total{engine="0",finished_reason="stop",model_name="demo"} 1.0' in said(counts)


def test_engine_that_does_not_serve_says_nothing() -> None:
    assert said(None) == []
