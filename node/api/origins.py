"""Whether a browser sends a request on behalf of a page that is not ours.

A foreign page can reach loopback by a name of its own that resolves to it (DNS rebinding): so `Host` has to be an
address, `localhost` or the configured name, and `Origin`, which a browser sends with whatever a page does across
origins, has to be this very host. `Sec-Fetch-Site` tells of what a page embeds, which has no `Origin`.
"""

from __future__ import annotations

import ipaddress

from node.api.body import Headers
from node.errors import ForeignOrigin


def check_host(headers: Headers, own_name: str, what: str) -> None:
    """Raise `ForeignOrigin` for a request that names a host which is not ours. `what` is what it wants."""
    hosts = _values(headers, b"host")
    if len(hosts) != 1 or not _is_ours(hosts[0], own_name.lower()):
        raise ForeignOrigin(f"{what[0].upper()}{what[1:]} is reached by its address or as localhost.", param="host")


def check_origin(headers: Headers, own_name: str, what: str) -> None:
    """Raise `ForeignOrigin` for a request that a foreign page could have made. `what` is what it wants."""
    check_host(headers, own_name, what)
    own = f"http://{_values(headers, b'host')[0]}"
    embedded = any(site not in ("same-origin", "none") for site in _values(headers, b"sec-fetch-site"))
    if embedded or any(origin != own for origin in _values(headers, b"origin")):
        raise ForeignOrigin(f"Pages of other origins do not reach {what}.", param="origin")


def _values(headers: Headers, wanted: bytes) -> list[str]:
    return [value.decode("latin-1").lower() for name, value in headers if name == wanted]


def _is_ours(host: str, own_name: str) -> bool:
    bare = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    if bare in ("localhost", own_name):
        return True
    try:
        ipaddress.ip_address(bare.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
