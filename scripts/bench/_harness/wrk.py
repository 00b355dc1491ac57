"""Closed-loop load without streaming, by `wrk`: in C, so that it is not the bottleneck on a small machine.

wrk corrects its latencies for coordinated omission: one slower than twice the usual interval counts several times.
"""

import json
import resource
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from _harness.process import CannotRun

_BUSY = Path(__file__).with_name("post.lua")
_PACED = Path(__file__).with_name("paced.lua")


@dataclass(frozen=True)
class Window:
    """One measured window of load; latencies are None when nothing was answered."""

    requests: int
    duration_s: float
    errors: int
    p50_s: float | None
    p99_s: float | None
    generator_cpu_share: float
    """Of one core; near 1.0 the generator was the bottleneck and the window says nothing about the server."""

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.duration_s


def available() -> bool:
    """Whether wrk is installed."""
    return shutil.which("wrk") is not None


def load(
    url: str, body: str, *, connections: int, duration_s: float, timeout_s: float = 60, pause_s: float | None = None
) -> Window:
    """Posts `body` to `url` over `connections` connections for `duration_s` (wrk takes whole seconds).

    They are always busy, or pause before each request, for `pause_s` in the mean.
    """
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(duration_s))}s", f"--timeout={round(timeout_s)}s"]
    began, began_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    script = _BUSY if pause_s is None else _PACED
    command += ["-s", str(script), url, "--", body, *([] if pause_s is None else [str(round(pause_s * 1e3))])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotRun(f"wrk failed on {url}: {(done.stdout + done.stderr).strip()[-500:]}")
    ended, wall_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - began_s
    cpu_s = (ended.ru_utime + ended.ru_stime) - (began.ru_utime + began.ru_stime)
    found = json.loads(done.stdout.splitlines()[-1])
    answered = found["requests"] > 0
    return Window(
        requests=found["requests"],
        duration_s=found["duration_us"] / 1e6,
        errors=found["errors"],
        p50_s=found["p50_us"] / 1e6 if answered else None,
        p99_s=found["p99_us"] / 1e6 if answered else None,
        generator_cpu_share=cpu_s / wall_s,
    )
