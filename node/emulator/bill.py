"""The emulator's append-only bill and its log of all that arrived: the evidence to compare a node with."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from node.emulator.requests import Ask
from node.emulator.switches import Switch


def sha256(text: str) -> str:
    """The hex digest a prompt is logged under."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Journal:
    """Records in order, in memory and, if there is a path, as one JSON line each in a file that is only appended to.

    An existing file is read back first, so a restarted emulator goes on with the same bill. A line is handed to the
    operating system before `append` returns, and is on disk by then if `fsync` is set. Raises `ValueError` for a
    file that is not JSON lines; a half-written last line, as a kill leaves it, is cut off.
    """

    def __init__(self, path: Path | None = None, *, fsync: bool = False) -> None:
        self.records: list[dict[str, Any]] = []
        self._fsync = fsync
        self._file: FileIO | None = None
        if path is not None:
            self._file = FileIO(path, "a+")
            self._recover(self._file, path)

    def _recover(self, file: FileIO, path: Path) -> None:
        file.seek(0)
        *whole, torn = file.read().split(b"\n")
        try:
            self.records = [json.loads(line) for line in whole]
        except ValueError as error:
            raise ValueError(f"{path}: not a file of JSON lines") from error
        if torn:
            file.truncate(sum(len(line) + 1 for line in whole))

    def append(self, record: dict[str, Any]) -> None:
        """Add one record."""
        self.records.append(record)
        if self._file is not None:
            self._file.write(json.dumps(record, ensure_ascii=True).encode() + b"\n")
            if self._fsync:
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; the records stay readable."""
        if self._file is not None:
            self._file.close()
            self._file = None


def total_nano_usd(records: Iterable[dict[str, Any]]) -> int:
    """What the calls on a bill come to."""
    return sum(record["cost_nano_usd"] for record in records)


def arrival(
    *,
    request_id: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes,
    ask: Ask | None,
    switch: Switch | None,
    status: int,
    keep_prompts: bool,
) -> dict[str, Any]:
    """The log record of a request. A body that could not be read counts as one prompt; `status` 0 is a reset.

    Names of fields and headers are kept, not their values, and the credentials only as a hash.
    """
    prompts = ask.prompts if ask is not None else (body.decode("utf-8", "replace"),)
    record: dict[str, Any] = {
        "request_id": request_id,
        "at_s": round(time.time(), 6),
        "path": path,
        "status": status,
        "switch": switch and switch.value,
        "model": ask and ask.model,
        "stream": ask and ask.stream,
        "max_tokens": ask and ask.max_tokens,
        "fields": ask and list(ask.fields),
        "headers": sorted({name.lower() for name in headers}),
        "authorization_sha256": sha256(headers.get("authorization", "")),
        "prompt_sha256": [sha256(prompt) for prompt in prompts],
    }
    if keep_prompts:
        record["prompts"] = list(prompts)
    return record
