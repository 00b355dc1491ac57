"""Names of requests, in the order in which they came."""

from __future__ import annotations

import os
import time

_VERSION_7 = 0x7 << 76
_VARIANT = 0b10 << 62
_RANDOM_A = 0xFFF << 64
_RANDOM_B = (1 << 62) - 1


def new_request_id() -> str:
    """32 hexadecimal digits: a UUID version 7 (RFC 9562, section 5.7), milliseconds first, then 74 random bits.

    Rows named so lie side by side in the ledger's index. With random names each call would touch a page of its own.
    """
    random = int.from_bytes(os.urandom(10))
    return (
        f"{(time.time_ns() // 1_000_000) << 80 | _VERSION_7 | random & _RANDOM_A | _VARIANT | random & _RANDOM_B:032x}"
    )
