"""
Any order of calls, from two sessions with open transactions, on real PostgreSQL: it does what the model does.

After each step all rows are compared, as the world sees them and as each open transaction does, with what the
contract says of status, counts, times, leases, places in line and order.

POSTROOM_TEST_SEED repeats a run: what is drawn, and which rules there are to choose from, depends on nothing
that the database makes up. Draws are places in lists, and ids come from a counter. (Hypothesis ends a run
whose same draws lead elsewhere.)
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from psycopg.rows import dict_row

from tests.model.limit_model import value_of
from tests.model.queue_model import LeaseLost, QueueModel, Refused, WouldWait
from tests.model.rows import Due, Lease, Pause, Refusal, Row, Seen
from tests.sql.session import EMAIL, QUEUES, Queue
from tests.support.postgres import PostgresServer

SESSIONS = st.sampled_from(["A", "B"])
PLACES = st.lists(st.integers(0, 11), min_size=1, max_size=4, unique=True)
TOTALS = st.sampled_from([None, None, 3, 8, 20])
RECIPIENTS = st.sampled_from([None, 1, 2, 5])
WORKERS = {name: uuid5(UUID(int=0), name) for name in ("A", "B")}
NAMES = {worker: name for name, worker in WORKERS.items()}
ERRORS: dict[str | None, type[Exception]] = {"55P03": WouldWait, "P0001": Refused, "PR001": LeaseLost}
"""What the model raises where PostgreSQL says this."""

Connection = psycopg.Connection[dict[str, Any]]


class TwoSessions(RuleBasedStateMachine):
    """The machine of one queue; a subclass has the queue and the connections."""

    queue: Queue
    connections: dict[str, Connection]
    observer: Connection

    @initialize(
        rows=st.lists(
            st.tuples(st.sampled_from([0, 0, 5]), st.sampled_from("ab"), st.sampled_from([None, "l1"])),
            min_size=2,
            max_size=6,
        ),
        total=TOTALS,
        recipient=RECIPIENTS,
    )
    def begin_anew(
        self, rows: list[tuple[int, str, str | None]], total: int | None, recipient: int | None
    ) -> None:
        """A few rows, both workers, long delays, long leases."""
        for connection in self.connections.values():
            connection.execute("ROLLBACK")
            connection.execute("SET lock_timeout = '50ms'")
        self.observer.execute(
            """
            TRUNCATE public.email_queue, public.webhook_retry_queue, public.rate_limit_counters,
                postroom.workers, postroom.refused_rows, postroom.seen_webhooks, postroom.webhook_requests,
                postroom.pauses, public.refusing
            """
        )
        for key, value in {
            "email.backoff": "1h",
            "webhook.backoff": "1h",
            "lease": "1h",
            "retention.sent": "30d",
            "retention.processed": "30d",
        }.items():
            self.observer.execute("SELECT postroom.set_setting(%s, %s)", [key, value])
        for worker in WORKERS.values():
            self.observer.execute(
                "SELECT postroom.register_worker(%s, %s, 'h', 1, '0', true, false, '{}')",
                [worker, self.queue.name],
            )
        self.model = QueueModel(self.queue.done)
        self.leases: list[Lease] = []
        self.keys: dict[str, UUID] = {}
        self.made: dict[UUID, int] = {}
        self.before: dict[UUID, dict[str, Any]] = {}
        self.expiries = 0
        # Events have no limits.
        self._set_limits(*((total, recipient) if self.queue is EMAIL else (None, None)))
        for priority, to, lane in rows:
            self._insert("A", *self._new_row(priority, to, lane, 2, later=False))

    # Transactions

    @rule(session=SESSIONS)
    def open(self, session: str) -> None:
        """A transaction begins, if none is open."""
        if session not in self.model.open:
            self.connections[session].execute("BEGIN")
            self.model.open[session] = {}

    @precondition(lambda self: self.model.open)
    @rule(session=SESSIONS, ending=st.sampled_from(["COMMIT", "COMMIT", "ROLLBACK"]))
    def end(self, session: str, ending: str) -> None:
        """It ends, one way or the other."""
        if session in self.model.open:
            self.connections[session].execute(ending)
            (self.model.commit if ending == "COMMIT" else self.model.roll_back)(session)

    # Front doors

    @rule(
        session=SESSIONS,
        priority=st.sampled_from([0, 0, 0, 5, -5]),
        to=st.sampled_from("ab"),
        lane=st.sampled_from([None, "l1", "l1", "l2"]),
        place=st.integers(1, 3),
        later=st.sampled_from([False, False, False, True]),
        key=st.sampled_from([None, None, "k1", "k2"]),
    )
    def enqueue(
        self, session: str, priority: int, to: str, lane: str | None, place: int, later: bool, key: str | None
    ) -> None:
        """A plain INSERT, or enqueue_email; the door of webhooks for events with an id."""
        row_id, row = self._new_row(priority, to, lane, place, later=later)
        if self.queue is EMAIL and (key or priority):
            self._enqueue_email(session, row_id, row, key)
        elif key:
            self._store_webhook(session, row_id, row, key)
        else:
            self._insert(session, row_id, row)

    def _new_row(
        self, priority: int, to: str, lane: str | None, place: int, *, later: bool
    ) -> tuple[UUID, Row]:
        row_id = uuid5(UUID(int=0), f"row {len(self.made)}")
        self.made[row_id] = len(self.made)
        row = Row(
            priority=priority,
            due="future" if later else "past",
            next_retry="future" if later else None,
            waits_for="send_at" if later else None,
        )
        if self.queue is EMAIL:
            return row_id, replace(row, to=f"{to}@example.com")
        if lane is None:
            return row_id, row
        # Dead letters of one lane hold it, those of the other do not.
        return row_id, replace(row, lane=lane, lane_place=place, lane_holds=lane == "l1")

    def _insert(self, session: str, row_id: UUID, row: Row) -> None:
        values: dict[str, Any] = {
            "id": row_id,
            "priority": row.priority,
            "next_retry_at": "2999-01-01" if row.next_retry else None,
            "max_attempts": row.max_attempts,
        }
        if self.queue is EMAIL:
            values |= {"to_email": row.to, "subject": "s", "html": "h"}
        else:
            values |= {
                "webhook_type": "stripe",
                "payload": "{}",
                "lane": row.lane,
                "lane_holds": row.lane_holds,
            }
            values |= {"lane_place": row.lane_place if row.lane else None}
        places = ", ".join(["%s"] * len(values))
        self._call(
            session,
            f"INSERT INTO {self.queue.table} ({', '.join(values)}) VALUES ({places})",
            list(values.values()),
            lambda: self.model.add(session, row_id, row),
        )
        self._date(session, row_id, row_id)

    def _date(self, session: str, row_id: UUID, new_id: UUID) -> None:
        # Rows that go back to their places stand in the order of created_at: no two are equal.
        self.connections[session].execute(
            f"""
            UPDATE {self.queue.table}
            SET id = %s, created_at = '2019-01-01'::timestamptz + interval '1 s' * %s
            WHERE id = %s
            """,
            [new_id, self.made[new_id], row_id],
        )

    def _enqueue_email(self, session: str, new_id: UUID, row: Row, key: str | None) -> None:
        # A key that another transaction holds, has changed or deletes is waited for.
        known = self.keys.get(key) if key else None
        if known is not None and self.model.held_by_other(session, known):
            known_here = None
            waits = True
        else:
            known_here = known if known is not None and self.model.row(session, known) is not None else None
            waits = False

        def expect() -> None:
            if waits:
                raise WouldWait(key)

        rows = self._call(
            session,
            """
            SELECT enqueue_email(
                %s, 's', 'h', idempotency_key => %s, send_at => %s, priority => %s, max_attempts => 3
            ) AS id
            """,
            [row.to, key, "2999-01-01" if row.next_retry else None, row.priority],
            expect,
        )
        if rows is None:
            return
        row_id = rows[0]["id"]
        assert row_id is not None
        if known_here is not None:
            assert row_id == known_here, "the key is known, and gave another row"
            return
        assert self.model.row(session, row_id) is None
        self._date(session, row_id, new_id)
        self.model.add(session, new_id, row)
        if key:
            self.keys[key] = new_id

    def _store_webhook(self, session: str, row_id: UUID, row: Row, key: str) -> None:
        # What the provider has sent once is known for 30 days, whatever became of its row.
        known = self.keys.get(key)
        seen = f"seen {key}"

        def expect() -> None:
            if self.model.held_by_other(session, seen):
                raise WouldWait(seen)

        rows = self._call(
            session,
            """
            SELECT * FROM postroom.store_webhooks(
                ARRAY[%s::uuid], '{stripe}', ARRAY[%s], '{t}', '{{}}'::text[], ARRAY['[]'::jsonb],
                '{POST}', '{/}', ARRAY['[]'::jsonb], ARRAY['b'::bytea],
                ARRAY[%s::text], ARRAY[%s::numeric], ARRAY[%s::boolean]
            ) AS id
            """,
            [row_id, key, row.lane, row.lane_place, row.lane_holds],
            expect,
        )
        if rows is None:
            return
        is_known = self.model.see(session).get(seen) is not None
        assert [stored["id"] for stored in rows] == ([] if is_known else [row_id]), known
        # One that is known is locked all the same.
        self.model.write(session, {seen: Seen()})
        if not is_known:
            self._date(session, row_id, row_id)
            row = replace(row, priority=0, max_attempts=6, due="past", next_retry=None, waits_for=None)
            self.model.add(session, row_id, row)
            self.keys[key] = row_id

    # Workers

    @rule(session=SESSIONS, count=st.integers(1, 6))
    def claim(self, session: str, count: int) -> None:
        """Highest priority first, then the oldest; no more than the limit has slots for."""
        self._claim(session, count)

    @rule(
        session=SESSIONS,
        count=st.integers(1, 6),
        verdict=st.sampled_from([None, "done", "temporary", "permanent", "released", "transport_down"]),
    )
    def work(self, session: str, count: int, verdict: str | None) -> None:
        """A worker's whole round; without a verdict it dies, and what it had begun is due again."""
        leases = self._claim(session, count)
        begun = self._begin(session, leases)
        leases = [lease for lease in leases if lease.id in begun]
        if verdict is not None:
            self._settle(session, session, leases, verdict)
            return
        for lease in leases:
            if not any(self.model.held_by_other(one, lease.id) for one in ("A", "B", "")):
                self._end_wait(lease.id)

    def _claim(self, session: str, count: int) -> list[Lease]:
        free = self.model.free_slots(session) if self.queue is EMAIL else None
        expected: list[Lease] = []
        order = self._order(session)

        def expect() -> None:
            if free is None or free > 0:
                expected.extend(
                    self.model.claim(session, session, min(count, count if free is None else free), order)
                )

        rows = self._call(
            session,
            f"SELECT id, lease_no FROM postroom.claim_{self.queue}s(%s, %s)",
            [WORKERS[session], count],
            expect,
        )
        if rows is not None:
            assert [(row["id"], row["lease_no"]) for row in rows] == [
                (lease.id, lease.lease_no) for lease in expected
            ]
            self.leases += expected
        return expected

    @rule(session=SESSIONS, count=st.integers(0, 3))
    def old_caller_claims(self, session: str, count: int) -> None:
        """The same, under a lease of 15 minutes that has no worker, and without slots."""
        expected: list[Lease] = []
        order = self._order(session)
        rows = self._call(
            session,
            f"SELECT id FROM {self.queue.batch}(%s)",
            [count],
            lambda: expected.extend(self.model.claim(session, None, count, order)),
        )
        if rows is not None:
            assert [row["id"] for row in rows] == [lease.id for lease in expected]

    @rule(session=SESSIONS, places=PLACES)
    def begin(self, session: str, places: list[int]) -> None:
        """The start marks, and the slots."""
        self._begin(session, self._some_leases(places, session))

    def _begin(self, session: str, leases: list[Lease]) -> set[UUID]:
        if not leases:
            return set()
        marks = list(self.model.begun_of(session, session))
        expected: set[UUID] = set()
        rows = self._call(
            session,
            f"SELECT id, state FROM postroom.begin_{self.queue}s(%s, %s, %s, %s, %s)",
            [
                WORKERS[session],
                [lease.id for lease in leases],
                [lease.lease_no for lease in leases],
                [mark.id for mark in marks],
                [mark.lease_no for mark in marks],
            ],
            lambda: expected.update(self.model.begin(session, session, leases)),
        )
        if rows is not None:
            assert {row["id"] for row in rows if row["state"] == "begun"} == expected
            # A line is counted anew each ten seconds: not here, where that would depend on the machine.
            self.connections[session].execute(
                """
                UPDATE rate_limit_counters SET checked_at = 'infinity'
                WHERE key IN (
                    SELECT key FROM rate_limit_counters WHERE checked_at < 'infinity' FOR UPDATE SKIP LOCKED
                )
                """
            )
        return expected

    @rule(
        session=SESSIONS,
        worker=SESSIONS,
        places=PLACES,
        verdict=st.sampled_from(
            ["done", "done", "temporary", "permanent", "uncertain", "transport_down", "released"]
        ),
    )
    def settle(self, session: str, worker: str, places: list[int], verdict: str) -> None:
        """Any lease that was ever given, in time or too late."""
        self._settle(session, worker, self._some_leases(places, worker), verdict)

    def _settle(self, session: str, worker: str, leases: list[Lease], verdict: str) -> None:
        count = len(leases)
        expected: set[UUID] = set()
        rows = self._call(
            session,
            f"SELECT id FROM postroom.settle_{self.queue}s(%s, %s, %s, %s, %s, %s, %s)",
            [
                WORKERS[worker],
                [lease.id for lease in leases],
                [lease.lease_no for lease in leases],
                [verdict] * count,
                ["reply"] * count,
                [None] * count,
                [None] * count,
            ],
            lambda: expected.update(self.model.settle(session, leases, verdict)),
        )
        if rows is not None:
            assert {row["id"] for row in rows} == expected

    @rule(session=SESSIONS, places=PLACES)
    def extend(self, session: str, places: list[int]) -> None:
        """Another lease for what is still held."""
        leases = self._some_leases(places, session)
        expected: set[UUID] = set()
        rows = self._call(
            session,
            f"SELECT * FROM postroom.extend_{self.queue}_leases(%s, %s, %s) AS id",
            [WORKERS[session], [lease.id for lease in leases], [lease.lease_no for lease in leases]],
            lambda: expected.update(self.model.extend(session, leases)),
        )
        if rows is not None:
            assert {row["id"] for row in rows} == expected

    @precondition(lambda self: self.queue is not EMAIL)
    @rule(
        session=SESSIONS, worker=SESSIONS, place=st.integers(0, 5), handler=st.sampled_from(["shop", "crm"])
    )
    def finish_handler(self, session: str, worker: str, place: int, handler: str) -> None:
        """A handler's mark: with the lease, and once."""
        leases = self._some_leases([place], worker)
        if leases:
            self._call(
                session,
                "SELECT postroom.finish_handler(%s, %s, %s, %s)",
                [WORKERS[worker], leases[0].id, leases[0].lease_no, handler],
                lambda: self.model.finish_handler(session, leases[0], handler),
            )

    @rule(session=SESSIONS)
    def settle_refused(self, session: str) -> None:
        """Outcomes that were set aside, each second."""
        expected: list[int] = []
        rows = self._call(
            session,
            f"SELECT postroom.settle_refused_{self.queue}s() AS count",
            [],
            lambda: expected.append(self.model.settle_refused(session)),
        )
        if rows is not None:
            assert [row["count"] for row in rows] == expected

    @precondition(lambda self: self.queue is EMAIL)
    @rule(session=SESSIONS)
    def replan(self, session: str) -> None:
        """Who waits for a limit that has changed, each second."""
        expected: list[int] = []
        rows = self._call(
            session,
            "SELECT postroom.replan_limited_emails(1000) AS count",
            [],
            lambda: expected.append(self.model.replan(session)),
        )
        if rows is not None:
            assert [row["count"] for row in rows] == expected

    @rule(session=SESSIONS)
    def wait(self, session: str) -> None:
        """0 where something is due, NULL where nothing waits."""
        self._forget_look(session)
        wait_s = (
            self.connections[session]
            .execute(f"SELECT postroom.{self.queue}_wait_s() AS wait_s")
            .fetchall()[0]["wait_s"]
        )
        if (pause := self.model.pause_of(session, "queue")) is not None:
            assert wait_s is None if not pause.ends else wait_s > 0
            return
        rows = self.model.rows(session)
        live = rows.keys() - self.model.refusals(session).keys()
        live = {row_id for row_id in live if rows[row_id].live}
        if self.queue is EMAIL and live and self.model.free_slots(session) == 0:
            assert wait_s > 0
        elif any(self.model.is_due(session, row_id, rows) for row_id in live):
            assert wait_s == 0
        else:
            # What waits for ever has no time.
            assert wait_s is None or wait_s > 0

    @rule(session=SESSIONS, place=st.integers(0, 5), verdict=st.sampled_from(["done", "temporary"]))
    def late_worker(self, session: str, place: int, verdict: str) -> None:
        """Its lease ends, somebody else claims the row, and then it settles."""
        if not self.leases:
            return
        lease = self.leases[-1 - place % len(self.leases)]
        if any(self.model.held_by_other(one, lease.id) for one in ("A", "B", "")):
            return
        self._end_wait(lease.id)
        self._claim(session, 6)
        self._settle(session, lease.worker, [lease], verdict)

    # Old callers and persons

    @rule(
        session=SESSIONS, place=st.integers(0, 11), what=st.sampled_from(["done", "failed", "back", "take"])
    )
    def old_caller(self, session: str, place: int, what: str) -> None:
        """Marks, and what hand-made programs write themselves."""
        row_id = self._some_row(session, place)
        if row_id is None:
            return
        table = self.queue.table
        statement = {
            "done": f"SELECT {self.queue.mark_done}(%s)",
            "failed": f"SELECT {self.queue.mark_failed}(%s, 'no')",
            "back": f"UPDATE {table} SET status = 'pending' WHERE id = %s AND status = 'processing'",
            "take": f"UPDATE {table} SET status = 'processing' WHERE id = %s AND status = 'pending'",
        }[what]
        model = {
            "done": self.model.mark_done,
            "failed": self.model.mark_failed,
            "back": self.model.put_back,
            "take": self.model.take,
        }[what]
        self._call(session, statement, [row_id], lambda: model(session, row_id))

    @rule(session=SESSIONS, places=PLACES, what=st.sampled_from(["retry", "discard", "replay"]))
    def person(self, session: str, places: list[int], what: str) -> None:
        """Works on dead letters; replays events."""
        ids = [row_id for place in places if (row_id := self._some_row(session, place)) is not None]
        expected: set[UUID] = set()
        model: Callable[[], set[UUID]]
        if what == "replay" and self.queue is not EMAIL:
            call, model = "replay_webhooks(%s, 'shop')", lambda: self.model.replay(session, ids, "shop")
        elif what == "discard":
            call, model = f"discard_dead_{self.queue}s(%s)", lambda: self.model.discard(session, ids)
        else:
            call, model = f"retry_dead_{self.queue}s(%s)", lambda: self.model.retry(session, ids)
        rows = self._call(session, f"SELECT postroom.{call} AS id", [ids], lambda: expected.update(model()))
        if rows is not None:
            assert {row["id"] for row in rows} == expected

    @rule(
        session=SESSIONS,
        what=st.sampled_from(["queue", "transport"]),
        by=st.sampled_from(["ada", "bob"]),
        ends=st.booleans(),
    )
    def pause(self, session: str, what: str, by: str, ends: bool) -> None:
        """Of a paused queue nothing is leased, by anybody; the pause of a transport is for the workers."""
        self._call(
            session,
            "SELECT postroom.pause(%s, %s, %s, NULL, %s::interval)",
            [what, self._paused(what), by, "1 hour" if ends else None],
            lambda: self.model.pause(session, what, by, ends=ends),
        )

    @rule(session=SESSIONS, what=st.sampled_from(["queue", "queue", "transport"]))
    def resume(self, session: str, what: str) -> None:
        """From here on it is as it was."""
        expected: list[bool] = []
        rows = self._call(
            session,
            "SELECT postroom.resume(%s, %s) AS was_paused",
            [what, self._paused(what)],
            lambda: expected.append(self.model.resume(session, what)),
        )
        if rows is not None:
            assert [row["was_paused"] for row in rows] == expected

    @rule()
    def pauses_end(self) -> None:
        """Those that end by themselves."""
        for what, pause in self.model.pauses("").items():
            key = f"pause of {what}"
            if pause.ends and not self.model.held_by_other("", key):
                self.observer.execute(
                    "UPDATE postroom.pauses SET until = '2020-01-01' WHERE kind = %s", [what]
                )
                self.model.committed[key] = replace(pause, is_over=True)

    def _paused(self, what: str) -> str:
        return self.queue.name if what == "queue" else "smtp://relay:25"

    @rule(places=PLACES)
    def time_passes(self, places: list[int]) -> None:
        """Delays or leases of some rows are over, or rows have become old: the test moves their times."""
        for place in places:
            self._time_passes(place)

    def _time_passes(self, place: int) -> None:
        ids = [row_id for row_id in self.model.rows("") if not self.model.held_by_other("", row_id)]
        if not ids:
            return
        # Leases first: late workers are what this is about.
        rows = self.model.rows("")
        row_id = sorted(ids, key=lambda one: (rows[one].status != "processing", self.made[one]))[
            place % len(ids)
        ]
        row = rows[row_id]
        if row.status == self.queue.done:
            self.model.committed[row_id] = replace(row, is_old=True)
            self.observer.execute(
                f"""
                UPDATE {self.queue.table} SET {self.queue.done_at} = '2020-01-01', updated_at = now()
                WHERE id = %s
                """,
                [row_id],
            )
        else:
            self._end_wait(row_id)

    @rule(session=SESSIONS)
    def clean_up(self, session: str) -> None:
        """Retention: what is done and old goes, and its key with it."""
        self._call(
            session,
            f"SELECT * FROM postroom.cleanup_{self.queue}s('(0,0)', '(100000,0)', false)",
            [],
            lambda: self.model.clean_up(session),
        )

    @precondition(lambda self: self.queue is EMAIL)
    @rule(total=TOTALS, recipient=RECIPIENTS)
    def set_limits(self, total: int | None, recipient: int | None) -> None:
        """Both limits, for so long that no slot comes back."""
        self._set_limits(total, recipient)

    def _set_limits(self, total: int | None, recipient: int | None) -> None:
        for name, limit in (("global", total), ("recipient", recipient)):
            self.observer.execute(
                "SELECT postroom.set_setting(%s, %s)", [f"email.limit.{name}", value_of(limit)]
            )
        self.model.limits.total, self.model.limits.recipient = total, recipient

    @rule(place=st.integers(0, 11), what=st.sampled_from([None, "lease", "settle", "settle"]))
    def refuse(self, place: int, what: Any) -> None:
        """A row gets a trigger that says no, or loses it."""
        row_id = self._some_row("", place)
        if row_id is None:
            return
        self.observer.execute("DELETE FROM public.refusing WHERE refusing.id = %s", [row_id])
        self.model.refusing.pop(row_id, None)
        if what is not None:
            self.observer.execute("INSERT INTO public.refusing VALUES (%s, %s)", [row_id, what])
            self.model.refusing[row_id] = what

    @rule()
    def refused_rows_come_again(self) -> None:
        """The five minutes after which a row that was set aside is tried again are over."""
        for row_id, refusal in self.model.refusals("").items():
            key = f"refused {row_id}"
            if not self.model.held_by_other("", key):
                self.observer.execute(
                    "UPDATE postroom.refused_rows SET next_try_at = '2020-01-01' WHERE id = %s", [row_id]
                )
                self.model.committed[key] = replace(refusal, next_try="past")

    # What holds after each step

    @invariant()
    def the_world_is_the_models(self) -> None:
        """As everybody sees it, and as each open transaction does."""
        if not hasattr(self, "model"):
            return
        for session in ["", *self.model.open]:
            connection = self.connections.get(session, self.observer)
            rows = connection.execute(
                f"SELECT *, clock_timestamp() AS now FROM {self.queue.table}"
            ).fetchall()
            found = {row["id"]: self._as_model(row) for row in rows}
            expected = self.model.rows(session)
            assert found.keys() == expected.keys(), session or "what is committed"
            for row_id, row in found.items():
                assert vars(row) == vars(expected[row_id]), session or "what is committed"
            aside = connection.execute(
                "SELECT *, next_try_at <= clock_timestamp() AS is_over FROM postroom.refused_rows"
            ).fetchall()
            assert {
                row["id"]: Refusal(row["lease_no"], row["verdict"], "past" if row["is_over"] else "future")
                for row in aside
            } == self.model.refusals(session)
            pauses = connection.execute(
                "SELECT *, COALESCE(until <= clock_timestamp(), false) AS is_over FROM postroom.pauses"
            ).fetchall()
            assert {
                row["kind"]: Pause(row["paused_by"], row["until"] is not None, row["is_over"])
                for row in pauses
            } == self.model.pauses(session)
            if not session:
                self._updated_at_tells_every_change(rows)

    def _updated_at_tells_every_change(self, rows: list[dict[str, Any]]) -> None:
        now = {row.pop("id"): row for row in rows}
        for row in now.values():
            del row["now"]
        for row_id, row in now.items():
            old = self.before.get(row_id, row)
            assert row == old or row["updated_at"] != old["updated_at"], (old, row)
        self.before = now

    def _as_model(self, row: dict[str, Any]) -> Row:
        def class_of(moment: datetime | None) -> Any:
            return None if moment is None else "past" if moment <= row["now"] else "future"

        return Row(
            priority=row["priority"],
            max_attempts=row["max_attempts"],
            status=row["status"],
            attempts=row["attempts"],
            error_count=row["error_count"],
            crashes=row["crashes"],
            lease_no=row["lease_no"],
            leased_by=NAMES.get(row["leased_by"]),
            due=class_of(row["due_at"]),
            next_retry=class_of(row["next_retry_at"]),
            waits_for=row["waits_for"],
            is_done=row[self.queue.done_at] is not None,
            is_old=row[self.queue.done_at] is not None and row[self.queue.done_at].year == 2020,
            has_failed_at=row["failed_at"] is not None,
            dead_reason=row["dead_reason"],
            to=row.get("to_email"),
            planned_under=row.get("planned_under"),
            handlers=tuple(row.get("handlers_done") or ()),
            lane=row.get("lane"),
            lane_place=int(row.get("lane_place") or 0),
            lane_holds=row.get("lane_holds", False),
        )

    def teardown(self) -> None:
        """Whatever is open ends."""
        for connection in self.connections.values():
            connection.execute("ROLLBACK")

    # Helpers

    def _call(
        self, session: str, statement: str, arguments: list[Any], expect: Callable[[], object]
    ) -> list[dict[str, Any]] | None:
        """Make a call and let the model do the same; None where it had to wait, or was refused."""
        connection = self.connections[session]
        is_open = session in self.model.open
        self._forget_look(session)
        if is_open:
            connection.execute("SAVEPOINT call")
        try:
            cursor = connection.execute(statement, arguments)
            rows = cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            if is_open:
                connection.execute("ROLLBACK TO call")
            if error.sqlstate not in ERRORS:
                raise
            with pytest.raises(ERRORS[error.sqlstate]):
                expect()
            return None
        expect()
        return rows

    def _end_wait(self, row_id: UUID) -> None:
        row = self.model.committed.get(row_id)
        if not isinstance(row, Row) or not row.live:
            return
        self.expiries += 1
        self.observer.execute(
            f"""
            UPDATE {self.queue.table}
            SET due_at = moment.at,
                next_retry_at = CASE WHEN next_retry_at IS NOT NULL AND status = 'pending' THEN moment.at
                    ELSE next_retry_at END,
                updated_at = clock_timestamp()
            FROM (SELECT '2020-01-01'::timestamptz + interval '1 s' * %s AS at) AS moment
            WHERE id = %s
            """,
            [self.expiries, row_id],
        )
        # A lease ends at a time of its own: where the next try were at that very moment, a row that is put
        # back would look as if an old caller had done it.
        next_retry: Due = "past" if row.next_retry and row.status == "pending" else row.next_retry
        self.model.committed[row_id] = replace(row, due="past", next_retry=next_retry)

    def _forget_look(self, session: str) -> None:
        # On a busy machine any look may take long, and would be remembered.
        self.connections[session].execute(
            """
            SELECT set_config('postroom.look_email', '', false),
                set_config('postroom.look_webhook', '', false)
            """
        )

    def _order(self, session: str) -> list[UUID]:
        rows = (
            self.connections[session]
            .execute(f"SELECT id FROM {self.queue.table} ORDER BY due_at, id")
            .fetchall()
        )
        return [row["id"] for row in rows]

    def _some_leases(self, places: list[int], worker: str) -> list[Lease]:
        # Mostly the latest ones.
        leases = [lease for lease in self.leases if lease.worker == worker]
        chosen = {leases[-1 - place % len(leases)] for place in places if leases}
        by_row = {lease.id: lease for lease in sorted(chosen, key=lambda lease: lease.lease_no)}
        return sorted(by_row.values(), key=lambda lease: self.made[lease.id], reverse=True)

    def _some_row(self, session: str, place: int) -> UUID | None:
        ids = sorted(self.model.rows(session), key=self.made.__getitem__)
        return ids[place % len(ids)] if ids else None


