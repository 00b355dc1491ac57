"""vLLM's own objects for one engine: made as `vllm serve` makes them, and given back when it has ended."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from node.catalogue import LocalModel
from node.local import arguments
from node.local.outputs import CountedEngine
from node.local.processes import spawning_apart
from node.local.scratch import Scratch
from node.local.serving import Serving


def build_engine(
    model_name: str,
    model: LocalModel,
    *,
    cuda: bool,
    scratch: Scratch,
    report: Callable[[Any], None],
    on_imported: Callable[[], None],
) -> tuple[Any, Any]:
    """The engine, and the arguments it was built with. Its sockets lie in `scratch`. `report` gets the
    scheduler's statistics of each step.

    For a thread: importing vLLM and building the engine take tens of seconds; `on_imported` is called in between.
    vLLM's sockets and queues bind to an event loop at first use, so that is to be on ours, after this has returned.
    Raises `SettingsError` for a catalogue entry that vLLM cannot take.
    """
    os.environ.update(arguments.environment(model, os.environ))
    arguments.check_torchvision()
    args = arguments.parse(model_name, arguments.command_line(model_name, model, cuda=cuda))
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    on_imported()
    with arguments.refusals_named(model_name, model):
        engine_args = AsyncEngineArgs.from_cli_args(args)
        config = engine_args.create_engine_config(UsageContext.ENGINE_CONTEXT)
    factory = _stat_logger(report)
    with (
        arguments.failures_named(model_name, model),
        _environ(scratch.for_the_engine(os.environ)),
        spawning_apart(),
    ):
        llm = AsyncLLM.from_vllm_config(config, stat_loggers=[factory], disable_log_stats=engine_args.disable_log_stats)
    # The scheduler goes on reporting every step. What ends here is vLLM's bookkeeping per token in this process,
    # a seventh of its CPU, for histograms that nobody reads.
    llm.log_stats = llm.output_processor.log_stats = False
    return llm, args


def build_serving(llm: Any, args: Any, tasks: Any) -> Serving:
    """What answers calls with the engine. For a thread: what vLLM builds here binds to no event loop before its use."""
    from starlette.datastructures import State
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state

    state = State()
    asyncio.run(init_app_state(CountedEngine(llm), state, args, tasks))
    return Serving(llm, state)


def give_back(resources: Any) -> None:
    """Close what vLLM leaves to the garbage collector, which comes late or never, of an engine that has been ended.

    That is a ZeroMQ context, with threads and a dozen descriptors, and two pipes per process. The context's sockets
    have been closed by vLLM's shutdown: with one still open, this would not return.
    """
    resources.ctx.term()
    for process in resources.engine_manager.processes:
        # Not its own `close`, which wants to have seen the end itself: `sweep` may have taken the exit status.
        process._popen.close()


@contextmanager
def _environ(more: Mapping[str, str]) -> Iterator[None]:
    """`more`, of what was not there, in this process's environment for the block."""
    os.environ.update(more)
    try:
        yield
    finally:
        for name in more:
            del os.environ[name]


def _stat_logger(record: Callable[[Any], None]) -> type:
    """A vLLM stat logger class that hands each step to `record`.

    It claims to be the Prometheus logger because vLLM adds its own, which costs a histogram update per token, whenever
    nothing of that class is given.
    """
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    class Feed(PrometheusStatLogger):  # type: ignore[misc]
        def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
            self.engine_indexes = engine_indexes or [0]

        def record(
            self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
        ) -> None:
            record(scheduler_stats)

        def log_engine_initialized(self) -> None:
            return

        def log(self) -> None:
            return

        def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
            return

        def record_admission_rejection(self, reason: str) -> None:
            return

    return Feed
