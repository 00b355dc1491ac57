"""A network of one's own, without anybody else in it, where each packet that leaves loopback is seen.

A network namespace (network_namespaces(7)) with loopback and one tunnel device, which is the way to everywhere: what
would go out to the world comes out of the tunnel, and is counted.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import ipaddress
import os
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import Final

_CLONE_NEWNET: Final = 0x40000000  # linux/sched.h
_TUNSETIFF: Final = 0x400454CA  # linux/if_tun.h
_IFF_TUN_NO_PI: Final = 0x0001 | 0x1000
_DEVICE: Final = "world"
_ICMPV6: Final = 58
# RFC 5737: nobody's address, to see whether a packet is seen.
_NOBODY: Final = "192.0.2.77"
_SEEN_WITHIN_S: Final = 2.0
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_SET_UP: Final = (
    "link set lo up",
    f"link set {_DEVICE} addrgenmode none",
    f"address add 10.255.255.1/24 dev {_DEVICE}",
    f"link set {_DEVICE} up",
    f"route add default dev {_DEVICE}",
)
_SET_UP_V6: Final = (
    f"-6 address add fd00:5b::1/64 dev {_DEVICE} nodad",
    f"-6 route add default dev {_DEVICE}",
)


class Isolation:
    """The namespace this process, and every process it starts from now on, is in; `tunnel` is the way out of it."""

    def __init__(self, tunnel: int) -> None:
        self._tunnel = tunnel

    def packets(self) -> list[str]:
        """Where the packets went that left loopback since the last time. The kernel's own for IPv6 are none."""
        seen: list[str] = []
        while True:
            try:
                packet = os.read(self._tunnel, 65536)
            except BlockingIOError:
                return seen
            if (to := _destination(packet)) is not None:
                seen.append(to)

    def would_see(self) -> bool:
        """Whether a packet sent on purpose is seen."""
        with socket.socket(type=socket.SOCK_DGRAM) as opened:
            opened.sendto(b"?", (_NOBODY, 9))
        give_up_s = time.monotonic() + _SEEN_WITHIN_S
        while time.monotonic() < give_up_s:
            if _NOBODY in self.packets():
                return True
            time.sleep(0.01)
        return False


def isolate() -> Isolation | str:
    """Go into a namespace of one's own; a text that says why where that cannot be had. Before any thread is started."""
    if shutil.which("ip") is None:
        return "no `ip` command (iproute2), which sets a network up"
    if _LIBC.unshare(_CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        why = "it takes root (or CAP_SYS_ADMIN)" if code == errno.EPERM else os.strerror(code)
        return f"no network namespace of its own: {why}"
    try:
        tunnel = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(tunnel, _TUNSETIFF, struct.pack("16sH22x", _DEVICE.encode(), _IFF_TUN_NO_PI))
    except OSError as error:
        _ip("link set lo up")
        return f"no tunnel device, so nothing could leave, or be seen to: /dev/net/tun: {error.strerror}"
    for line in _SET_UP:
        _ip(line)
    if Path("/proc/net/if_inet6").exists():
        for line in _SET_UP_V6:
            _ip(line)
    return Isolation(tunnel)


def _ip(line: str) -> None:
    subprocess.run(["ip", *line.split()], check=True, stdin=subprocess.DEVNULL)


def _destination(packet: bytes) -> str | None:
    version = packet[0] >> 4
    if version == 4:
        return str(ipaddress.ip_address(packet[16:20]))
    # Which neighbours and multicast groups there are: the kernel asks that of each new device, with no socket of ours.
    to = ipaddress.ip_address(packet[24:40])
    hop_by_hop_or_icmp = packet[6] in (0, _ICMPV6)
    return None if to.is_multicast and hop_by_hop_or_icmp else str(to)
