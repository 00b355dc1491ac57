"""A sign of life while an engine starts: importing vLLM, loading weights and compiling say nothing for minutes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from node.catalogue import LocalModel
from node.local.arguments import is_folder

_SAY_EVERY_S: Final = 10.0
_MIB: Final = 1 << 20


@asynccontextmanager
async def saying_so(
    name: str,
    model: LocalModel,
    doing: Callable[[], str],
    tell: Callable[[str], None],
    clock: Callable[[], float],
    every_s: float = _SAY_EVERY_S,
) -> AsyncIterator[None]:
    """For the length of the block, `tell` every `every_s` seconds what the start is `doing`, for how long it has run,
    and, while a model comes from the hub, how much of it has arrived.
    """
    began_s = clock()

    async def keep_saying() -> None:
        had = await asyncio.to_thread(fetched_bytes, model, os.environ)
        while True:
            await asyncio.sleep(every_s)
            have = await asyncio.to_thread(fetched_bytes, model, os.environ)
            more = f"; {have / _MIB:,.0f} MiB of {model.source} are here" if have > had else ""
            had = have
            tell(f"{name}: still {doing()}, {clock() - began_s:.0f} s so far{more}")

    saying = asyncio.create_task(keep_saying())
    try:
        yield
    finally:
        saying.cancel()
        await asyncio.gather(saying, return_exceptions=True)


def fetched_bytes(model: LocalModel, environ: Mapping[str, str]) -> int:
    """What is on this disk of a model of the hub, begun files included; 0 for one that is a folder."""
    if is_folder(model):
        return 0
    home = Path(
        environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    ).expanduser()
    hub = Path(environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    count = 0
    for each in hub.joinpath(f"models--{model.source.replace('/', '--')}", "blobs").glob("*"):
        with suppress(OSError):  # it gets its own name at any moment
            count += each.stat().st_size
    return count
