"""Errors as the command line tells them: one line that says what to do, and an exit code."""

from __future__ import annotations

from postroom.errors import DatabaseUnavailable, InvalidEmail, PostroomError

DONE, FAILED, WRONG_USAGE = 0, 1, 2


class WrongUsage(PostroomError):
    """What was written on the command line can never work."""


def describe(error: BaseException) -> tuple[str, int]:
    """The line for people and the exit code of what ended a command."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, WrongUsage | InvalidEmail):
        return str(error), WRONG_USAGE
    if isinstance(error, DatabaseUnavailable):
        return f"{error}; see whether it runs, and POSTROOM_DATABASE_URL", FAILED
    if isinstance(error, PostroomError):
        return str(error), FAILED
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", FAILED
    if isinstance(error, OSError):
        return _of_the_system(error), FAILED
    return _of_the_database(error) or _our_mistake(error), FAILED


def _of_the_system(error: OSError) -> str:
    what = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {what}" if error.filename else what


def _of_the_database(error: BaseException) -> str | None:
    import asyncpg

    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return f"database: {error}; name the tables' owner, or service_role, in POSTROOM_DATABASE_URL"
    if isinstance(error, asyncpg.PostgresError):
        # Its str() has them in several lines. Where a constraint refuses, the detail is the whole row.
        detail = None if isinstance(error, asyncpg.IntegrityConstraintViolationError) else error.detail
        parts = (*error.args[:1], detail, error.hint)
        return f"database: {'; '.join(str(part) for part in parts if part)}"
    return None


def _our_mistake(error: BaseException) -> str:
    return (
        f"postroom has made a mistake ({type(error).__name__}: {error}); POSTROOM_LOG_LEVEL=debug shows where"
    )
