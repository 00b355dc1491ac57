"""Traces and the socket guard in one process: the way to the collector, and that it is no way to anywhere else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# TEST-NET-1 of RFC 5737: nobody's. An audit hook stays for good, so this runs in a process of its own.
_PROGRAM = """
import errno, socket
from node.guard import SocketGuard, StrayConnection
from node.traces.export import Traces
from node.backend import Kind

guard = SocketGuard()
guard.install()
tried = []
connect = socket.socket.connect

class Noting(socket.socket):
    def connect(self, address):
        tried.append(address)
        # The guard's own hook runs in here; what it lets through would wait for a network that is not there.
        self.settimeout(0.01)
        return super().connect(address)

socket.socket = Noting
traces = Traces("http://192.0.2.1:4318", sample_share=1.0, reach=guard.collecting)
span = traces.begin((), Kind.CHAT, "/v1/chat/completions", "r", 0.0)
span.answered(1.0, 200, None)
traces._provider.force_flush()
print("tried", sorted(set(tried)), "refused", guard.refused, "lost", traces.delivery.lost)
try:
    Noting().connect(("192.0.2.1", 4318))
    print("let through")
except StrayConnection:
    print("refused")
"""


def test_guard_lets_the_batch_out_to_the_collectors_address_and_the_same_address_to_nobody_else() -> None:
    environ = {
        "PATH": "/usr/bin:/bin",
        "HTTP_PROXY": "http://192.0.2.99:3128",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=120, check=True, env=environ
    )
    assert done.stdout.splitlines() == ["tried [('192.0.2.1', 4318)] refused 0 lost 1", "refused"], done.stderr


def test_node_without_traces_does_not_load_opentelemetry() -> None:
    program = (
        "import sys\n"
        "from node.app import Node\n"
        "from node.settings import Settings\n"
        "node = Node(Settings(), environ={})\n"
        "node.asgi()\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'requests'))], node.traces)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[] None"
