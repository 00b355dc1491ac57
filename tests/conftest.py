"""Shared by all tests: no property test is judged by the clock of a busy machine."""

import os
import signal
import tempfile

import hypothesis
import pytest

hypothesis.settings.register_profile("spillway", deadline=None)
hypothesis.settings.load_profile("spillway")

# No test reads or writes the data folder of whoever runs them.
os.environ["SPILLWAY_DATA"] = tempfile.mkdtemp(prefix="spillway-tests-")

# Under nohup, and in the background of a script, these are ignored, and a node that a test starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("engine") and "live" not in item.path.parts:
            raise pytest.UsageError(f"{item.nodeid} starts an engine: scripts/test looks for it in tests/live")
