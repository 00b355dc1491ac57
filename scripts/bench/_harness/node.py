"""The node under test, as a user would start it."""

import os
import signal
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from _harness.process import CannotRun, Service, running

ADMIN_ENV = {"SPILLWAY_ADMIN_KEY": "sa-the-key-of-the-benches"}


@contextmanager
def start_node(
    config_text: str,
    env: Mapping[str, str],
    *,
    directory: Path,
    port: int,
    program: Sequence[str] | None = None,
    ready_path: str = "/readyz",
    ready_within_s: float = 180,
) -> Iterator[Service]:
    """`spillway serve --config FILE` until the end of the with block; `config_text` must make it listen on `port`.

    `program` stands in for `spillway`. With `/livez` for `ready_path` it is there before its engine is. `env` is added
    to a bare environment, so that no key of the user's reaches a bench.
    """
    spillway = Path(sys.executable).with_name("spillway")
    if not spillway.exists():
        raise CannotRun(f"the node is not installed beside {sys.executable}: run scripts/test or scripts/serve once")
    config = directory / "spillway.yaml"
    config.write_text(config_text)
    with running(
        "node",
        [*(program or [str(spillway)]), "serve", "--config", str(config)],
        url=f"http://127.0.0.1:{port}",
        ready_path=ready_path,
        log=directory / "node.log",
        env={
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(directory),
            **_other_sources(),
            **ADMIN_ENV,
            **env,
        },
        ready_within_s=ready_within_s,
    ) as service:
        yield service


def kill_engine(node: Service) -> None:
    """SIGKILL to the core of the node's engine, as when a driver or the kernel's memory killer takes it."""
    for process in psutil.Process(node.pid).children(recursive=True):
        if "EngineCore" in " ".join([process.name(), *process.cmdline()]):
            os.kill(process.pid, signal.SIGKILL)
            return
    raise CannotRun("no engine process was found to kill")


def read_stats(node: Service) -> bytes:
    """`/admin/stats` of a node that was started with `ADMIN_ENV`, from the port after its own."""
    address, _, port = node.url.rpartition(":")
    asked = urllib.request.Request(
        f"{address}:{int(port) + 1}/admin/stats",
        headers={"authorization": f"Bearer {ADMIN_ENV['SPILLWAY_ADMIN_KEY']}"},
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=10) as answer:
        document: bytes = answer.read()
    return document


def _other_sources() -> dict[str, str]:
    """Where the node's sources are, if they are not those that are installed."""
    return {"PYTHONPATH": path} if (path := os.environ.get("PYTHONPATH")) else {}