REFUSING = """
    CREATE TABLE public.refusing (id uuid, what text);
    CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF EXISTS (
            SELECT FROM public.refusing
            WHERE refusing.id = NEW.id
                AND CASE refusing.what
                    WHEN 'lease' THEN NEW.status = 'processing' AND NEW.lease_no > OLD.lease_no
                    ELSE NEW.attempts > OLD.attempts
                END
        ) THEN
            RAISE EXCEPTION 'no';
        END IF;
        RETURN NEW;
    END $$;
    -- After our own, which counts the lease of an old caller.
    CREATE TRIGGER refuse BEFORE UPDATE ON public.email_queue
        FOR EACH ROW EXECUTE FUNCTION public.refuse();
    CREATE TRIGGER refuse BEFORE UPDATE ON public.webhook_retry_queue
        FOR EACH ROW EXECUTE FUNCTION public.refuse();
"""


@pytest.fixture(scope="module")
def machine_url(postgres_server: PostgresServer, _migrated_template: str) -> Iterator[str]:
    """One database for all examples: each begins with a truncate."""
    name = postgres_server.create_database(template=_migrated_template)
    with psycopg.connect(postgres_server.url_of(name)) as connection:
        connection.execute(REFUSING)
    yield postgres_server.url_of(name)
    postgres_server.drop_database(name)


