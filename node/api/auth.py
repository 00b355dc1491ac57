"""Who is calling: bearer keys, from the settings and from the database, by their digests."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import replace

from node.api.body import Headers
from node.caller import ANONYMOUS, Caller, caller_of
from node.errors import AuthenticationFailed, KeysUnavailable
from node.settings import KeySettings
from node.store.keys import StoredKey

Entry = tuple[bytes, Caller, int | None]
"""A key's digest, whose it is, and when it ends (microseconds since 1970)."""


class Keyring:
    """The keys that are good. Where there has never been any, everyone is `anonymous`, if `on_loopback`.

    `stored` are the keys of the database, None while it cannot be read: then nobody is let in whose key the settings do
    not name. `secret` is what tenants' cache salts are made of; an exchanged one counts from the next `replace` on.
    """

    def __init__(
        self,
        keys: tuple[KeySettings, ...],
        stored: tuple[StoredKey, ...] | None,
        *,
        on_loopback: bool,
        secret: bytes,
        now_us: Callable[[], int],
    ) -> None:
        self._on_loopback = on_loopback
        self.secret = secret
        self._now_us = now_us
        self._anyone = Caller(ANONYMOUS)
        self.replace(keys, stored)

    @property
    def is_open(self) -> bool:
        """Whether everyone on this machine is let in."""
        return self._open

    @property
    def lets_nobody_in(self) -> bool:
        """Whether keys are wanted and none is good."""
        return not self._open and not self._by_digest

    def replace(self, keys: tuple[KeySettings, ...], stored: tuple[StoredKey, ...] | None) -> None:
        """From now on these keys are known, and no others. Of a name in both, those of the settings."""
        self._stored = stored
        # A key that was revoked closes the node as well: taking the last one away must not let everybody in.
        self._open = self._on_loopback and not keys and stored == ()
        named = {key.name for key in keys}
        entries: list[Entry] = [
            (each.digest, self._salted(each.caller), each.expires_us)
            for each in stored or ()
            if each.is_good(self._now_us()) and each.caller.tenant not in named
        ]
        entries += [(bytes.fromhex(key.sha256), self._salted(caller_of(key)), None) for key in keys]
        self._by_digest = {entry[0]: entry for entry in entries}

    def authenticate(self, headers: Headers) -> Caller:
        """The caller behind the `Authorization` header. Raises `AuthenticationFailed`, and `KeysUnavailable`.

        The digest is looked up in a hash table, at the same cost however many keys there are. All that its timing could
        tell is of hashes of a SHA-256, and nobody can bring that of a guess step by step nearer to a key's. What is
        found is compared whole, in constant time.
        """
        if self._open:
            return self._anyone
        given = next((value for name, value in headers if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        known, caller, expires_us = self._by_digest.get(digest, _NOBODY)
        if (
            hmac.compare_digest(known, digest)
            and scheme.lower() == b"bearer"
            and (expires_us is None or self._now_us() < expires_us)
        ):
            return caller
        if self._stored is None and key:
            raise KeysUnavailable("The node cannot read its keys at the moment.")
        raise AuthenticationFailed("Missing or unknown API key. Send it as `Authorization: Bearer <key>`.")

    def _salted(self, caller: Caller) -> Caller:
        return replace(caller, cache_salt=hmac.new(self.secret, caller.tenant.encode(), hashlib.sha256).hexdigest())


_NOBODY: Entry = (bytes(32), Caller(""), 0)
