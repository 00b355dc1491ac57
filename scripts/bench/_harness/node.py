"""The node under test, as a user would start it."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from _harness.process import CannotRun, Service, running


@contextmanager
def start_node(
    config_text: str, env: Mapping[str, str], *, directory: Path, port: int, ready_within_s: float = 180
) -> Iterator[Service]:
    """`spillway serve --config FILE` until the end of the with block; `config_text` must make it listen on `port`.

    `env` is added to a bare environment, so that no key of the user's reaches a bench.
    """
    spillway = Path(sys.executable).with_name("spillway")
    if not spillway.exists():
        raise CannotRun(f"the node is not installed beside {sys.executable}: run scripts/test or scripts/serve once")
    config = directory / "spillway.yaml"
    config.write_text(config_text)
    with running(
        "node",
        [str(spillway), "serve", "--config", str(config)],
        url=f"http://127.0.0.1:{port}",
        ready_path="/readyz",
        log=directory / "node.log",
        env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(directory), **env},
        ready_within_s=ready_within_s,
    ) as service:
        yield service
