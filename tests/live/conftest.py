from __future__ import annotations

import os
from pathlib import Path

import pytest

from node.catalogue import LocalModel
from node.routing.values import Capability

# Left to itself vLLM computes on one core of two, and every engine on the same one. Two engines at a time, of two
# workers of pytest (`scripts/test`), get one each.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    _cores = sorted(os.sched_getaffinity(0))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", str(_cores[int(worker.removeprefix("gw")) % len(_cores)]))


@pytest.fixture(scope="session")
def demo_model() -> LocalModel:
    """The shipped model, started without compilation, with few and short sequences."""
    return LocalModel(
        source=str(Path(__file__).resolve().parents[2] / "models" / "demo"),
        revision=None,
        context_tokens=512,
        capabilities=frozenset(Capability) - {Capability.VISION, Capability.AUDIO},
        tool_parser="hermes",
        engine_args={
            "enforce_eager": True,
            "max_num_seqs": 8,
            # A grammar that allows any white space lets a small model write nothing else.
            "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        },
    )
