"""A sign of life while an engine starts: importing vLLM, loading weights and compiling say nothing for minutes."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from node.catalogue import LocalModel
from node.local.arguments import is_folder

_log = logging.getLogger(__name__)
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
        had = await asyncio.to_thread(fetched_bytes, model)
        while True:
            await asyncio.sleep(every_s)
            have = await asyncio.to_thread(fetched_bytes, model)
            more = f"; {have / _MIB:,.0f} MiB of {model.source} are here" if have > had else ""
            had = have
            tell(f"{name}: still {doing()}, {clock() - began_s:.0f} s so far{more}")

    saying = asyncio.create_task(keep_saying())
    try:
        yield
    finally:
        saying.cancel()
        await asyncio.wait([saying])
        if not saying.cancelled() and (bug := saying.exception()) is not None:
            _log.error("%s: its start has not said how it goes on", name, exc_info=bug)


def fetched_bytes(model: LocalModel) -> int:
    """What is on this disk of a model of the hub, begun files included; 0 for one that is a folder."""
    if is_folder(model) or importlib.util.find_spec("huggingface_hub") is None:
        return 0
    # No more of it than this, which imports nothing else: another thread imports the rest of it with vLLM.
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE, constants.REPO_ID_SEPARATOR.join(("models", *model.source.split("/"))))
    count = 0
    for each in folder.joinpath("blobs").glob("*"):
        with suppress(OSError):  # it gets its own name at any moment
            count += each.stat().st_size
    return count
