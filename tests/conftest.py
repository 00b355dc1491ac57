"""Shared by all tests: no property test is judged by the clock of a busy machine."""

import hypothesis

hypothesis.settings.register_profile("spillway", deadline=None)
hypothesis.settings.load_profile("spillway")
