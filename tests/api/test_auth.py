"""Who is calling: a known key, or nobody."""

import hashlib
import hmac

import pytest

from node.api.auth import ANONYMOUS, Caller, Keyring
from node.errors import AuthenticationFailed
from node.routing.values import Residency
from node.settings import KeySettings

KEYRING = Keyring(
    (
        KeySettings(name="team", sha256=hashlib.sha256(b"sk-team").hexdigest()),
        KeySettings(name="clinic", sha256=hashlib.sha256(b"sk-clinic").hexdigest(), residency=Residency.PREMISES),
    )
)


def test_each_key_is_its_own_caller_with_its_own_pin() -> None:
    assert KEYRING.authenticate([(b"authorization", b"Bearer sk-team")]) == Caller("team", Residency.ANY)
    assert KEYRING.authenticate([(b"authorization", b"Bearer sk-clinic")]) == Caller("clinic", Residency.PREMISES)


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
def test_anything_but_a_known_key_is_turned_away(value: bytes) -> None:
    with pytest.raises(AuthenticationFailed) as refused:
        KEYRING.authenticate([(b"authorization", value)])
    assert "sk-" not in refused.value.message


def test_every_key_is_compared_whichever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(known: bytes, given: bytes) -> bool:
        compared.append(known)
        return known == given

    monkeypatch.setattr(hmac, "compare_digest", compare)
    KEYRING.authenticate([(b"authorization", b"Bearer sk-team")])
    assert len(compared) == 2
    with pytest.raises(AuthenticationFailed):
        KEYRING.authenticate([(b"authorization", b"Bearer sk-nobody")])
    assert len(compared) == 4


def test_no_header_is_no_key() -> None:
    with pytest.raises(AuthenticationFailed):
        KEYRING.authenticate([])


def test_digest_itself_is_no_key() -> None:
    digest = hashlib.sha256(b"sk-team").hexdigest().encode()
    with pytest.raises(AuthenticationFailed):
        KEYRING.authenticate([(b"authorization", b"Bearer " + digest)])


def test_node_without_keys_lets_everyone_in_as_anonymous() -> None:
    assert Keyring(()).authenticate([]) == Caller(ANONYMOUS, Residency.ANY)
    assert Keyring(()).authenticate([(b"authorization", b"Bearer anything")]).tenant == ANONYMOUS
