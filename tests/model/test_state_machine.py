"""
Any order of calls, from two sessions with open transactions, on real PostgreSQL: it does what the model does.

After each step all rows are compared, as the world sees them and as each open transaction does, with what the
contract says of status, counts, times, leases and order. POSTROOM_TEST_SEED repeats a run.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4, uuid5

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import FlakyStrategyDefinition
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from psycopg.rows import dict_row

from tests.model.queue_model import Lease, QueueModel, Row, WouldWait
from tests.sql.session import EMAIL, QUEUES, Queue
from tests.support.postgres import PostgresServer

TRIES = 5
"""Runs that Hypothesis may end since the same draws led elsewhere."""

SESSIONS = st.sampled_from(["A", "B"])
PLACES = st.lists(st.integers(0, 11), min_size=1, max_size=4, unique=True)
WORKERS = {name: uuid5(UUID(int=0), name) for name in ("A", "B")}
NAMES = {worker: name for name, worker in WORKERS.items()}

Connection = psycopg.Connection[dict[str, Any]]


class TwoSessions(RuleBasedStateMachine):
    """The machine of one queue; a subclass has the queue and the connections."""

    queue: Queue
    connections: dict[str, Connection]
    observer: Connection

    @initialize()
    def begin_anew(self) -> None:
        """Empty queues, both workers, long delays, short lives."""
        for connection in self.connections.values():
            connection.execute("ROLLBACK")
            connection.execute("SET lock_timeout = '50ms'")
        self.observer.execute(
            """
            TRUNCATE public.email_queue, public.webhook_retry_queue, public.rate_limit_counters,
                postroom.workers, postroom.refused_rows, postroom.seen_webhooks, postroom.webhook_requests
            """
        )
        for key, value in {
            "email.limit.global": "off",
            "email.limit.recipient": "off",
            "email.backoff": "1h",
            "webhook.backoff": "1h",
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
        self.old: set[UUID] = set()
        self.before: dict[UUID, dict[str, Any]] = {}
        self.expiries = 0

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
        later=st.booleans(),
        key=st.sampled_from([None, None, "k1", "k2"]),
    )
    def enqueue(self, session: str, priority: int, later: bool, key: str | None) -> None:
        """A plain INSERT, or enqueue_email; the door of webhooks for events with an id."""
        due = "2999-01-01" if later else None
        row = Row(
            priority=priority, due="future" if later else "past", next_retry="future" if later else None
        )
        if self.queue is EMAIL and (key or priority):
            self._enqueue_email(session, row, key, due)
        elif key:
            self._store_webhook(session, key)
        else:
            row_id = uuid4()
            columns = "to_email, subject, html" if self.queue is EMAIL else "webhook_type, payload"
            values = "'a@example.com', 's', 'h'" if self.queue is EMAIL else "'stripe', '{}'"
            self._call(
                session,
                f"""
                INSERT INTO {self.queue.table} (id, {columns}, priority, next_retry_at, max_attempts)
                VALUES (%s, {values}, %s, %s::timestamptz, 3)
                """,
                [row_id, priority, due],
                lambda: self.model.add(session, row_id, row),
            )

    def _enqueue_email(self, session: str, row: Row, key: str | None, due: str | None) -> None:
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
                'a@example.com', 's', 'h',
                idempotency_key => %s, send_at => %s, priority => %s, max_attempts => 3
            ) AS id
            """,
            [key, due, row.priority],
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
        self.model.add(session, row_id, row)
        if key:
            self.keys[key] = row_id

    def _store_webhook(self, session: str, key: str) -> None:
        # What the provider has sent once is known for 30 days, whatever became of its row.
        known = self.keys.get(key)
        row_id = uuid4()
        seen = f"seen {key}"

        def expect() -> None:
            if self.model.held_by_other(session, seen):
                raise WouldWait(seen)

        rows = self._call(
            session,
            """
            SELECT * FROM postroom.store_webhooks(
                ARRAY[%s::uuid], '{stripe}', ARRAY[%s], '{t}', '{{}}'::text[], ARRAY['[]'::jsonb],
                '{POST}', '{/}', ARRAY['[]'::jsonb], ARRAY['b'::bytea], '{NULL}', '{NULL}', '{false}'
            ) AS id
            """,
            [row_id, key],
            expect,
        )
        if rows is None:
            return
        is_known = self.model.see(session).get(seen) is not None
        assert [row["id"] for row in rows] == ([] if is_known else [row_id]), known
        # One that is known is locked all the same.
        self.model.write(session, {seen: self.model.shared(session, seen)})
        if not is_known:
            self.model.add(session, row_id, Row(max_attempts=6))
            self.keys[key] = row_id

    # Workers

    @rule(session=SESSIONS, count=st.integers(1, 6))
    def claim(self, session: str, count: int) -> None:
        """Highest priority first, then the oldest; no more than the limit has slots for."""
        self._claim(session, count)

    def _claim(self, session: str, count: int) -> None:
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

    @precondition(lambda self: self.leases)
    @rule(session=SESSIONS, places=PLACES)
    def begin(self, session: str, places: list[int]) -> None:
        """The start marks, and the slots."""
        leases = [lease for lease in self._some_leases(places) if lease.worker == session]
        if not leases:
            return
        marks = sorted(self.model.begun_of(session, session), key=lambda mark: str(mark.id))
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

    @precondition(lambda self: self.leases)
    @rule(
        session=SESSIONS,
        places=PLACES,
        verdict=st.sampled_from(
            ["done", "done", "temporary", "permanent", "uncertain", "transport_down", "released"]
        ),
    )
    def settle(self, session: str, places: list[int], verdict: str) -> None:
        """Any lease that was ever given, in time or too late."""
        leases = self._some_leases(places)
        worker = leases[0].worker
        leases = [lease for lease in leases if lease.worker == worker]
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

    @precondition(lambda self: self.leases)
    @rule(session=SESSIONS, places=PLACES)
    def extend(self, session: str, places: list[int]) -> None:
        """Another lease for what is still held."""
        leases = [lease for lease in self._some_leases(places) if lease.worker == session]
        expected: set[UUID] = set()
        rows = self._call(
            session,
            f"SELECT * FROM postroom.extend_{self.queue}_leases(%s, %s, %s) AS id",
            [WORKERS[session], [lease.id for lease in leases], [lease.lease_no for lease in leases]],
            lambda: expected.update(self.model.extend(session, leases)),
        )
        if rows is not None:
            assert {row["id"] for row in rows} == expected

    @precondition(lambda self: self.leases and self.queue is not EMAIL)
    @rule(session=SESSIONS, places=PLACES, handler=st.sampled_from(["shop", "crm"]))
    def finish_handler(self, session: str, places: list[int], handler: str) -> None:
        """A handler's mark: with the lease, and once."""
        lease = self._some_leases(places)[0]
        expected: list[bool] = []
        rows = self._call(
            session,
            "SELECT postroom.finish_handler(%s, %s, %s, %s)",
            [WORKERS[lease.worker], lease.id, lease.lease_no, handler],
            lambda: expected.append(self.model.finish_handler(session, lease, handler)),
            refused="PR001",
        )
        if expected:
            assert (rows is not None) == expected[0]

    @rule(session=SESSIONS)
    def wait(self, session: str) -> None:
        """0 where something is due, NULL where nothing waits."""
        self._forget_look(session)
        wait_s = (
            self.connections[session]
            .execute(f"SELECT postroom.{self.queue}_wait_s() AS wait_s")
            .fetchall()[0]["wait_s"]
        )
        live = [row for row in self.model.rows(session).values() if row.live]
        if self.queue is EMAIL and live and self.model.free_slots(session) == 0:
            assert wait_s > 0
        elif any(row.due == "past" for row in live):
            assert wait_s == 0
        else:
            # What waits for ever has no time.
            assert wait_s is None or wait_s > 0

    @precondition(lambda self: self.leases)
    @rule(session=SESSIONS, place=st.integers(0, 5), verdict=st.sampled_from(["done", "temporary"]))
    def late_worker(self, session: str, place: int, verdict: str) -> None:
        """Its lease ends, somebody else claims the row, and then it settles."""
        lease = self.leases[-1 - place % len(self.leases)]
        if any(self.model.held_by_other(one, lease.id) for one in ("A", "B", "")):
            return
        self._end_wait(lease.id)
        self._claim(session, 6)
        expected: set[UUID] = set()
        rows = self._call(
            session,
            f"""
            SELECT id FROM postroom.settle_{self.queue}s(
                %s, %s, %s, %s, '{{reply}}', '{{NULL}}', '{{NULL}}'
            )
            """,
            [WORKERS[lease.worker], [lease.id], [lease.lease_no], [verdict]],
            lambda: expected.update(self.model.settle(session, [lease], verdict)),
        )
        if rows is not None:
            assert {row["id"] for row in rows} == expected

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

    @rule(place=st.integers(0, 5))
    def time_passes(self, place: int) -> None:
        """A delay or a lease of one row is over, or the row has become old: the test moves its time."""
        ids = [row_id for row_id in self.model.rows("") if not self.model.held_by_other("", row_id)]
        if not ids:
            return
        # Leases first: late workers are what this is about.
        rows = self.model.rows("")
        row_id = sorted(ids, key=lambda one: (rows[one].status != "processing", str(one)))[place % len(ids)]
        row = rows[row_id]
        if row.status == self.queue.done:
            self.old.add(row_id)
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
        old = {row_id for row_id in self.old if self.model.row(session, row_id) is not None}
        self._call(
            session,
            f"SELECT * FROM postroom.cleanup_{self.queue}s('(0,0)', '(100000,0)', false)",
            [],
            lambda: self.model.clean_up(session, old),
        )

    @precondition(lambda self: not self.model.open and self.queue is EMAIL)
    @rule(limit=st.sampled_from([None, 1, 3, 8]))
    def set_limit(self, limit: int | None) -> None:
        """The global limit, for so long that no slot comes back."""
        value = "off" if limit is None else f"{limit}/1d"
        self.observer.execute("SELECT postroom.set_setting('email.limit.global', %s)", [value])
        self.model.limit = limit

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
            assert found == self.model.rows(session), session or "what is committed"
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
            is_done=row[self.queue.done_at] is not None,
            has_failed_at=row["failed_at"] is not None,
            dead_reason=row["dead_reason"],
            handlers=tuple(row.get("handlers_done") or ()),
        )

    def teardown(self) -> None:
        """Whatever is open ends."""
        for connection in self.connections.values():
            connection.execute("ROLLBACK")

    # Helpers

    def _call(
        self,
        session: str,
        statement: str,
        arguments: list[Any],
        expect: Callable[[], object],
        *,
        refused: str | None = None,
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
            if error.sqlstate == refused:
                expect()
                return None
            if error.sqlstate != "55P03":
                raise
            with pytest.raises(WouldWait):
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
                next_retry_at = CASE WHEN next_retry_at IS NOT NULL THEN moment.at END,
                updated_at = clock_timestamp()
            FROM (SELECT '2020-01-01'::timestamptz + interval '1 s' * %s AS at) AS moment
            WHERE id = %s
            """,
            [self.expiries, row_id],
        )
        self.model.committed[row_id] = replace(row, due="past", next_retry="past" if row.next_retry else None)

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

    def _some_leases(self, places: list[int]) -> list[Lease]:
        # Mostly the latest ones.
        chosen = {self.leases[-1 - place % len(self.leases)] for place in places}
        by_row = {lease.id: lease for lease in sorted(chosen, key=lambda lease: lease.lease_no)}
        return sorted(by_row.values(), key=lambda lease: str(lease.id), reverse=True)

    def _some_row(self, session: str, place: int) -> UUID | None:
        ids = sorted(self.model.rows(session), key=str)
        return ids[place % len(ids)] if ids else None


@pytest.fixture(scope="module")
def machine_url(postgres_server: PostgresServer, _migrated_template: str) -> Iterator[str]:
    """One database for all examples: each begins with a truncate."""
    name = postgres_server.create_database(template=_migrated_template)
    yield postgres_server.url_of(name)
    postgres_server.drop_database(name)


@pytest.mark.parametrize(
    "examples",
    [
        pytest.param(20, id="short"),
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
        for tries_left in reversed(range(TRIES)):
            try:
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
                return
            except FlakyStrategyDefinition:
                # The same draws led elsewhere, since the database makes ids and times: no finding, but the
                # run is over. What a step or an invariant finds is an error of another kind.
                if not tries_left:
                    raise
                chosen += "0"
