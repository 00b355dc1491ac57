"""Row 64: what the node knows of its GPUs, read by the real `pynvml` from a fake `libnvidia-ml.so.1` built here."""

from __future__ import annotations

import os
import pickle
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.watch.values import GpuProcess, GpuSnapshot, GpuWatchState, free_bytes_for

HERE = Path(__file__).parent
GIB = 1 << 30
H100 = """\
driver 580.95.05
0.name NVIDIA H100 80GB HBM3
0.uuid GPU-1f0c
0.memory 85899345920 1073741824 84289781760
0.compute 4711:1073741824
0.graphics
0.utilisation 37
0.temperature 41
0.power 97500
0.mig 0
"""
SECOND = "gpus 2\n1.name NVIDIA L4\n1.uuid GPU-2a2a\n1.memory 24000000000 4000000000 20000000000\n1.compute\n"


class FakeGpuMachine:
    """A process that sees the fake NVML, and the file that says what the fake answers."""

    def __init__(self, directory: Path, library_directory: Path) -> None:
        self._script = directory / "nvml.txt"
        self.answers(H100)
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "nvml_process.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "LD_LIBRARY_PATH": str(library_directory),
                "FAKE_NVML": str(self._script),
                "PYTHONPATH": str(HERE.parents[1]),
            },
        )

    def answers(self, script: str | bytes) -> None:
        fresh = self._script.with_suffix(".new")
        fresh.write_bytes(script if isinstance(script, bytes) else script.encode())
        fresh.replace(self._script)

    def ask(self, command: str) -> object:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command.encode() + b"\n")
        self._process.stdin.flush()
        assert select.select([self._process.stdout], [], [], 60)[0], f"no answer to {command!r}"
        answer: object = pickle.load(self._process.stdout)
        return answer

    def read(self, now_s: float) -> GpuWatchState:
        answer = self.ask(f"read {now_s}")
        assert isinstance(answer, GpuWatchState)
        return answer

    def gpu(self, now_s: float = 0.0, index: int = 0) -> GpuSnapshot:
        gpus = self.read(now_s).gpus
        assert gpus is not None
        return gpus[index]

    def leave(self) -> int:
        """End of input ends the process; a thread stuck in NVML must not keep it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(60)

    def close(self) -> None:
        with self._process:
            self._process.kill()


@pytest.fixture(scope="session")
def library_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    assert compiler, "the fake NVML is built with a C compiler: install one, or name it in CC"
    directory = tmp_path_factory.mktemp("nvml")
    library = directory / "libnvidia-ml.so.1"
    command = [*compiler.split(), "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library)]
    subprocess.run([*command, str(HERE / "fake_nvml.c")], check=True)
    return directory


@pytest.fixture
def machine(tmp_path: Path, library_directory: Path) -> Iterator[FakeGpuMachine]:
    machine = FakeGpuMachine(tmp_path, library_directory)
    yield machine
    machine.close()


def nothing_known(gpu: GpuSnapshot) -> bool:
    figures = (gpu.vram_total_bytes, gpu.vram_used_bytes, gpu.vram_free_bytes, gpu.processes)
    return all(figure is None for figure in (*figures, gpu.utilisation, gpu.temperature_c, gpu.power_w))


def test_a_healthy_gpu_is_reported_with_every_figure(machine: FakeGpuMachine) -> None:
    assert machine.read(12.5) == GpuWatchState(
        gpus=(
            GpuSnapshot(
                index=0,
                sampled_at_s=12.5,
                uuid="GPU-1f0c",
                name="NVIDIA H100 80GB HBM3",
                vram_total_bytes=80 * GIB,
                vram_used_bytes=1 * GIB,
                vram_free_bytes=84289781760,
                processes=(GpuProcess(pid=4711, vram_bytes=GIB),),
                utilisation=0.37,
                temperature_c=41,
                power_w=97.5,
                mig=False,
            ),
        ),
        driver_version="580.95.05",
        sampled_at_s=12.5,
    )


def test_every_gpu_of_the_server_is_reported(machine: FakeGpuMachine) -> None:
    machine.answers(H100 + SECOND)
    gpus = machine.read(0.0).gpus
    assert gpus is not None
    assert [(gpu.index, gpu.name) for gpu in gpus] == [(0, "NVIDIA H100 80GB HBM3"), (1, "NVIDIA L4")]
    assert gpus[1].processes == ()


def test_figures_the_card_withholds_are_unknown_and_never_zero(machine: FakeGpuMachine) -> None:
    machine.answers("gpus 1\n")
    assert machine.gpu() == GpuSnapshot(index=0, sampled_at_s=0.0)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        ("nvmlDeviceGetName", "name"),
        ("nvmlDeviceGetUtilizationRates", "utilisation"),
        ("nvmlDeviceGetPowerUsage", "power_w"),
        ("nvmlDeviceGetComputeRunningProcesses_v3", "processes"),
    ],
)
def test_one_figure_that_fails_takes_no_other_with_it(machine: FakeGpuMachine, call: str, field: str) -> None:
    for code in (3, 4, 7, 10, 13, 21, 25, 27, 999):
        machine.answers(f"{H100}0.fail.{call} {code}\n")
        machine.ask("reopen")
        gpu = machine.gpu()
        assert getattr(gpu, field) is None, code
        assert gpu.vram_free_bytes == 84289781760
        assert gpu.temperature_c == 41
        assert gpu.problem is None


def test_memory_taken_by_another_process_shows_in_the_next_sample(machine: FakeGpuMachine) -> None:
    assert free_bytes_for(machine.read(1.0).gpus) == 84289781760
    machine.answers(
        H100.replace("1073741824 84289781760", "81604378624 3758096384").replace(
            "4711:1073741824", "4711:1073741824 5000:80530636800"
        )
    )
    state = machine.read(2.0)
    assert free_bytes_for(state.gpus) == 3758096384
    assert state.gpus is not None
    assert state.gpus[0].processes == (GpuProcess(pid=4711, vram_bytes=GIB), GpuProcess(pid=5000, vram_bytes=75 * GIB))


def test_process_with_compute_and_graphics_contexts_is_listed_once(machine: FakeGpuMachine) -> None:
    machine.answers(H100.replace("4711:1073741824", "4711:1073741824 9:-").replace("graphics", "graphics 4711:500 8:-"))
    assert machine.gpu().processes == (
        GpuProcess(pid=8, vram_bytes=None),
        GpuProcess(pid=9, vram_bytes=None),
        GpuProcess(pid=4711, vram_bytes=GIB),
    )


def test_machine_without_nvml_has_no_gpu_and_says_why(tmp_path: Path) -> None:
    # A file that is no library, so that a machine with a real driver does not answer in its place.
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library")
    machine = FakeGpuMachine(tmp_path, tmp_path)
    try:
        state = machine.read(0.0)
        assert state.gpus == ()
        assert state.reason is not None
        assert "NVML library not found" in state.reason
        assert machine.read(100.0).gpus == ()
    finally:
        machine.close()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (9, "driver not loaded"),
        (18, "differ in version"),
        (4, "no permission"),
        (999, "NVML error 999"),
        (777, "an error only the fake knows"),
    ],
)
def test_driver_that_will_not_start_is_named_and_tried_again_later(
    machine: FakeGpuMachine, code: int, words: str
) -> None:
    machine.answers(f"{H100}fail.nvmlInitWithFlags {code}\n")
    state = machine.read(0.0)
    assert state.gpus == ()
    assert state.reason is not None
    assert words in state.reason
    machine.answers(H100)
    assert machine.read(9.9).gpus == ()
    recovered = machine.read(10.0)
    assert recovered.reason is None
    assert free_bytes_for(recovered.gpus) == 84289781760


def test_driver_without_gpus_says_so(machine: FakeGpuMachine) -> None:
    machine.answers("gpus 0\n")
    assert machine.read(0.0) == GpuWatchState(gpus=(), reason="the NVIDIA driver sees no GPU", sampled_at_s=0.0)


@pytest.mark.parametrize("code", [1, 2, 9, 15, 16, 28])
def test_gpu_that_falls_off_the_bus_is_unknown_while_the_other_goes_on(machine: FakeGpuMachine, code: int) -> None:
    machine.answers(H100 + SECOND)
    assert machine.gpu(1.0).problem is None
    machine.answers(f"{H100}{SECOND}0.fail {code}\n")
    state = machine.read(2.0)
    assert state.gpus is not None
    lost, healthy = state.gpus
    assert nothing_known(lost)
    assert lost.problem
    assert lost.name == "NVIDIA H100 80GB HBM3"
    assert healthy.vram_free_bytes == 20_000_000_000
    assert free_bytes_for(state.gpus) is None
    # still lost when looked for anew: no handle is to be had
    assert machine.gpu(20.0).problem
    assert machine.gpu(20.0, index=1).vram_free_bytes == 20_000_000_000


def test_unreadable_memory_on_a_gpu_that_always_had_it_is_a_problem(machine: FakeGpuMachine) -> None:
    machine.answers(H100 + "0.fail.nvmlDeviceGetMemoryInfo_v2 999\n")
    gpu = machine.gpu()
    assert nothing_known(gpu)
    assert gpu.problem == "NVML error 999: Unknown Error"


def test_gpu_lost_in_the_middle_of_a_sample_gives_none_of_its_figures(machine: FakeGpuMachine) -> None:
    machine.answers(H100 + "0.fail.nvmlDeviceGetPowerUsage 15\n")
    gpu = machine.gpu()
    assert nothing_known(gpu)
    assert gpu.problem == "GPU is lost (fell off the bus): it needs a reset or a reboot"


def test_gpu_is_found_again_after_a_reset(machine: FakeGpuMachine) -> None:
    assert machine.gpu(0.0).problem is None
    machine.answers(H100 + "generation 1\n")
    assert "fell off the bus" in (machine.gpu(1.0).problem or "")
    assert machine.gpu(10.9).problem
    found = machine.gpu(11.0)
    assert found.problem is None
    assert found.vram_free_bytes == 84289781760


@pytest.mark.parametrize(
    ("line", "nonsense", "fields"),
    [
        ("0.memory 85899345920 1073741824 84289781760", "0.memory 0 0 0", ("vram_total_bytes",)),
        ("0.memory 85899345920 1073741824 84289781760", f"0.memory {2**64 - 1} 5 5", ("vram_total_bytes",)),
        ("0.memory 85899345920 1073741824 84289781760", f"0.memory {80 * GIB} {81 * GIB} 0", ("vram_used_bytes",)),
        ("0.memory 85899345920 1073741824 84289781760", f"0.memory {80 * GIB} 0 {2**64 - 1}", ("vram_used_bytes",)),
        ("0.memory 85899345920 1073741824 84289781760", f"0.memory {80 * GIB} {60 * GIB} {60 * GIB}", ()),
        ("0.utilisation 37", "0.utilisation 4294967295", ("utilisation",)),
        ("0.utilisation 37", "0.utilisation 101", ("utilisation",)),
        ("0.temperature 41", "0.temperature 4294967040", ("temperature_c",)),
        ("0.temperature 41", "0.temperature 6000", ("temperature_c",)),
        ("0.power 97500", "0.power 4294967295", ("power_w",)),
        ("0.name NVIDIA H100 80GB HBM3", "0.name \udcff\udcfe", ("name",)),
    ],
)
def test_nonsense_from_a_sick_card_is_not_believed(
    machine: FakeGpuMachine, line: str, nonsense: str, fields: tuple[str, ...]
) -> None:
    assert line in H100
    machine.answers(H100.replace(line, nonsense).encode(errors="surrogateescape"))
    gpu = machine.gpu()
    for field in fields:
        assert getattr(gpu, field) is None
    if "memory" in line:
        assert gpu.vram_free_bytes is None
        assert gpu.vram_used_bytes is None
    assert gpu.uuid == "GPU-1f0c"
    assert gpu.problem is None


def test_process_said_to_hold_more_than_the_card_has_is_of_unknown_size(machine: FakeGpuMachine) -> None:
    machine.answers(H100.replace("4711:1073741824", f"4711:{81 * GIB}"))
    assert machine.gpu().processes == (GpuProcess(pid=4711, vram_bytes=None),)


def test_card_split_by_mig_has_unknown_memory_and_utilisation(machine: FakeGpuMachine) -> None:
    machine.answers(H100.replace("0.mig 0", "0.mig 1"))
    state = machine.read(0.0)
    assert free_bytes_for(state.gpus) is None
    assert state.gpus is not None
    gpu = state.gpus[0]
    assert gpu.mig is True
    assert (gpu.vram_total_bytes, gpu.vram_used_bytes, gpu.utilisation) == (None, None, None)
    assert gpu.temperature_c == 41
    assert gpu.problem is None


def test_driver_too_old_for_the_newest_calls_still_gives_its_figures(machine: FakeGpuMachine) -> None:
    machine.answers(f"{H100}fail.nvmlDeviceGetMemoryInfo_v2 13\nfail.nvmlDeviceGetTemperatureV 13\n")
    gpu = machine.gpu()
    assert gpu.vram_free_bytes == 84289781760
    assert gpu.temperature_c == 41


def test_nvml_that_hangs_holds_up_neither_the_event_loop_nor_the_exit(machine: FakeGpuMachine) -> None:
    machine.ask("start")
    first = machine.ask("fresh 60")
    assert isinstance(first, GpuWatchState)
    assert free_bytes_for(first.gpus) == 84289781760

    machine.answers(H100 + "hang 1\n")
    while machine.ask("latest") is not None:  # until the last sample is too old; the loop answers all the while
        pass
    hung = machine.ask("fresh 0.1")
    assert isinstance(hung, GpuWatchState)
    assert (hung.gpus, hung.reason) == (None, "no answer from NVML within 0.1 s")

    machine.answers(H100)
    back = machine.ask("fresh 60")
    assert isinstance(back, GpuWatchState)
    assert free_bytes_for(back.gpus) == 84289781760

    machine.answers(H100 + "hang 1\n")
    while machine.ask("latest") is not None:
        pass
    machine.ask("stop")
    assert machine.leave() == 0
