"""
The queue in a page of Python: what each call must do, without SQL, time or locks.

Two sessions, `A` and `B`, may each have a transaction open. What a transaction has written is seen by itself
alone until it commits, and nobody else can write it meanwhile: he waits (and, here, gives up), or passes over
it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal
from uuid import UUID

Due = Literal["past", "future"] | None
"""When a row may be taken; None where it never will be."""

POISON = 3


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
    is_done: bool = False
    has_failed_at: bool = False
    dead_reason: str | None = None
    handlers: tuple[str, ...] = ()

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
class Shared:
    """What is written beside the rows: slots that were taken, and each worker's start marks."""

    slots_used: int = 0
    marks: frozenset[Lease] = frozenset()


Written = dict[UUID | str, Row | Shared | None]
"""By id; `book` and the workers' names for what is beside; None is a row that was deleted."""


class WouldWait(Exception):
    """Another transaction has written what this call must write."""


@dataclass
class QueueModel:
    """What is committed, and what open transactions have written."""

    done: str
    committed: Written = field(default_factory=dict)
    open: dict[str, Written] = field(default_factory=dict)
    limit: int | None = None

    # Transactions

    def see(self, session: str) -> Written:
        """The world as a session's next statement sees it."""
        return self.committed | self.open.get(session, {})

    def rows(self, session: str) -> dict[UUID, Row]:
        """The rows that a session sees."""
        return {key: row for key, row in self.see(session).items() if isinstance(row, Row) and key}  # type: ignore[misc]

    def row(self, session: str, row_id: UUID) -> Row | None:
        """One of them."""
        return self.rows(session).get(row_id)

    def shared(self, session: str, key: str) -> Shared:
        """What is beside the rows."""
        found = self.see(session).get(key)
        return found if isinstance(found, Shared) else Shared()

    def held_by_other(self, session: str, key: UUID | str) -> bool:
        """Whether the other session's open transaction has written this."""
        return any(key in written for other, written in self.open.items() if other != session)

    def write(self, session: str, changes: Written) -> None:
        """All of these, or none: a call that must wait for one of them has done nothing."""
        for key in changes:
            if self.held_by_other(session, key):
                raise WouldWait(key)
        self.open.get(session, self.committed).update(changes)

    def commit(self, session: str) -> None:
        """The transaction's writes are everybody's."""
        self.committed |= self.open.pop(session)

    def roll_back(self, session: str) -> None:
        """They have never been."""
        del self.open[session]

    # What a worker does

    def free_slots(self, session: str) -> int | None:
        """Slots that the limit has left; None where there is no limit."""
        return None if self.limit is None else max(self.limit - self.shared(session, "book").slots_used, 0)

    def claim(self, session: str, worker: str | None, count: int, order: list[UUID]) -> list[Lease]:
        """Lease what is due; `order` has all ids, those of the oldest due time first."""
        changes: Written = {}
        leases: list[Lease] = []
        rows = self.rows(session)
        due = [
            row_id
            for row_id in order
            if rows[row_id].live and rows[row_id].due == "past" and not self.held_by_other(session, row_id)
        ]
        for priority in sorted({rows[row_id].priority for row_id in due}, reverse=True):
            for row_id in [row_id for row_id in due if rows[row_id].priority == priority][
                : count - len(leases)
            ]:
                row = rows[row_id]
                if self._has_begun(session, row_id, row):
                    changes[row_id] = self._settled(row, "crashed")
                    continue
                number = row.lease_no + 1
                changes[row_id] = replace(
                    row, status="processing", lease_no=number, leased_by=worker, due="future"
                )
                leases.append(Lease(row_id, number, worker or ""))
            if len(leases) >= count:
                break
        self.write(session, changes)
        return leases

    def begin(self, session: str, worker: str, leases: list[Lease]) -> set[UUID]:
        """Take slots and write marks; what finds no slot goes back to its place. The ids that have begun."""
        rows = self.rows(session)
        ours = [lease for lease in leases if self._is_held(rows.get(lease.id), lease)]
        changes: Written = {}
        if any(rows[lease.id].due == "past" for lease in ours):
            changes |= {lease.id: replace(rows[lease.id], due="future") for lease in ours}
        free = self.free_slots(session)
        begun = ours if free is None else ours[:free]
        if free is not None and ours:
            used = self.shared(session, "book").slots_used
            changes["book"] = Shared(slots_used=used + len(begun))
        for lease in ours[len(begun) :]:
            row = rows[lease.id]
            due = row.next_retry or "past"
            changes[lease.id] = replace(row, status="pending", leased_by=None, due=due)
        marks = self.shared(session, worker).marks
        changes[worker] = Shared(marks=frozenset(self._still_begun(session, marks)) | set(begun))
        self.write(session, changes)
        return {lease.id for lease in begun}

    def extend(self, session: str, leases: list[Lease]) -> set[UUID]:
        """Another lease for what is still held, and nobody has in hand."""
        rows = self.rows(session)
        ours = {
            lease.id
            for lease in leases
            if self._is_held(rows.get(lease.id), lease) and not self.held_by_other(session, lease.id)
        }
        self.write(session, {row_id: replace(rows[row_id], due="future") for row_id in ours})
        return ours

    def settle(self, session: str, leases: list[Lease], verdict: str) -> set[UUID]:
        """Write outcomes down; those that an old lease brings change nothing."""
        rows = self.rows(session)
        changes: Written = {}
        for lease in leases:
            row = rows.get(lease.id)
            if row is None or row.lease_no != lease.lease_no:
                continue
            if self._is_held(row, lease) or (verdict == "done" and row.status != self.done):
                changes[lease.id] = self._settled(row, verdict)
        self.write(session, changes)
        return {key for key in changes if isinstance(key, UUID)}

    # What others do

    def add(self, session: str, row_id: UUID, row: Row) -> None:
        """A row is queued."""
        self.write(session, {row_id: row})

    def mark_done(self, session: str, row_id: UUID) -> None:
        """Whoever holds it: it is out."""
        row = self.row(session, row_id)
        if row is not None and row.status != self.done:
            settled = self._settled(row, "done")
            self.write(session, {row_id: replace(settled, lease_no=row.lease_no + 1)})

    def mark_failed(self, session: str, row_id: UUID) -> None:
        """Only what an old caller holds."""
        row = self.row(session, row_id)
        if row is not None and row.status == "processing" and row.leased_by is None:
            self.write(session, {row_id: self._settled(row, "temporary")})

    def put_back(self, session: str, row_id: UUID) -> None:
        """An old caller writes `pending`."""
        row = self.row(session, row_id)
        if row is not None and row.status == "processing":
            self.write(
                session,
                {row_id: replace(row, status="pending", leased_by=None, due=row.next_retry or "past")},
            )

    def take(self, session: str, row_id: UUID) -> None:
        """An old caller writes `processing`: a lease of 15 minutes."""
        row = self.row(session, row_id)
        if row is not None and row.status == "pending":
            number = row.lease_no + 1
            self.write(
                session,
                {row_id: replace(row, status="processing", leased_by=None, lease_no=number, due="future")},
            )

    def retry(self, session: str, ids: Iterable[UUID]) -> set[UUID]:
        """A person gives dead letters all their attempts again."""
        return self._revive(session, ids, {"dead_letter"}, None)

    def replay(self, session: str, ids: Iterable[UUID], handler: str) -> set[UUID]:
        """A person has a handler run again."""
        return self._revive(session, ids, {"dead_letter", self.done}, handler)

    def discard(self, session: str, ids: Iterable[UUID]) -> set[UUID]:
        """A person decides against dead letters."""
        rows = self.rows(session)
        chosen = {key for key in ids if key in rows and rows[key].status == "dead_letter"}
        self.write(session, {key: replace(rows[key], status="failed") for key in chosen})
        return chosen

    def clean_up(self, session: str, old: set[UUID]) -> None:
        """Old rows that are done go, but those that somebody has in hand."""
        rows = self.rows(session)
        self.write(
            session,
            {
                key: None
                for key in old
                if key in rows and rows[key].status == self.done and not self.held_by_other(session, key)
            },
        )

    def finish_handler(self, session: str, lease: Lease, handler: str) -> bool:
        """Whether the mark could be written: the lease is held, and the handler is not done yet."""
        row = self.row(session, lease.id)
        if not self._is_held(row, lease) or row is None or handler in row.handlers:
            return False
        self.write(session, {lease.id: replace(row, handlers=(*row.handlers, handler))})
        return True

    # Rules

    @staticmethod
    def _is_held(row: Row | None, lease: Lease) -> bool:
        return (
            row is not None
            and row.status == "processing"
            and (row.lease_no, row.leased_by) == (lease.lease_no, lease.worker)
        )

    def _has_begun(self, session: str, row_id: UUID, row: Row) -> bool:
        if row.status != "processing" or row.leased_by is None:
            return False
        lease = Lease(row_id, row.lease_no, row.leased_by)
        return lease in self.shared(session, row.leased_by).marks

    def _still_begun(self, session: str, marks: Iterable[Lease]) -> set[Lease]:
        rows = self.rows(session)
        return {mark for mark in marks if self._is_held(rows.get(mark.id), mark)}

    def begun_of(self, session: str, worker: str) -> set[Lease]:
        """A worker's attempts that have begun and are not settled: what it writes into its mark again."""
        return self._still_begun(session, self.shared(session, worker).marks)

    def _settled(self, row: Row, verdict: str) -> Row:
        ended = verdict not in ("released", "transport_down")
        failed = ended and verdict != "done"
        crashes = row.crashes + (verdict == "crashed")
        reason = None
        if verdict == "permanent":
            reason = "permanent"
        elif crashes >= POISON and verdict == "crashed":
            reason = "poison"
        elif failed and row.attempts + 1 >= row.max_attempts:
            reason = "exhausted"
        waits = failed and reason is None
        status = "dead_letter" if reason else self.done if verdict == "done" else "pending"
        next_retry: Due = "future" if waits else row.next_retry
        return replace(
            row,
            status=status,
            attempts=row.attempts + ended,
            error_count=row.error_count + failed,
            crashes=crashes,
            leased_by=None,
            next_retry=next_retry,
            due=(next_retry or "past") if status == "pending" else None,
            is_done=row.is_done or verdict == "done",
            has_failed_at=row.has_failed_at or reason is not None,
            dead_reason=reason,
        )

    def _revive(
        self, session: str, ids: Iterable[UUID], statuses: set[str], handler: str | None
    ) -> set[UUID]:
        rows = self.rows(session)
        chosen = {key for key in ids if key in rows and rows[key].status in statuses}
        self.write(
            session,
            {
                key: replace(
                    rows[key],
                    status="pending",
                    attempts=0,
                    crashes=0,
                    due="past",
                    next_retry=None,
                    dead_reason=None,
                    has_failed_at=False,
                    is_done=rows[key].is_done and handler is None,
                    handlers=tuple(done for done in rows[key].handlers if done != handler),
                )
                for key in chosen
            },
        )
        return chosen
