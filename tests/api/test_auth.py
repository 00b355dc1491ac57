"""Who is calling: a known key, or nobody."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from node.api.auth import Keyring
from node.caller import ANONYMOUS, Caller
from node.errors import AuthenticationFailed, KeysUnavailable
from node.money import Budget
from node.routing.values import Residency
from node.settings import BudgetSettings, KeySettings
from node.store.keys import StoredKey

NOW_US = 1_000_000
TEAM = KeySettings(name="team", sha256=hashlib.sha256(b"sk-team").hexdigest())
CLINIC = KeySettings(name="clinic", sha256=hashlib.sha256(b"sk-clinic").hexdigest(), residency=Residency.PREMISES)


def keyring(
    *keys: KeySettings,
    stored: tuple[StoredKey, ...] | None = (),
    on_loopback: bool = True,
    secret: bytes = b"secret",
    now_us: int = NOW_US,
) -> Keyring:
    return Keyring(keys, stored, on_loopback=on_loopback, secret=secret, now_us=lambda: now_us)


def stored(key: str, name: str = "app", expires_us: int | None = None) -> StoredKey:
    return StoredKey(key[:8], hashlib.sha256(key.encode()).digest(), Caller(name, priority=3), 0, expires_us)


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", b"Bearer " + key.encode())]


KEYRING = keyring(TEAM, CLINIC)


def test_each_key_is_its_own_caller_with_its_own_pin() -> None:
    team, clinic = KEYRING.authenticate(bearer("sk-team")), KEYRING.authenticate(bearer("sk-clinic"))
    assert (team.tenant, team.residency) == ("team", Residency.ANY)
    assert (clinic.tenant, clinic.residency) == ("clinic", Residency.PREMISES)


def test_settings_say_what_a_key_may_do() -> None:
    key = KeySettings(
        name="a",
        sha256=TEAM.sha256,
        models=("demo",),
        budget=BudgetSettings(hour_usd=0.1, month_usd=20),
        requests_per_minute=60,
        tokens_per_minute=1000,
        priority=-5,
        ttft_budget_ms=800,
    )
    caller = keyring(key).authenticate(bearer("sk-team"))
    assert (caller.may_use("demo"), caller.may_use("other")) == (True, False)
    assert caller.budget == Budget(hour_nano_usd=100_000_000, month_nano_usd=20_000_000_000)
    assert (caller.requests_per_minute, caller.tokens_per_minute, caller.is_limited) == (60, 1000, True)
    assert (caller.priority, caller.ttft_budget_s) == (-5, 0.8)


def test_keys_of_settings_and_database_are_good_together() -> None:
    both = keyring(TEAM, stored=(stored("sk-spw-1"),))
    assert both.authenticate(bearer("sk-team")).tenant == "team"
    assert both.authenticate(bearer("sk-spw-1")).tenant == "app"
    assert both.authenticate(bearer("sk-spw-1")).priority == 3


def test_scheme_is_read_as_http_says_without_regard_to_case() -> None:
    headers = [(b"host", b"x"), (b"authorization", b"bearer  sk-team ")]
    assert KEYRING.authenticate(headers).tenant == "team"


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"sk-team",
        b"Basic sk-team",
        b"Bearer",
        b"Bearer ",
        b"Bearer sk-tea",
        b"Bearer sk-team2",
        b"Bearer \xff\x00",
    ],
)
def test_row_33_anything_but_a_known_key_is_turned_away(value: bytes) -> None:
    with pytest.raises(AuthenticationFailed) as refused:
        KEYRING.authenticate([(b"authorization", value)])
    assert "sk-" not in refused.value.message


def test_row_33_what_is_found_by_its_digest_is_compared_whole_and_nothing_else_is_touched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare_digest = hmac.compare_digest

    def compare(known: bytes, given: bytes) -> bool:
        compared.append((known, given))
        return compare_digest(known, given)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    KEYRING.authenticate(bearer("sk-team"))
    with pytest.raises(AuthenticationFailed):
        KEYRING.authenticate(bearer("sk-nobody"))
    team, nobody = hashlib.sha256(b"sk-team").digest(), hashlib.sha256(b"sk-nobody").digest()
    assert compared == [(team, team), (bytes(32), nobody)]  # as much work for a stranger as for a caller


def test_no_header_is_no_key() -> None:
    with pytest.raises(AuthenticationFailed):
        KEYRING.authenticate([])


def test_digest_itself_is_no_key() -> None:
    with pytest.raises(AuthenticationFailed):
        KEYRING.authenticate(bearer(TEAM.sha256))


@pytest.mark.parametrize("expires_us", [0, NOW_US - 1, NOW_US])
def test_row_33_key_that_has_ended_is_turned_away(expires_us: int) -> None:
    with pytest.raises(AuthenticationFailed):
        keyring(stored=(stored("sk-spw-1", expires_us=expires_us),)).authenticate(bearer("sk-spw-1"))


def test_replaced_key_is_good_to_the_end_of_its_grace_and_not_a_moment_longer() -> None:
    clock = [NOW_US]
    ring = Keyring(
        (),
        (stored("sk-spw-1", expires_us=NOW_US + 10), stored("sk-spw-2")),
        on_loopback=True,
        secret=b"s",
        now_us=lambda: clock[0],
    )
    assert ring.authenticate(bearer("sk-spw-1")) == ring.authenticate(bearer("sk-spw-2"))
    clock[0] += 10  # nobody has read the database again
    assert ring.authenticate(bearer("sk-spw-2")).tenant == "app"
    with pytest.raises(AuthenticationFailed):
        ring.authenticate(bearer("sk-spw-1"))


def test_node_that_never_had_a_key_lets_everyone_in_as_anonymous() -> None:
    assert keyring().is_open
    assert keyring().authenticate([]) == Caller(ANONYMOUS)
    assert keyring().authenticate(bearer("anything")).tenant == ANONYMOUS


def test_revoking_the_last_key_lets_nobody_in() -> None:
    ring = keyring(stored=(stored("sk-spw-1", expires_us=0),))
    assert not ring.is_open
    with pytest.raises(AuthenticationFailed):
        ring.authenticate([])


def test_nobody_is_anonymous_where_other_machines_can_call() -> None:
    ring = keyring(on_loopback=False)
    assert not ring.is_open
    with pytest.raises(AuthenticationFailed):
        ring.authenticate([])


def test_while_the_database_cannot_be_read_only_keys_of_the_settings_are_let_in() -> None:
    ring = keyring(TEAM, stored=None)
    assert ring.authenticate(bearer("sk-team")).tenant == "team"
    with pytest.raises(KeysUnavailable):  # it may be a good one: the client should come back
        ring.authenticate(bearer("sk-spw-1"))
    with pytest.raises(AuthenticationFailed):
        ring.authenticate([])
    assert not keyring(stored=None).is_open


def test_tenants_have_salts_of_their_own_that_nobody_can_guess() -> None:
    ring = keyring(TEAM, stored=(stored("sk-spw-1"), stored("sk-spw-2")))
    team, app, rotated = (ring.authenticate(bearer(key)) for key in ("sk-team", "sk-spw-1", "sk-spw-2"))
    assert team.cache_salt is not None
    assert team.cache_salt != app.cache_salt == rotated.cache_salt
    assert keyring(TEAM, secret=b"other").authenticate(bearer("sk-team")).cache_salt != team.cache_salt
    assert team.cache_salt not in repr(team)
    assert keyring().authenticate([]).cache_salt is None