@pytest.mark.parametrize(
    "examples",
    [
        pytest.param(40, id="short"),
        pytest.param(120, id="long", marks=[pytest.mark.chaos, pytest.mark.timeout(900)]),
    ],
)
@pytest.mark.parametrize("queue", QUEUES, ids=str)
def test_any_order_of_calls_does_what_the_model_does(machine_url: str, queue: Queue, examples: int) -> None:
    """Two sessions, open transactions, late workers, old callers, persons, limits, cleanup."""
    chosen = os.environ.get("POSTROOM_TEST_SEED") or str(random.randrange(10**9))
    print(f"POSTROOM_TEST_SEED={chosen}")
    with (
        psycopg.connect(machine_url, autocommit=True, row_factory=dict_row) as first,
        psycopg.connect(machine_url, autocommit=True, row_factory=dict_row) as second,
        psycopg.connect(machine_url, autocommit=True, row_factory=dict_row) as observer,
    ):
        machine = type(
            "Machine",
            (TwoSessions,),
            {"queue": queue, "connections": {"A": first, "B": second}, "observer": observer},
        )
        run_state_machine_as_test(
            seed(json.loads(chosen) if chosen.isdigit() else chosen)(machine),
            settings=settings(
                max_examples=examples,
                stateful_step_count=50,
                deadline=None,
                database=None,
                # To shrink a failure takes longer than a test may.
                phases=[Phase.generate] if examples < 100 else [Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            ),
        )
