"""What the model's world is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from uuid import UUID

Due = Literal["past", "future"] | None
"""When a row may be taken; None where it never will be."""


@dataclass(frozen=True)
class Row:
    """One e-mail or event, as far as the contract speaks of it."""

    priority: int = 0
    max_attempts: int = 3
    status: str = "pending"
    attempts: int = 0
    error_count: int = 0
    crashes: int = 0
    lease_no: int = 0
    leased_by: str | None = None
    due: Due = "past"
    next_retry: Due = None
    waits_for: str | None = None
    is_done: bool = False
    is_old: bool = False
    has_failed_at: bool = False
    dead_reason: str | None = None
    # An e-mail's.
    to: str | None = None
    planned_under: str | None = None
    # An event's.
    handlers: tuple[str, ...] = ()
    lane: str | None = None
    lane_place: int = 0
    lane_holds: bool = False

    @property
    def live(self) -> bool:
        return self.status in ("pending", "processing")


@dataclass(frozen=True)
class Lease:
    """What a worker knows of a row that it has claimed, be it still true or not."""

    id: UUID
    lease_no: int
    worker: str


@dataclass(frozen=True)
class Marks:
    """A worker's start marks."""

    of: frozenset[Lease] = frozenset()


@dataclass(frozen=True)
class Refusal:
    """A row whose own trigger has refused an update, and the outcome that could not be written."""

    lease_no: int | None = None
    verdict: str | None = None
    next_try: Due = "future"


@dataclass(frozen=True)
class Pause:
    """What a person has paused: it may end by itself, and may have done so."""

    by: str
    ends: bool = False
    is_over: bool = False


@dataclass(frozen=True)
class Seen:
    """An event that its provider may send again."""
