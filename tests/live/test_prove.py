"""`spillway audit prove` as an operator runs it: one node, one engine, every pinned path under every condition."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from node.audit.prove import CONDITIONS

pytestmark = [pytest.mark.engine, pytest.mark.campaign]


def test_no_canary_leaves_under_any_condition_and_no_packet_beyond_loopback(tmp_path: Path) -> None:
    config = tmp_path / "spillway.yaml"
    config.write_text("privacy: {content_rules: {detect: [email]}}\n")
    done = subprocess.run(
        [sys.executable, "-m", "node.cli", "audit", "prove", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env=os.environ,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [each.name for each in CONDITIONS if not any(line.startswith(each.name) for line in lines)] == []
    assert "pinned by: key, field, header, content: words, content: email, model, settings" in lines
    assert lines[-1] == "held"
    (packets,) = (line for line in lines if line.startswith("packets beyond loopback"))
    assert packets.startswith(("packets beyond loopback: 0", "packets beyond loopback: not counted: "))
