"""Shared by all tests: no property test is judged by the clock of a busy machine."""

import os
import tempfile

import hypothesis

hypothesis.settings.register_profile("spillway", deadline=None)
hypothesis.settings.load_profile("spillway")

# No test reads or writes the data folder of whoever runs them.
os.environ["SPILLWAY_DATA"] = tempfile.mkdtemp(prefix="spillway-tests-")
