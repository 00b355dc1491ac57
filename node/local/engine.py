"""The life of one vLLM engine in this process: start, warm up, report its load, stop without a trace.

`starting → ready → down`. A thread builds the engine, because that blocks for tens of seconds; everything after runs on
the event loop. Noticing a hang and building anew is the supervisor's work (`supervisor`), not done here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from node.catalogue import LocalModel
from node.errors import EngineUnavailable, SettingsError
from node.local import arguments
from node.local.building import build_engine, build_serving, give_back
from node.local.counts import EngineCounts
from node.local.importing import importing_vllm
from node.local.processes import EngineProcess, descendants, step_back, step_up, sweep
from node.local.scratch import Scratch
from node.local.segments import Segment, forget, segments_of, sweep_segments
from node.local.serving import Serving
from node.local.starting import saying_so
from node.local.stats import TimedStep
from node.local.warm_up import canary, warm_up
from node.local.work import Work
from node.routing.values import Capability, EngineLoad, EngineState

_log = logging.getLogger(__name__)

_GRAMMAR_CAPABILITIES = frozenset({Capability.TOOLS, Capability.JSON_OBJECT, Capability.JSON_SCHEMA, Capability.GUIDED})
# Two engines starting at once would each measure memory that the other is about to take, and their processes could
# not be told apart.
_one_start_at_a_time = asyncio.Lock()
# Generating until nothing compiles any more takes a minute at worst; what takes this long never ends.
_WARM_UP_WITHIN_S = 600.0


class LocalEngine:
    """One model on the local device.

    `clock` gives monotonic seconds. Called on the event loop: `on_state` with each new state, `on_step` after each step
    of the engine, `on_entered` with the id of a call once the engine counts its prompts itself, `on_timed` with each
    step once it is known how long it took. `on_progress` gets one line per step of the start, in whatever thread. The
    start is inside `reaching_out()`, which lets it connect to other machines where it has to. After `stop` or a failure
    the object stays down; build a new one to start again.
    """

    def __init__(
        self,
        model_name: str,
        model: LocalModel,
        clock: Callable[[], float] = time.monotonic,
        *,
        on_state: Callable[[EngineState], None] = lambda state: None,
        on_step: Callable[[], None] = lambda: None,
        on_entered: Callable[[str], None] = lambda request_id: None,
        on_timed: Callable[[TimedStep], None] = lambda step: None,
        on_progress: Callable[[str], None] = _log.info,
        reaching_out: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.model_name = model_name
        self.model = model
        self._clock = clock
        self._on_state = on_state
        self.work = Work(clock, on_step=on_step, on_entered=on_entered, on_timed=on_timed)
        self._progress = on_progress
        self._reaching_out = reaching_out
        self._state = EngineState.STARTING
        self._stopping = False
        self._serving: Serving | None = None
        self._llm: Any = None
        self._processes: frozenset[EngineProcess] = frozenset()
        self._segments: frozenset[Segment] = frozenset()
        self._scratch: Scratch | None = None
        self._on_cpu = False
        self._before: frozenset[EngineProcess] = frozenset()
        # The kernel ends the engine's processes with the thread that started them: this one lives as long as they do.
        self._builder = ThreadPoolExecutor(1, thread_name_prefix="spillway-engine")
        self._build: asyncio.Future[tuple[Any, Any]] | None = None
        self._start_ended: asyncio.Event | None = None
        self._doing = "importing vLLM"

    @property
    def state(self) -> EngineState:
        """Where the engine is in its life."""
        return self._state

    @property
    def context_tokens(self) -> int:
        """Prompt and output together, as the engine runs it; the catalogue's figure until it does."""
        return self._serving.context_tokens if self._serving else self.model.context_tokens

    @property
    def vocabulary_size(self) -> int | None:
        """How many token ids the model has; None until it is loaded."""
        return self._serving.vocabulary_size if self._serving else None

    @property
    def processes(self) -> frozenset[EngineProcess]:
        """The processes the engine runs in, beside this one."""
        return self._processes

    def serving(self) -> Serving:
        """The parts that answer calls. Raises `EngineUnavailable` unless the engine is ready."""
        if self._state is not EngineState.READY or self._serving is None:
            raise EngineUnavailable(f"The local engine is {self._state}.")
        return self._serving

    @property
    def in_flight(self) -> int:
        """Sequences being handed over, and those the engine has not finished: its own count, not the lane's."""
        llm = self._llm if self._state is EngineState.READY else None
        return self.work.handed_over + (llm.get_num_unfinished_requests() if llm else 0)

    @property
    def steps(self) -> int:
        """How many steps with work in them it has made."""
        return self.work.steps

    @property
    def has_work(self) -> bool:
        """Whether it has been given anything that it has not finished."""
        llm = self._llm
        return llm is not None and llm.get_num_unfinished_requests() > 0

    @property
    def counts(self) -> EngineCounts | None:
        """What vLLM's own metrics would say; None unless it is ready."""
        return self.work.counts if self._state is EngineState.READY else None

    def load(self, in_flight: int) -> EngineLoad:
        """The engine at this moment, with `in_flight` as given. Cheap: asked for every decision."""
        work, serving = self.work, self._serving
        if serving is None:
            return EngineLoad(
                state=self._state,
                capabilities=self.model.capabilities,
                context_tokens=self.model.context_tokens,
                max_sequences=1,
                in_flight=in_flight,
            )
        stats, rates = work.stats, work.stats.rates
        return EngineLoad(
            state=self._state,
            capabilities=self.model.capabilities,
            context_tokens=serving.context_tokens,
            max_sequences=serving.max_sequences,
            in_flight=in_flight,
            running=stats.running,
            waiting=stats.waiting,
            kv_cache_usage=stats.kv_cache_usage,
            queued_prefill_tokens=work.prefill.tokens,
            step=rates.step,
            max_batched_tokens=serving.max_batched_tokens,
            kv_tokens=serving.kv_tokens,
            stepping_tokens=work.stepping_tokens,
            stepping_s=work.stepping_s(),
            steps_ahead=serving.steps_ahead,
            sequences_per_s=rates.sequences_per_s,
            tpot_s=rates.tpot_s,
            ttft_doubt=rates.ttft_doubt,
            queue_doubt=rates.queue_doubt,
            first_token_s=rates.first_token_s,
        )

    async def start(self) -> None:
        """Load the model and answer a first request with it; ready when this returns.

        Raises `SettingsError` for a catalogue entry vLLM cannot take and `EngineUnavailable` for an engine that does
        not come up; no process is left behind then.
        """
        began_s = self._clock()
        self._start_ended = asyncio.Event()
        try:
            async with (
                _one_start_at_a_time,
                saying_so(self.model_name, self.model, lambda: self._doing, self._progress, self._clock),
            ):
                with importing_vllm(), self._reaching_out():
                    await self._start()
        except (SettingsError, EngineUnavailable, asyncio.CancelledError):
            await self._give_up()
            raise
        except Exception as error:
            await self._give_up()
            raise EngineUnavailable(f"{self.model_name}: the engine did not start: {error}") from error
        finally:
            self._start_ended.set()
        self._progress(f"{self.model_name}: ready after {self._clock() - began_s:.1f} s")

    async def _start(self) -> None:
        self._before = await asyncio.to_thread(descendants)
        if self._stopping:
            raise EngineUnavailable(f"{self.model_name}: the engine did not start: stopped")
        self._build = asyncio.get_running_loop().run_in_executor(self._builder, self._construct)
        # Shielded: a thread cannot be cancelled, and what it has built must be found again to be shut down.
        self._llm, args = await asyncio.shield(self._build)
        self._processes = await self._begun()
        if self._on_cpu:
            await asyncio.to_thread(step_back, self._processes)
        self._segments = await asyncio.to_thread(segments_of, self._processes)
        await self._finish_start(args)

    def _construct(self) -> tuple[Any, Any]:
        """Runs in a thread."""
        cuda = arguments.cuda_available()
        self._on_cpu = not cuda

        def on_imported() -> None:
            self._progress(f"{self.model_name}: starting vLLM on {'CUDA' if cuda else 'CPU'}")
            self._doing = "building the engine (reading the weights, making room for the KV cache)"

        self._scratch = Scratch()
        return build_engine(
            self.model_name,
            self.model,
            cuda=cuda,
            scratch=self._scratch,
            report=self.work.report,
            on_imported=on_imported,
        )

    async def _finish_start(self, args: Any) -> None:
        tasks = await self._llm.get_supported_tasks()
        if "generate" not in tasks:
            raise SettingsError(f"{self.model_name}: engine_args: the engine would not generate text, only {tasks}")
        # Half a second of imports and templates, again some 0.2 s for each later engine: too much for the event loop.
        loop = asyncio.get_running_loop()
        with arguments.refusals_named(self.model_name, self.model):
            serving = await loop.run_in_executor(self._builder, build_serving, self._llm, args, tasks)
        self.work.begin(self._llm.output_processor.request_states)
        grammar = bool(self.model.capabilities & _GRAMMAR_CAPABILITIES)
        self._doing = "generating for the first time (compiling what compiles on first use)"
        async with asyncio.timeout(_WARM_UP_WITHIN_S):
            await warm_up(serving, grammar=grammar, compiled=self.work.stats.forget)
        if self._stopping:
            raise EngineUnavailable(f"{self.model_name}: stopped while starting")
        # vLLM ends this task when it finds the engine dead, and never before.
        self._llm.output_handler.add_done_callback(lambda task: self.died())
        self._serving, self.work.batch_tokens = serving, serving.max_batched_tokens
        self._set_state(EngineState.READY)

    def _set_state(self, state: EngineState) -> None:
        if state is not self._state:
            self._state = state
            self._on_state(state)

    def died(self) -> None:
        """Told by whoever learns first that the engine is dead."""
        if not self._stopping and self._state is not EngineState.DOWN:
            _log.error("%s: the engine has died", self.model_name)
        self._set_state(EngineState.DOWN)

    async def _give_up(self) -> None:
        """Undo a start that failed or was cancelled at any point."""
        await self._interrupt_build()
        if self._build is not None and self._llm is None:
            await asyncio.wait([self._build])
            if not self._build.cancelled() and self._build.exception() is None:
                self._llm = self._build.result()[0]
        if self._build is not None:
            begun = await self._begun()
            self._processes |= begun
        await self._shut(grace_s=5.0)

    async def _begun(self) -> frozenset[EngineProcess]:
        """The processes that this start has begun. In a thread, as all that walks `/proc`: servers have thousands."""
        return await asyncio.to_thread(descendants) - self._before

    async def _interrupt_build(self) -> None:
        """Make a build in progress fail: its thread waits for a child to report ready, and gives up without it."""
        self._stopping = True
        while self._build is not None and not self._build.done():
            begun = await self._begun()
            self._segments |= await asyncio.to_thread(segments_of, begun)
            await asyncio.to_thread(sweep, begun, 1.0)
            await asyncio.wait([self._build], timeout=0.5)

    async def probe(self) -> None:
        """Generate one token, however long that takes. Raises `EngineUnavailable` where the engine cannot any more."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            await canary(self.serving())
        except EngineDeadError as error:
            raise EngineUnavailable("The local engine has stopped.") from error

    async def kill(self) -> None:
        """End its processes without asking, as one that hangs would not answer; running calls fail at once."""
        below = await asyncio.to_thread(descendants, self._processes)
        await asyncio.to_thread(sweep, self._processes | below, 0.0)

    async def stop(self, grace_s: float = 10.0) -> None:
        """End the engine and every process it started, within about `grace_s` seconds; running calls fail at once.

        Safe in every state, and more than once. A start in progress is given up.
        """
        await self._interrupt_build()
        if self._start_ended is not None:
            await self._start_ended.wait()
        await self._shut(grace_s)

    async def _shut(self, grace_s: float) -> None:
        self._set_state(EngineState.DOWN)
        below = await asyncio.to_thread(descendants, self._processes)
        self._processes |= below
        llm, self._llm, self._serving = self._llm, None, None
        if llm is not None:
            from vllm.v1.engine.exceptions import EngineDeadError

            # Callers still waiting would otherwise wait for ever: vLLM's shutdown cancels the task that feeds them.
            llm.output_processor.propagate_error(EngineDeadError())
            if self._on_cpu:
                await asyncio.to_thread(step_up, self._processes)
            await asyncio.to_thread(llm.shutdown, grace_s)
        await asyncio.to_thread(sweep, self._processes, 1.0)
        if left := await asyncio.to_thread(sweep_segments, self._segments):
            forget(left)
            _log.info("%s: removed shared memory that its processes left: %s", self.model_name, ", ".join(left))
        if llm is not None:
            await asyncio.to_thread(give_back, llm.engine_core.resources)
        if self._scratch is not None:
            await asyncio.to_thread(self._scratch.remove)
        self._processes, self._segments, self._scratch = frozenset(), frozenset(), None
        self._builder.shutdown(wait=False)
