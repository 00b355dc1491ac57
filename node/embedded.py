"""The embedded default: without any configuration, a cloud emulator on loopback stands in HolySheep's place."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from node.errors import SettingsError

EMULATED = "holysheep-emulated"
EMULATOR_KEY_ENV = "SPILLWAY_EMULATOR_KEY"
_START_WITHIN_S = 30.0


@contextmanager
def emulator(api_key: str) -> Iterator[str]:
    """Run the emulator, which asks for `api_key`, as a child process; gives its base URL. It ends with the
    block, or when this process dies.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "node.emulator", "--port", "0", "--api-key", api_key, "--exit-with-parent"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that Ctrl-C reaches the node alone, which then ends it in order
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SettingsError(f"the cloud emulator did not start (exit code {process.wait(_START_WITHIN_S)})")
        yield str(json.loads(line)["base_url"])
    finally:
        process.terminate()
        process.wait(_START_WITHIN_S)
