"""A throwaway PostgreSQL server on loopback, from the system's own packages; tests are skipped where there is none."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


def _as_postgres() -> list[str]:
    """PostgreSQL does not run as root."""
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []


@contextmanager
def postgres_server() -> Iterator[str]:
    """A server for the length of the block; gives the URL of an empty database."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server here: /usr/lib/postgresql/*/bin/initdb is not there")
    before = _as_postgres()
    if before:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    folder = Path(tempfile.mkdtemp(prefix="spillway-pg-", dir="/tmp"))
    if before:
        shutil.chown(folder, "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data, log = folder / "data", folder / "log"
    control = [*before, str(binaries / "pg_ctl"), "-D", str(data), "-l", str(log), "-w"]
    try:
        subprocess.run(
            [*before, str(binaries / "initdb"), "-D", str(data), "-U", "spillway", "-A", "trust", "-N", "-E", "UTF8"],
            check=True,
            capture_output=True,
            cwd="/tmp",
        )
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c fsync=off -k {folder}"
        subprocess.run([*control, "-o", options, "start"], check=True, stdout=subprocess.DEVNULL, cwd="/tmp")
        try:
            yield f"postgresql://spillway@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], check=False, stdout=subprocess.DEVNULL, cwd="/tmp")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
