"""The admin API's guard and routes: nobody without the key, no page of a browser, and each route does what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from node.api.admin import AdminParts, build_admin
from node.errors import SettingsError
from node.keys_list import keys_document
from node.store.admin_key import admin_key
from node.store.database import place_of
from node.store.schema import keys
from node.store.usage_reader import UsageReader
from tests.store.rows import AT_US, cloud_row, ledger, row

KEY = "sa-0123456789abcdef"
AUTH = {"authorization": f"Bearer {KEY}"}
ROUTES = ["/admin/stats", "/admin/usage", "/admin/keys", "/admin/providers", "/metrics"]


class Operated:
    """What the routes show and change."""

    def __init__(self, reader: UsageReader) -> None:
        self.reader = reader
        self.isolated: dict[str, bool] = {"holysheep": False}

    def providers(self) -> dict[str, Any]:
        return {name: {"isolated": value} for name, value in self.isolated.items()}

    async def keys(self) -> dict[str, Any]:
        return {**keys_document(await self.reader.keys(), (), AT_US)}

    def client(self) -> httpx.AsyncClient:
        parts = AdminParts(
            key=KEY,
            host="127.0.0.1",
            stats=lambda: {"total": {"requests": 0}},
            metrics=lambda: b"spillway_up 1\n",
            usage=self.reader.usage,
            keys=self.keys,
            providers=self.providers,
            isolate=lambda name: self.isolated.update({name: True}),
            restore=lambda name: self.isolated.update({name: False}),
            now_us=lambda: AT_US + 1,
        )
        transport = httpx.ASGITransport(app=build_admin(parts))
        return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8001", headers=AUTH)


@pytest.fixture
def operated(tmp_path: Path) -> Operated:
    return Operated(UsageReader(place_of(tmp_path, None)))


@pytest.mark.parametrize("path", [*ROUTES, "/", "/livez", "/admin/nope", "/openapi.json"])
@pytest.mark.parametrize(
    "key", [None, "", "Bearer", "Bearer x", f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}"]
)
async def test_nothing_is_told_without_the_key(operated: Operated, path: str, key: str | None) -> None:
    async with operated.client() as client:
        del client.headers["authorization"]
        answer = await client.get(path, headers={} if key is None else {"authorization": key})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("host", ["127.0.0.1:8001", "localhost:8001", "localhost", "[::1]:8001", "LOCALHOST:1"])
async def test_address_and_localhost_are_its_names(operated: Operated, host: str) -> None:
    async with operated.client() as client:
        assert (await client.get("/admin/stats", headers={"host": host})).status_code == 200
        origin = {"host": host, "origin": f"http://{host.lower()}"}
        assert (await client.get("/admin/stats", headers=origin)).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8001", "127.0.0.1.evil.example", "", "localhost.evil"])
async def test_name_that_was_made_to_resolve_to_this_machine_is_refused(operated: Operated, host: str) -> None:
    async with operated.client() as client:
        answer = await client.get("/admin/stats", headers={"host": host})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (403, "foreign_origin", "host")


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:8001", "http://127.0.0.1:8000"])
async def test_page_of_another_origin_is_refused(operated: Operated, origin: str) -> None:
    async with operated.client() as client:
        answer = await client.post("/admin/providers/holysheep/isolate", headers={"origin": origin})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (403, "foreign_origin", "origin")
    assert not operated.isolated["holysheep"]


async def test_provider_is_isolated_and_restored_by_name(operated: Operated) -> None:
    async with operated.client() as client:
        answer = await client.post("/admin/providers/holysheep/isolate")
        assert answer.json() == {"holysheep": {"isolated": True}}
        assert (await client.get("/admin/providers")).json() == {"holysheep": {"isolated": True}}
        assert (await client.post("/admin/providers/holysheep/restore")).json() == {"holysheep": {"isolated": False}}
        assert (await client.post("/admin/providers/nobody/isolate")).status_code == 404
        assert (await client.get("/admin/providers/holysheep/isolate")).status_code == 405
    assert operated.isolated == {"holysheep": False}


async def test_usage_is_what_the_command_shows(operated: Operated, tmp_path: Path) -> None:
    with ledger(tmp_path, row(), cloud_row(caller="bob")):
        async with operated.client() as client:
            by = (await client.get("/admin/usage?by=key,backend&since=24h&until=2026-11-29")).json()
            bobs = (await client.get("/admin/usage", params={"key": "bob"})).json()
        await operated.reader.close()
    assert [(line["key"], line["backend"], line["requests"]) for line in by["lines"]] == [
        ("alice", "local", 1),
        ("bob", "holysheep", 1),
    ]
    assert (bobs["total"]["spent_usd"], bobs["lines"]) == (1.3e-07, [])


@pytest.mark.parametrize(
    ("query", "param"),
    [("sicne=24h", "sicne"), ("by=owner", "by"), ("since=x", "since"), ("since=1h&since=2h", "since"),
     ("since=2026-11-30&until=2026-11-29", "since"), ("until=", "until")],
)  # fmt: skip
async def test_question_that_makes_no_sense_is_400_and_named(operated: Operated, query: str, param: str) -> None:
    async with operated.client() as client:
        answer = await client.get(f"/admin/usage?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_ledger_that_is_not_there_is_503_until_it_is(operated: Operated, tmp_path: Path) -> None:
    async with operated.client() as client:
        answer = await client.get("/admin/usage")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "ledger_unavailable")
        with ledger(tmp_path, row()):
            assert (await client.get("/admin/usage")).json()["total"]["requests"] == 1
            await operated.reader.close()


async def test_keys_are_listed_without_what_could_be_used_as_one(operated: Operated, tmp_path: Path) -> None:
    values = {"id": "sk-abc", "name": "alice", "sha256": "ab" * 32, "residency": "any", "priority": 0}
    with ledger(tmp_path) as database:
        with database.writing() as connection:
            connection.execute(keys.insert().values(**values, created_us=AT_US))
        async with operated.client() as client:
            answer = await client.get("/admin/keys")
        await operated.reader.close()
    assert [each["name"] for each in answer.json()["ledger"]] == ["alice"]
    assert "ab" * 32 not in answer.text


async def test_revoked_key_is_said_to_be_one_and_keys_have_their_rights(operated: Operated, tmp_path: Path) -> None:
    values = {"id": "sk-abc", "name": "alice", "sha256": "ab" * 32, "residency": "any", "priority": 0}
    rights = {"models": '["demo"]', "day_nano_usd": 2_500_000_000, "requests_per_minute": 9}
    with ledger(tmp_path) as database:
        with database.writing() as connection:
            connection.execute(keys.insert().values(**values, **rights, created_us=AT_US, expires_us=0))
        async with operated.client() as client:
            (shown,) = (await client.get("/admin/keys")).json()["ledger"]
        await operated.reader.close()
    assert (shown["state"], shown["expires"], shown["models"]) == ("revoked", None, ["demo"])
    assert (shown["budget_usd"]["day"], shown["requests_per_minute"]) == (2.5, 9)


def test_key_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    made = admin_key(tmp_path / "data", {})
    assert len(made) >= 43
    assert (tmp_path / "data" / "admin.key").stat().st_mode & 0o777 == 0o600
    assert admin_key(tmp_path / "data", {}) == made
    assert admin_key(tmp_path / "data", {"SPILLWAY_ADMIN_KEY": KEY}) == KEY
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["admin.key"]
    (tmp_path / "data" / "admin.key").chmod(0o640)
    with pytest.raises(SettingsError, match="others can read it"):
        admin_key(tmp_path / "data", {})
    with pytest.raises(SettingsError, match="SPILLWAY_ADMIN_KEY: an admin key has at least 16 characters"):
        admin_key(tmp_path, {"SPILLWAY_ADMIN_KEY": "short"})
