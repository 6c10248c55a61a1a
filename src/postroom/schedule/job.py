"""What the scheduler is handed: a job, and what it is told when it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class JobRow:
    """
    A job as the database has it.

    Attributes:
        builtin: One of postroom's own; else its command is SQL.
        runs_as: What a scheduler must be able to run: the job by its name, or `sql:USER`.
        last_minute: What was due until then is done, or was given up.
        first_began_at: Its first run; None where there was none.
        last_succeeded_at: When the last run that succeeded began.
        running: A run of it has begun and not ended.
    """

    jobid: int
    name: str | None
    schedule: str
    command: str
    builtin: bool
    runs_as: str
    last_minute: datetime
    first_began_at: datetime | None
    last_succeeded_at: datetime | None
    running: bool

    @property
    def called(self) -> str:
        """Its name; where it has none, its number."""
        return self.name or f"job {self.jobid}"


@dataclass(frozen=True, slots=True)
class Run:
    """
    One run of a job, as the job sees it.

    Attributes:
        began_at: By the database's clock.
        first_began_at: The job's first run; None where this is it.
        last_succeeded_at: When the last run that succeeded began; None where none has.
        stop: Once it is set the job ends soon: it begins nothing new.
    """

    began_at: datetime
    first_began_at: datetime | None
    last_succeeded_at: datetime | None
    stop: asyncio.Event


@dataclass(frozen=True, slots=True)
class Job:
    """
    One of postroom's own jobs.

    Attributes:
        name: As builtin_jobs() in SQL has it.
        run: Does it; returns one line that says what it did. Whatever it raises is a failed run.
    """

    name: str
    run: Callable[[Run], Coroutine[Any, Any, str]]
