"""Keys at rest: shown once, kept as a hash, replaced with a grace, ended for good."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from _harness import postgres
from sqlalchemy import text

from node.caller import Caller
from node.money import Budget
from node.routing.values import Residency
from node.store.database import Database, StoreUnavailable, place_of
from node.store.keys import PREFIX, KeyRefused, SqlKeyStore
from node.store.secret import CACHE_SALT, kept_secret

HOUR_US = 3_600_000_000
ALL_RIGHTS = Caller(
    "app",
    Residency.PREMISES,
    frozenset({"b", "a"}),
    Budget(hour_nano_usd=1, day_nano_usd=2, month_nano_usd=3),
    60,
    1000,
    7,
    0.8,
)


class House:
    """A store with a clock that is set by hand."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.now_us = 1_800_000_000_000_000
        self.database = Database(place_of(folder, url))
        self.store = SqlKeyStore(self.database, lambda: self.now_us)

    def good(self) -> list[str]:
        return [each.id for each in self.store.all() if each.is_good(self.now_us)]


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server | None]:
    programs = postgres.binaries()
    if programs is None:
        yield None
        return
    with postgres.server(programs) as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def house(request: pytest.FixtureRequest, tmp_path: Path, server: postgres.Server | None) -> Iterator[House]:
    if request.param == "postgresql" and server is None:
        pytest.skip("PostgreSQL's server is not installed (Debian, Ubuntu: apt install postgresql)")
    house = House(tmp_path, server.url if server is not None and request.param == "postgresql" else None)
    house.database.open()
    yield house
    house.database.close()
    if house.database.place.file is None:
        with house.database.engine.connect() as connection, connection.begin():
            connection.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
        house.database.engine.dispose()


@pytest.fixture
def here(tmp_path: Path) -> Iterator[House]:
    """With SQLite, whose file can be taken away."""
    house = House(tmp_path)
    house.database.open()
    yield house
    house.database.close()


def test_key_has_256_random_bits_and_only_its_digest_is_kept(here: House, tmp_path: Path) -> None:
    key = here.store.create(Caller("app"))
    assert key.startswith(PREFIX)
    assert len(bytes.fromhex(key.removeprefix(PREFIX))) == 32
    (kept,) = here.store.all()
    assert kept.digest == hashlib.sha256(key.encode()).digest()
    here.database.close()
    everything = b"".join(file.read_bytes() for file in tmp_path.iterdir() if file.is_file())
    assert key[len(kept.id) + 1 :].encode() not in everything
    assert kept.id.encode() in everything


def test_rights_come_back_as_they_were_given(house: House) -> None:
    house.store.create(ALL_RIGHTS)
    house.store.create(Caller("all"))
    everything, limited = house.store.all()
    assert (everything.caller, limited.caller) == (Caller("all"), ALL_RIGHTS)


def test_name_has_one_key_until_that_is_revoked(house: House) -> None:
    house.store.create(Caller("app"))
    with pytest.raises(KeyRefused, match="'app' has a key already"):
        house.store.create(Caller("app"))
    assert house.store.revoke("app") == 1
    house.store.create(Caller("app"))
    assert len(house.good()) == 1


def test_rotated_key_stays_good_for_the_grace_and_the_new_one_has_its_rights(house: House) -> None:
    house.store.create(ALL_RIGHTS)
    house.now_us += 5
    house.store.rotate("app", HOUR_US)
    old, new = house.store.all()
    assert old.caller == new.caller == ALL_RIGHTS
    assert (old.expires_us, new.expires_us) == (house.now_us + HOUR_US, None)
    assert house.good() == [old.id, new.id]
    house.now_us += HOUR_US
    assert house.good() == [new.id]


def test_second_rotation_does_not_lengthen_the_first_ones_grace(house: House) -> None:
    house.store.create(Caller("app"))
    house.store.rotate("app", HOUR_US)
    ends_us = house.store.all()[0].expires_us
    house.now_us += 1
    house.store.rotate("app", 9 * HOUR_US)
    assert house.store.all()[0].expires_us == ends_us
    assert len(house.good()) == 3


def test_rotation_without_grace_ends_the_old_key_at_once(house: House) -> None:
    house.store.create(Caller("app"))
    house.store.rotate("app", 0)
    assert house.good() == [house.store.all()[1].id]


def test_revoked_key_does_not_come_to_life_when_the_clock_goes_back(house: House) -> None:
    house.store.create(Caller("app"))
    house.store.revoke("app")
    house.now_us = 1
    assert house.good() == []


def test_revoking_ends_every_key_of_the_name_and_no_other(house: House) -> None:
    house.store.create(Caller("app"))
    house.store.create(Caller("other"))
    house.store.rotate("app", HOUR_US)
    assert house.store.revoke("app") == 2
    assert [each.caller.tenant for each in house.store.all() if each.is_good(house.now_us)] == ["other"]


@pytest.mark.parametrize("change", ["rotate", "revoke"])
def test_what_is_not_there_is_said_to_be_so(house: House, change: str) -> None:
    def attempt() -> None:
        house.store.rotate("app", 0) if change == "rotate" else house.store.revoke("app")

    with pytest.raises(KeyRefused, match="there is no key named 'app'"):
        attempt()
    house.store.create(Caller("app"))
    house.store.revoke("app")
    with pytest.raises(KeyRefused, match="no key that is still good"):
        attempt()


def test_every_change_changes_the_mark_and_nothing_else_does(house: House) -> None:
    marks = [house.store.mark()]
    for change in (
        lambda: house.store.create(Caller("app")),
        lambda: house.store.rotate("app", HOUR_US),
        lambda: house.store.create(Caller("other")),
        lambda: house.store.revoke("app"),
        lambda: house.store.rotate("other", 0),
    ):
        change()
        marks.append(house.store.mark())
        assert house.store.mark() == marks[-1]
    assert len(set(marks)) == len(marks)


def test_order_is_that_of_making_also_when_the_clock_goes_back(house: House) -> None:
    house.store.create(Caller("app"))
    house.now_us -= HOUR_US
    key = house.store.rotate("app", HOUR_US)
    assert house.store.all()[-1].digest == hashlib.sha256(key.encode()).digest()


def test_database_that_was_never_made_has_no_keys_and_is_not_made_by_looking(tmp_path: Path) -> None:
    house = House(tmp_path / "nowhere")
    assert (house.store.all(), house.store.mark()) == ((), ())
    assert not (tmp_path / "nowhere").exists()


def test_node_that_never_had_keys_has_none_while_its_database_cannot_be_read(here: House) -> None:
    file = here.database.place.file
    assert file is not None
    here.database.close()
    file.write_bytes(b"no database at all" * 100)
    later = House(file.parent)
    assert (later.store.all(), later.store.mark()) == ((), ())


def test_database_that_is_gone_is_not_one_without_keys(here: House) -> None:
    here.store.create(Caller("app"))
    assert here.database.place.file is not None
    here.database.place.file.unlink()
    with pytest.raises(StoreUnavailable):
        here.store.all()


def test_secret_is_made_once(house: House, tmp_path: Path) -> None:
    secret = kept_secret(house.database, CACHE_SALT)
    assert len(secret) == 32
    assert kept_secret(house.database, CACHE_SALT) == secret
    with house.database.reading() as connection:
        assert connection.scalar(text("SELECT count(*) FROM secrets")) == 1
    elsewhere = House(tmp_path / "elsewhere")
    elsewhere.database.open()
    assert kept_secret(elsewhere.database, CACHE_SALT) != secret
    elsewhere.database.close()
