"""Asks the kernel once a second how short the machine is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from node.background import Background
from node.watch.strain import Level, Resource, Strain, StrainControl

_log = logging.getLogger("spillway")

_INTERVAL_S = 1.0


class ResourceReader(Protocol):
    """Where samples come from: `HostReader`."""

    def read(self) -> tuple[Resource, ...]:
        """Whatever has a limit and is known now. Quick: called on the event loop."""


class HostWatch(Background):
    """The strain as of the last sample. `inside` tells how many requests are held."""

    task_name = "host-watch"

    def __init__(self, reader: ResourceReader, inside: Callable[[], int], *, interval_s: float = _INTERVAL_S) -> None:
        self._reader = reader
        self._inside = inside
        self._interval_s = interval_s
        self._control = StrainControl()

    def strain(self) -> Strain:
        """How short it is; calm until the first sample."""
        return self._control.strain

    def sample(self) -> None:
        """Look now. A change of level is logged."""
        before = self._control.strain.level
        now = self._control.take(self._reader.read(), self._inside())
        if now.level is not before:
            level = logging.INFO if now.level is Level.CALM else logging.WARNING
            _log.log(level, "the machine is %s%s", now.level, f": short of {now.scarce}" if now.scarce else "")

    async def _run(self) -> None:
        while True:
            self.sample()
            await asyncio.sleep(self._interval_s)
