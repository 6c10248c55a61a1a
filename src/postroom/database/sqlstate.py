"""What a database error says, whichever driver raised it and whatever has wrapped it."""

from __future__ import annotations


def driver_error(error: BaseException) -> BaseException:
    """What the driver raised, where a framework (Django, SQLAlchemy) has wrapped it."""
    if _own(error):
        return error
    cause = getattr(error, "orig", None) or error.__cause__
    return cause if isinstance(cause, BaseException) else error


def sqlstate_of(error: BaseException) -> str:
    """Its SQLSTATE; empty where it has none."""
    return _own(driver_error(error))


def _own(error: BaseException) -> str:
    return str(getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or "")
