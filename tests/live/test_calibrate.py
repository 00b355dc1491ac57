"""`spillway calibrate` with a real engine: a profile that makes sense, and no engine left behind."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from node.calibrate import calibrate
from node.catalogue import LocalModel
from node.local.processes import descendants
from node.simulate.profiles import read_profile, write_profile

pytestmark = pytest.mark.engine

_WITHIN_S = 240


async def test_calibrating_gives_a_profile_and_stops_the_engine(demo_model: LocalModel, tmp_path: Path) -> None:
    before = descendants()
    made = await calibrate("demo", demo_model, name="tried", seconds=5, machine="a test machine")
    assert descendants() <= before
    profile, step = made.profile, made.profile.step
    assert (profile.max_sequences, profile.context_tokens) == (8, 512)
    assert profile.max_batched_tokens > 8
    assert profile.kv_tokens >= 512
    assert 1e-4 < step.step_s(1, 0) < 1.0
    assert step.step_s(8, 0) < 8 * step.step_s(1, 0), "a batch is cheaper than one after the other"
    assert step.per_prefill_token_s > 0
    assert made.fit.steps > 100
    assert made.measured.step_s.keys() == {1, 2, 4, 6, 8}
    assert "demo on a test machine, vLLM " in profile.source
    write_profile(tmp_path / "tried.json", profile)
    assert read_profile(tmp_path / "tried.json") == profile


def test_ctrl_c_twice_stops_the_engine_and_writes_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            [str(Path(sys.executable).with_name("spillway")), "calibrate", "--model", "demo", "--seconds", "600"],
            cwd=tmp_path,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        until_s = time.monotonic() + _WITHIN_S
        while "1 sequence, prompts of about" not in log.read_text():
            assert child.poll() is None, log.read_text()
            assert time.monotonic() < until_s, log.read_text()
            time.sleep(0.2)
        family = psutil.Process(child.pid).children(recursive=True)
        assert family
        for _ in range(2):
            child.send_signal(signal.SIGINT)
            time.sleep(0.1)
        assert child.wait(120) == 130, log.read_text()
        _, alive = psutil.wait_procs(family, timeout=60)
        assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []
        assert [path.name for path in tmp_path.iterdir()] == ["log"]
    finally:
        if child.poll() is None:
            child.kill()
