import os
import sys
from pathlib import Path

import psutil
import pytest
from _harness.process import CannotRun, free_port, running, usage

SERVER = """
import http.server, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def test_a_service_and_what_it_started_are_gone_after_the_with_block(tmp_path: Path) -> None:
    port = free_port()
    with running(
        "server",
        [sys.executable, "-c", SERVER, str(port)],
        url=f"http://127.0.0.1:{port}",
        ready_path="/",
        log=tmp_path / "log",
        env=os.environ,
    ) as service:
        family = [psutil.Process(service.pid), *psutil.Process(service.pid).children(recursive=True)]
        assert len(family) == 2
        assert usage(service.pid).rss_bytes > 0
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


def test_a_service_that_dies_at_the_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    with (
        pytest.raises(CannotRun, match=r"(?s)exited with 3.*no config"),
        running(
            "server",
            [sys.executable, "-c", "print('no config', flush=True); raise SystemExit(3)"],
            url=f"http://127.0.0.1:{free_port()}",
            ready_path="/",
            log=tmp_path / "log",
            env=os.environ,
        ),
    ):
        pass


def test_usage_of_a_process_that_is_gone_is_nothing() -> None:
    assert usage(2**22 + 1).cpu_s == 0.0
