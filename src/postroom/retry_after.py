"""Retry-After, as servers write it: seconds, or a date (RFC 9110, 10.2.3)."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

RETRY_AFTER_S_MAX = 24 * 3600.0


def retry_after_s(value: str | None) -> float | None:
    """Seconds to wait, at most a day; None where nothing that can be read is said."""
    value = (value or "").strip()
    if value.isascii() and value.replace(".", "", 1).isdecimal() and len(value) < 20:
        return min(float(value), RETRY_AFTER_S_MAX)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    left_s = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(left_s, 0.0), RETRY_AFTER_S_MAX)
