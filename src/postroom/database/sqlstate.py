"""What a database error says, whichever driver raised it and whatever has wrapped it."""

from __future__ import annotations


def driver_error(error: BaseException) -> BaseException:
    """What the driver raised, however often a framework (Django, SQLAlchemy) has wrapped it."""
    found, inner = error, _within(error)
    while inner is not None:
        found, inner = (inner if _own(inner) else found), _within(inner)
    return found


def sqlstate_of(error: BaseException) -> str:
    """Its SQLSTATE; empty where it has none."""
    return _own(driver_error(error))


def _own(error: BaseException) -> str:
    return str(getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or "")


def _within(error: BaseException) -> BaseException | None:
    inner = getattr(error, "orig", None) or error.__cause__
    return inner if isinstance(inner, BaseException) else None
