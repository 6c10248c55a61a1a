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

from tests.model.limit_model import GLOBAL, Book, Limits, recipient_key
from tests.model.rows import Due, Lease, Marks, Pause, Refusal, Row, Seen

POISON = 3

Value = Row | Book | Marks | Refusal | Pause | Seen | None
Written = dict[UUID | str, Value]
"""Rows by id; what stands beside them by a word and a name; None is what was deleted."""


class WouldWait(Exception):
    """Another transaction has written what this call must write."""


class Refused(Exception):
    """The row's own trigger says no."""


class LeaseLost(Exception):
    """The row has passed on to somebody else, or the handler is done already."""


@dataclass
class QueueModel:
    """What is committed, and what open transactions have written."""

    done: str
    committed: Written = field(default_factory=dict)
    open: dict[str, Written] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    refusing: dict[UUID, Literal["lease", "settle"]] = field(default_factory=dict)
    """Rows with a trigger that refuses to be leased, or that an attempt is counted."""

    # Transactions

    def see(self, session: str) -> Written:
        """The world as a session's next statement sees it."""
        return self.committed | self.open.get(session, {})

    def rows(self, session: str) -> dict[UUID, Row]:
        """The rows that a session sees."""
        return {
            key: row
            for key, row in self.see(session).items()
            if isinstance(key, UUID) and isinstance(row, Row)
        }

    def row(self, session: str, row_id: UUID) -> Row | None:
        """One of them."""
        return self.rows(session).get(row_id)

    def refusals(self, session: str) -> dict[UUID, Refusal]:
        """The rows that a session sees set aside."""
        return {
            UUID(str(key).split()[1]): value
            for key, value in self.see(session).items()
            if isinstance(value, Refusal)
        }

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
        """Slots that the global limit has left; None where there is no limit."""
        return self.limits.free(GLOBAL, self._books(session))

    def claim(self, session: str, worker: str | None, count: int, order: list[UUID]) -> list[Lease]:
        """Lease what is due; `order` has all ids, those of the oldest due time first."""
        rows, changes = self.rows(session), Written()
        leases: list[Lease] = []
        if self.pause_of(session, "queue") is not None:
            return leases
        for priority in sorted({row.priority for row in rows.values() if row.live}, reverse=True):
            has_more = True
            while has_more and len(leases) < count:
                looked = [row_id for row_id in order if self._may_be_claimed(session, row_id, rows, priority)]
                looked = looked[: count - len(leases)]
                changes |= {row_id: rows[row_id] for row_id in looked if row_id not in changes}  # locked
                due = [row_id for row_id in looked if not self._has_begun(session, row_id, rows[row_id])]
                for row_id in looked:
                    if row_id not in due:
                        self._write_outcome(session, row_id, "crashed", rows, changes)
                others = due if worker is None else self._plan(session, due, rows, changes)
                planned = [row_id for row_id in due if rows[row_id].due == "future"]
                has_more = bool(planned) and len(planned) + len(others) == len(due)
                for row_id in others:
                    if self.refusing.get(row_id) == "lease":
                        self._set_aside(session, row_id, changes)
                        continue
                    number = rows[row_id].lease_no + 1
                    rows[row_id] = changes[row_id] = replace(
                        rows[row_id], status="processing", lease_no=number, leased_by=worker, due="future"
                    )
                    leases.append(Lease(row_id, number, worker or ""))
        self.write(session, changes)
        return leases

    def is_first(self, row_id: UUID, rows: dict[UUID, Row]) -> bool:
        """Of a lane only the first may go; it is held by what lives, and by some dead letters."""
        row = rows[row_id]
        return row.lane is None or not any(
            other.lane == row.lane
            and (other.live or (other.status == "dead_letter" and other.lane_holds))
            and (other.lane_place, other_id) < (row.lane_place, row_id)
            for other_id, other in rows.items()
        )

    def is_due(self, session: str, row_id: UUID, rows: dict[UUID, Row]) -> bool:
        """Whether a worker need not sleep because of it."""
        row = rows[row_id]
        return (
            row.live
            and row.due == "past"
            and row_id not in self.refusals(session)
            and self.is_first(row_id, rows)
        )

    def _may_be_claimed(self, session: str, row_id: UUID, rows: dict[UUID, Row], priority: int) -> bool:
        row = rows[row_id]
        refusal = self.refusals(session).get(row_id, Refusal(next_try="past"))
        return (
            row.live
            and row.priority == priority
            and row.due == "past"
            and not self.held_by_other(session, row_id)
            and refusal.verdict is None
            and refusal.next_try == "past"
            and self.is_first(row_id, rows)
        )

    def _plan(self, session: str, due: list[UUID], rows: dict[UUID, Row], changes: Written) -> list[UUID]:
        # Who would stand in a line as long as a window has slots gets his time at once; others are leased.
        if not any(row.status == "pending" and row.planned_under for row in rows.values()):
            return due
        others = []
        for row_id in due:
            row, key = rows[row_id], recipient_key(rows[row_id].to)
            book = self._books(session, changes).get(key, Book())
            has_place = row.status != "pending" or row.planned_under is not None or row.priority > 0
            if has_place or not self.limits.is_line_full(key, book):
                others.append(row_id)
            elif not self.held_by_other(session, key):
                rows[row_id] = changes[row_id] = self.limits.waiting(row, key)
                changes[key] = replace(book, planned=book.planned + 1)
        return others

    def begin(self, session: str, worker: str, leases: list[Lease]) -> set[UUID]:
        """Take slots and write marks; what finds no slot goes back to its place. The ids that have begun."""
        rows, changes = self.rows(session), Written()
        ours = [lease for lease in leases if self._is_held(rows.get(lease.id), lease)]
        ending = {lease.id for lease in ours if rows[lease.id].due == "past"}
        waiting, books = self.limits.take_slots([rows[lease.id] for lease in ours], self._books(session))
        for lease in ours:
            if lease.id in ending:
                changes[lease.id] = replace(rows[lease.id], due="future")
            elif rows[lease.id].to is not None and (ending or any(waiting)):
                changes[lease.id] = rows[lease.id]  # e-mails are locked all together
        changes.update(books)
        begun = set()
        for lease, back in zip(ours, waiting, strict=True):
            if back is None:
                begun.add(lease)
            else:
                changes[lease.id] = back
        changes[worker] = Marks(frozenset(self.begun_of(session, worker) | begun))
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
        rows, changes = self.rows(session), Written()
        settled = set()
        for lease in leases:
            row = rows.get(lease.id)
            if row is None or row.lease_no != lease.lease_no:
                continue
            if (
                self._is_held(row, lease) or (verdict == "done" and row.status != self.done)
            ) and self._write_outcome(session, lease.id, verdict, rows, changes):
                settled.add(lease.id)
        self.write(session, changes)
        return settled

    def settle_refused(self, session: str) -> int:
        """Outcomes that a row's trigger refused, tried again: how many are written or of no use any more."""
        rows, changes = self.rows(session), Written()
        count = 0
        for row_id, refusal in self.refusals(session).items():
            if refusal.next_try != "past" or self.held_by_other(session, f"refused {row_id}"):
                continue
            row = rows.get(row_id)
            changes[f"refused {row_id}"] = None
            if refusal.verdict is None or row is None:
                continue
            if row.lease_no == refusal.lease_no and (
                row.status == "processing" or (refusal.verdict == "done" and row.status != self.done)
            ):
                if self._refuses_outcome(row_id, refusal.verdict):
                    self._locked(session, row_id)
                    changes[f"refused {row_id}"] = replace(refusal, next_try="future")
                    continue
                changes[row_id] = self._settled(row, refusal.verdict)
            count += 1
        self.write(session, changes)
        return count

    # What others do

    def add(self, session: str, row_id: UUID, row: Row) -> None:
        """A row is queued."""
        self.write(session, {row_id: row})

    def mark_done(self, session: str, row_id: UUID) -> None:
        """Whoever holds it: it is out."""
        row = self.row(session, row_id)
        if row is not None and row.status != self.done:
            self._own_trigger(session, row_id, "settle")
            settled = replace(self._settled(row, "done"), planned_under=row.planned_under)
            self.write(session, {row_id: replace(settled, lease_no=row.lease_no + 1)})

    def mark_failed(self, session: str, row_id: UUID) -> None:
        """Only what an old caller holds."""
        row = self.row(session, row_id)
        if row is not None and row.status == "processing" and row.leased_by is None:
            self._own_trigger(session, row_id, "settle")
            self.write(session, {row_id: self._settled(row, "temporary")})

    def put_back(self, session: str, row_id: UUID) -> None:
        """An old caller writes `pending`."""
        row = self.row(session, row_id)
        if row is not None and row.status == "processing":
            back = replace(
                row, status="pending", leased_by=None, waits_for=None, due=row.next_retry or "past"
            )
            self.write(session, {row_id: back})

    def take(self, session: str, row_id: UUID) -> None:
        """An old caller writes `processing`: a lease of 15 minutes."""
        row = self.row(session, row_id)
        if row is not None and row.status == "pending":
            self._own_trigger(session, row_id, "lease")
            number = row.lease_no + 1
            self.write(
                session,
                {row_id: replace(row, status="processing", leased_by=None, lease_no=number, due="future")},
            )

    def pauses(self, session: str) -> dict[str, Pause]:
        """What a session sees paused, or having been: `queue`, `transport`."""
        return {
            str(key).removeprefix("pause of "): value
            for key, value in self.see(session).items()
            if isinstance(value, Pause)
        }

    def pause_of(self, session: str, what: str) -> Pause | None:
        """The pause that a session sees hold."""
        pause = self.pauses(session).get(what)
        return None if pause is None or pause.is_over else pause

    def pause(self, session: str, what: str, by: str, *, ends: bool) -> None:
        """A person pauses the queue, or a transport; what he says last holds."""
        self.write(session, {f"pause of {what}": Pause(by, ends)})

    def resume(self, session: str, what: str) -> bool:
        """A person ends it: whether it held."""
        before = self.pauses(session).get(what)
        if before is None:  # one that another transaction has begun is nobody else's yet
            return False
        self.write(session, {f"pause of {what}": None})
        return not before.is_over

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

    def replan(self, session: str) -> int:
        """Who waits under a limit that holds no more, the first of them, is due: how many."""
        rows = self.rows(session)
        waiting = {
            row_id: row
            for row_id, row in rows.items()
            if row.status == "pending"
            and row.planned_under not in (None, self.limits.rule)
            and row.waits_for is not None
        }
        void = min((str(row.planned_under) for row in waiting.values()), default=None)
        changes: Written = {
            row_id: replace(row, due="past", next_retry=None, waits_for=None, planned_under=None)
            for row_id, row in waiting.items()
            if row.planned_under == void and not self.held_by_other(session, row_id)
        }
        self.write(session, changes)
        return len(changes)

    def clean_up(self, session: str) -> None:
        """Old rows that are done go, but those that somebody has in hand."""
        self.write(
            session,
            {
                row_id: None
                for row_id, row in self.rows(session).items()
                if row.status == self.done and row.is_old and not self.held_by_other(session, row_id)
            },
        )

    def finish_handler(self, session: str, lease: Lease, handler: str) -> None:
        """The mark, where the lease is held, and the handler is not done yet."""
        row = self.row(session, lease.id)
        if row is None or not self._is_held(row, lease) or handler in row.handlers:
            raise LeaseLost
        self.write(session, {lease.id: replace(row, handlers=(*row.handlers, handler))})

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
        return Lease(row_id, row.lease_no, row.leased_by) in self._marks(session, row.leased_by)

    def begun_of(self, session: str, worker: str) -> set[Lease]:
        """A worker's attempts that have begun and are not settled: what it writes into its mark again."""
        rows = self.rows(session)
        return {mark for mark in self._marks(session, worker) if self._is_held(rows.get(mark.id), mark)}

    def _marks(self, session: str, worker: str) -> frozenset[Lease]:
        marks = self.see(session).get(worker)
        return marks.of if isinstance(marks, Marks) else frozenset()

    def _books(self, session: str, changes: Written | None = None) -> dict[str, Book]:
        seen = self.see(session) | (changes or {})
        return {str(key): book for key, book in seen.items() if isinstance(book, Book)}

    def _locked(self, session: str, row_id: UUID) -> None:
        if self.held_by_other(session, row_id):
            raise WouldWait(row_id)

    def _own_trigger(self, session: str, row_id: UUID, what: str) -> None:
        self._locked(session, row_id)
        if self.refusing.get(row_id) == what:
            raise Refused(row_id)

    def _refuses_outcome(self, row_id: UUID, verdict: str) -> bool:
        return self.refusing.get(row_id) == "settle" and verdict not in ("released", "transport_down")

    def _set_aside(
        self,
        session: str,
        row_id: UUID,
        changes: Written,
        lease_no: int | None = None,
        verdict: str | None = None,
    ) -> None:
        old = self.refusals(session).get(row_id, Refusal())
        changes[f"refused {row_id}"] = Refusal(lease_no or old.lease_no, verdict or old.verdict)

    def _write_outcome(
        self, session: str, row_id: UUID, verdict: str, rows: dict[UUID, Row], changes: Written
    ) -> bool:
        if self._refuses_outcome(row_id, verdict):
            self._locked(session, row_id)
            self._set_aside(session, row_id, changes, rows[row_id].lease_no, verdict)
            return False
        rows[row_id] = changes[row_id] = self._settled(rows[row_id], verdict)
        return True

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
        waits_for = "backoff" if waits else "transport" if verdict == "transport_down" else None
        if verdict == "released" and row.to is not None:
            waits_for = row.waits_for
        return replace(
            row,
            status=status,
            attempts=row.attempts + ended,
            error_count=row.error_count + failed,
            crashes=crashes,
            leased_by=None,
            next_retry=next_retry,
            due=(next_retry or "past") if status == "pending" else None,
            waits_for=waits_for,
            planned_under=None if ended else row.planned_under,
            is_done=row.is_done or verdict == "done",
            is_old=row.is_old and verdict != "done",
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
                    waits_for=None,
                    planned_under=None,
                    dead_reason=None,
                    has_failed_at=False,
                    is_done=rows[key].is_done and handler is None,
                    is_old=rows[key].is_old and handler is None,
                    handlers=tuple(done for done in rows[key].handlers if done != handler),
                )
                for key in chosen
            },
        )
        return chosen
