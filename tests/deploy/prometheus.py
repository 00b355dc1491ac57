"""A real Prometheus over the rules in scripts/deploy, that scrapes one node once per half second."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "scripts" / "deploy"
_WITHIN_S = 60.0


def program(name: str) -> str | None:
    """Where it is, None where it is not installed."""
    return shutil.which(name)


class Prometheus:
    """One that runs."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """The result of an instant query; fails for an expression that Prometheus does not take."""
        async with httpx.AsyncClient(timeout=30) as client:
            answer = await client.get(f"{self._url}/api/v1/query", params={"query": expression})
        document = answer.json()
        assert document["status"] == "success", (expression, document)
        result: list[dict[str, Any]] = document["data"]["result"]
        return result

    async def get(self, path: str) -> Any:
        """`data` of one of its documents."""
        async with httpx.AsyncClient(timeout=30) as client:
            return (await client.get(f"{self._url}{path}")).json()["data"]


@asynccontextmanager
async def prometheus(target: str, folder: Path, port: int) -> AsyncIterator[Prometheus]:
    """Prometheus with the configuration as shipped, but for the target, the port and shorter intervals."""
    process = _start(target, folder, port)
    try:
        url = f"http://127.0.0.1:{port}"
        give_up_s = asyncio.get_running_loop().time() + _WITHIN_S
        async with httpx.AsyncClient() as client:
            while True:
                try:
                    if (await client.get(f"{url}/-/ready")).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                assert process.poll() is None, (folder / "prometheus.log").read_text()
                assert asyncio.get_running_loop().time() < give_up_s
                await asyncio.sleep(0.1)
        yield Prometheus(url)
    finally:
        process.terminate()
        process.wait()


def _start(target: str, folder: Path, port: int) -> subprocess.Popen[bytes]:
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    config["rule_files"] = [str(DEPLOY / each) for each in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    found = program("prometheus")
    assert found is not None
    where = (f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address=127.0.0.1:{port}")
    with (folder / "prometheus.log").open("wb") as log:
        return subprocess.Popen([found, f"--config.file={file}", *where], stdout=log, stderr=log)
