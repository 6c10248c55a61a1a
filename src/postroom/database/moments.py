"""
Times as PostgreSQL knows them and Python does not: infinity, before year 1, beyond year 9999.

asyncpg raises OverflowError for the last two, and one row with such a time would make the whole batch that
it is claimed with fail, again and again. Here they are the first or the last moment that Python can show in
any zone.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncpg

EARLIEST = datetime(1, 1, 2, tzinfo=UTC)
LATEST = datetime(9999, 12, 30, tzinfo=UTC)

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_INFINITY = 2**63 - 1
_FIRST, _LAST = (EARLIEST - _EPOCH) // _MICROSECOND, (LATEST - _EPOCH) // _MICROSECOND


async def read_all_moments(connection: asyncpg.Connection[Any]) -> None:
    """Make a connection read any timestamptz; it says nothing to the server."""
    await connection.set_type_codec(
        "timestamptz", schema="pg_catalog", encoder=_encode, decoder=_decode, format="tuple"
    )


def _decode(value: tuple[int]) -> datetime:
    if _FIRST <= value[0] <= _LAST:
        return _EPOCH + timedelta(0, 0, value[0])
    return LATEST if value[0] > 0 else EARLIEST


def _encode(value: object) -> tuple[int]:
    """As asyncpg does it: naive times are local, and its two ends stand for infinity."""
    if isinstance(value, datetime):
        moment = value
    elif isinstance(value, date):
        moment = datetime.combine(value, time())
    else:
        raise TypeError(f"expected a datetime, not {type(value).__name__}")
    if moment.replace(tzinfo=UTC) in _ENDS:
        return (_ENDS[moment.replace(tzinfo=UTC)],)
    return ((moment.astimezone(UTC) - _EPOCH) // _MICROSECOND,)


_ENDS = {
    datetime.max.replace(tzinfo=UTC): _INFINITY,
    LATEST: _INFINITY,
    datetime.min.replace(tzinfo=UTC): -_INFINITY - 1,
    EARLIEST: -_INFINITY - 1,
}
