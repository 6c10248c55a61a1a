"""Ids of rows that Python makes; SQL makes its own in the same way (`enqueue_emails`)."""

from __future__ import annotations

import os
from time import time_ns
from uuid import UUID

_VERSION_AND_VARIANT = 7 << 76 | 2 << 62
_RANDOM_BITS = (1 << 62) - 1


def new_row_id() -> UUID:
    """
    A UUID of version 7, made of this machine's clock and 62 random bits.

    The time is only for PostgreSQL's sake: rows that come one after the other stand in one page of the
    primary key. Nothing goes by it, so a clock that is wrong or set back costs a page more and no promise.

    Source: RFC 9562, 5.7, and 6.2 method 3 for what is finer than a millisecond; docs/decisions/0026.
    """
    ms, ns = divmod(time_ns(), 1_000_000)
    random = int.from_bytes(os.urandom(8)) & _RANDOM_BITS
    return UUID(
        int=(ms & 0xFFFFFFFFFFFF) << 80 | ns * 4096 // 1_000_000 << 64 | random | _VERSION_AND_VARIANT
    )
