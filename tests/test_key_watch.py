"""A running node hears of keys that are made and ended; and where keys do not go together, it does not start."""

from __future__ import annotations

import asyncio
import hashlib
import logging

import pytest

from node.caller import Caller
from node.errors import SettingsError
from node.key_watch import KeyWatch, Reading, check_keys
from node.settings import KeySettings
from node.store.database import StoreUnavailable
from node.store.keys import Mark, SqlKeyStore, StoredKey

TEAM = KeySettings(name="team", sha256=hashlib.sha256(b"sk-team").hexdigest())


def key(name: str, expires_us: int | None = None) -> StoredKey:
    return StoredKey(f"sk-spw-{name}", name.encode(), Caller(name), 0, expires_us)


class Table(SqlKeyStore):
    """Keys in memory, read by the watch as it reads a database's; `away` makes it unreachable."""

    def __init__(self) -> None:
        self.keys: tuple[StoredKey, ...] = ()
        self.away = False
        self.whole_reads = 0

    def all(self) -> tuple[StoredKey, ...]:
        self.whole_reads += 1
        return self.keys

    def mark(self) -> Mark:
        if self.away:
            raise StoreUnavailable("the disk is gone")
        return (len(self.keys), sum(each.expires_us is not None for each in self.keys))


@pytest.fixture
def table() -> Table:
    return Table()


def test_change_is_handed_on_and_what_has_not_changed_is_not_read(table: Table) -> None:
    told: list[object] = []
    watch = KeyWatch(table, told.append)
    for keys in ((), (), (key("a"),), (key("a"),), (key("a", 0),)):
        table.keys = keys
        watch.take_up(watch.read())
    assert told == [(), (key("a"),), (key("a", 0),)]
    assert table.whole_reads == 3


def test_keys_stay_as_they_are_while_they_cannot_be_read_and_it_is_said_once(
    table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[object] = []
    watch = KeyWatch(table, told.append)
    table.keys = (key("a"),)
    watch.take_up(watch.read())
    table.away = True
    table.keys = (key("a", 0),)
    for _ in range(3):
        watch.take_up(watch.read())
    assert watch.latest.stored == (key("a"),)
    assert [each.levelno for each in caplog.records] == [logging.WARNING]
    assert "the disk is gone" in caplog.text
    table.away = False
    watch.take_up(watch.read())
    assert told == [(key("a"),), (key("a", 0),)]


async def test_watch_looks_by_itself_until_it_is_stopped(table: Table) -> None:
    told = asyncio.Event()
    watch = KeyWatch(table, lambda keys: told.set(), interval_s=0.001)
    watch.start()
    async with asyncio.timeout(10):
        await told.wait()
    await watch.stop()
    assert watch.latest.stored == ()


def test_name_in_settings_and_database_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match=r"keys: 'team' is in the settings and in the database.*revoke team"):
        check_keys("127.0.0.1", (TEAM,), Reading((key("team"),)), 1)
    check_keys("127.0.0.1", (TEAM,), Reading((key("team", 0), key("other"))), 1)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "node.example", "localhost.example"])
@pytest.mark.parametrize("stored", [(), (key("gone", 0),)])
def test_listening_to_other_machines_without_a_key_is_refused(host: str, stored: tuple[StoredKey, ...]) -> None:
    with pytest.raises(SettingsError, match=r"listen\.host.*spillway keys create.*SPILLWAY_API_KEY"):
        check_keys(host, (), Reading(stored), 1)


def test_listening_to_other_machines_with_a_key_of_either_kind_is_allowed() -> None:
    check_keys("0.0.0.0", (TEAM,), Reading(None, None, "gone"), 1)
    check_keys("0.0.0.0", (), Reading((key("app"),)), 1)


def test_keys_that_cannot_be_read_keep_other_machines_out() -> None:
    with pytest.raises(SettingsError, match=r"listen\.host.*cannot be read: the disk is gone"):
        check_keys("0.0.0.0", (), Reading(None, None, "the disk is gone"), 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.9.1"])
def test_listening_to_this_machine_needs_no_key(host: str) -> None:
    check_keys(host, (), Reading(()), 1)
