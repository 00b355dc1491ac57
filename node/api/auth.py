"""Who is calling: bearer keys against their digests, in constant time."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from node.api.body import Headers
from node.errors import AuthenticationFailed
from node.routing.values import Residency
from node.settings import KeySettings

ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller and what its key pins."""

    tenant: str
    residency: Residency


class Keyring:
    """The configured keys. Without any, everyone is `anonymous`; the node then listens on loopback only."""

    def __init__(self, keys: tuple[KeySettings, ...]) -> None:
        self.replace(keys)

    def replace(self, keys: tuple[KeySettings, ...]) -> None:
        """From now on these keys are known, and no others."""
        self._keys = [(bytes.fromhex(key.sha256), Caller(key.name, key.residency)) for key in keys]

    def authenticate(self, headers: Headers) -> Caller:
        """The caller behind the `Authorization` header. Raises `AuthenticationFailed`."""
        if not self._keys:
            return Caller(ANONYMOUS, Residency.ANY)
        given = next((value for name, value in headers if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        # Every key is compared, so that the time taken says nothing about which one matched.
        found = [caller for known, caller in self._keys if hmac.compare_digest(known, digest)]
        if scheme.lower() != b"bearer" or not found:
            raise AuthenticationFailed("Missing or unknown API key. Send it as `Authorization: Bearer <key>`.")
        return found[0]
