"""
What a call reads, in the functions as they run: with history a hundred times the batch, it reads its batch.

Rows and pages are counted by PostgreSQL (auto_explain), with statistics as they may stand in production:
fresh, of another time, of an empty table, none. Each statement runs often enough for its plan to become the
one for any value, which is where conditions that an index could serve are lost.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

import psycopg
import pytest

from postroom.database.migrate import migrate
from postroom.queue.parts import STATES, Part, State, parts_of
from postroom.queue.search import PAGE_ROWS, Filters, in_order, page_of
from postroom.queue.table import QueueTable
from postroom.queues import QUEUES
from tests.schema.loaded import RECIPIENT_LIMIT, Amounts, load
from tests.schema.plans import Reader, Reading
from tests.support.postgres import PostgresServer

CALLS = 7
"""PostgreSQL may take the plan for any value from the sixth call on."""

BATCHES = [50] * CALLS + [500]

DAY = Amounts(history=60_000, future=20_000)
YEARS = Amounts(history=1_000_000, future=300_000)

AS_LOADED = "of its first hour"
"""What is known of the queue when little more than its due rows were there; a load leaves these."""

STATISTICS: dict[str, LiteralString] = {
    AS_LOADED: "SELECT",
    "of an empty table": """
        DELETE FROM pg_statistic WHERE starelid >= 16384;
        UPDATE pg_class SET reltuples = 0, relpages = 0 WHERE oid >= 16384 AND relkind IN ('r', 'i');
    """,
    "none": """
        DELETE FROM pg_statistic WHERE starelid >= 16384;
        UPDATE pg_class SET reltuples = -1, relpages = 0 WHERE oid >= 16384 AND relkind IN ('r', 'i');
    """,
    # All that was there had been sent.
    "of a quiet hour": """
        ANALYZE;
        UPDATE pg_class
        SET reltuples = 0, relpages = 1
        FROM pg_index
        WHERE pg_index.indexrelid = pg_class.oid AND pg_index.indpred IS NOT NULL;
        UPDATE pg_statistic
        SET stadistinct = 1, stanumbers1 = '{1}', stavalues1 = array_in(
            (CASE starelid WHEN 'email_queue'::regclass THEN '{sent}' ELSE '{processed}' END)::cstring,
            'text'::regtype, -1
        )
        FROM pg_attribute
        WHERE attrelid IN ('email_queue'::regclass, 'webhook_retry_queue'::regclass)
            AND attname = 'status' AND starelid = attrelid AND staattnum = attnum;
    """,
    "fresh": "ANALYZE",
}

WORKER = uuid.uuid4()


ON_15_AND_18 = [pytest.param("postgres_server", id="18"), pytest.param("debian15_server", id="15")]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("postgres_server", DAY), id="18"),
        pytest.param(("debian15_server", DAY), id="15"),
        pytest.param(("postgres_server", YEARS), id="18-million", marks=pytest.mark.chaos),
        pytest.param(("debian15_server", YEARS), id="15-million", marks=pytest.mark.chaos),
    ],
)
def loaded(request: pytest.FixtureRequest) -> Iterator[Loaded]:
    """A database with full queues; what tests do in it they roll back."""
    fixture, amounts = request.param
    with _loaded(Loaded(request.getfixturevalue(fixture), amounts)) as loaded:
        yield loaded


@pytest.fixture(scope="module", params=ON_15_AND_18)
def unplanned(request: pytest.FixtureRequest) -> Iterator[Loaded]:
    """The same where no e-mail waits for a limit."""
    with _loaded(Loaded(request.getfixturevalue(request.param), DAY, plans=False)) as loaded:
        yield loaded


@pytest.fixture(scope="module", params=STATISTICS)
def statistics(request: pytest.FixtureRequest) -> str:
    """What PostgreSQL knows of the tables; all tests of one kind of knowledge follow each other."""
    return str(request.param)


@pytest.fixture
def reader(loaded: Loaded, statistics: str) -> Iterator[Reader]:
    """A session that explains what runs in it, on a database with these statistics."""
    with loaded.read(statistics) as reader:
        yield reader


@pytest.fixture
def unplanned_reader(unplanned: Loaded, statistics: str) -> Iterator[Reader]:
    """The same where no e-mail waits for a limit."""
    with unplanned.read(statistics) as reader:
        yield reader


@dataclass
class Loaded:
    """
    A database with full queues.

    Attributes:
        plans: Whether e-mails wait for a limit.
        statistics: Those that it has now.
    """

    server: PostgresServer
    amounts: Amounts
    plans: bool = True
    name: str = ""
    statistics: str = ""

    @property
    def url(self) -> str:
        return self.server.url_of(self.name)

    @contextmanager
    def read(self, statistics: str) -> Iterator[Reader]:
        """A session that explains, with these statistics."""
        if statistics != self.statistics:
            self._know(statistics)
        with psycopg.connect(self.url) as connection:
            yield Reader(connection)

    def _know(self, statistics: str) -> None:
        if statistics == AS_LOADED:  # nothing but another load leads back to them
            self.drop()
            self.load()
            return
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(STATISTICS[statistics])
        self.statistics = statistics

    def load(self) -> None:
        """Make and fill it."""
        self.name = self.server.create_database()
        asyncio.run(migrate(self.url))
        with psycopg.connect(self.url) as connection:
            connection.execute(
                """
                SELECT
                    postroom.set_setting('email.limit.global', '1000000/60s'),
                    postroom.set_setting('email.limit.recipient', %(limit)s),
                    postroom.register_worker(%(worker)s, 'email', 'h', 1, 'v', true, false, '{}')
                """,
                {"worker": WORKER, "limit": RECIPIENT_LIMIT},
            )
        load(self.url, self.amounts)
        self.statistics = AS_LOADED
        if not self.plans:
            with psycopg.connect(self.url, autocommit=True) as connection:
                connection.execute("SET session_replication_role = replica")
                connection.execute(
                    "UPDATE email_queue SET planned_under = NULL WHERE planned_under IS NOT NULL"
                )
                connection.execute("VACUUM email_queue")

    def drop(self) -> None:
        """Remove it."""
        self.server.drop_database(self.name)


@contextmanager
def _loaded(loaded: Loaded) -> Iterator[Loaded]:
    loaded.load()
    yield loaded
    loaded.drop()


def assert_in_proportion(reading: Reading, table: str, batch: int, what: str) -> None:
    """Four looks at a row at most, a few rows to find the way, and about 30 pages a row that is written."""
    assert not reading.scanned_whole(table), what
    assert reading.rows_of(table) <= 4 * batch + 10, what
    # A session's first call also reads the catalogue, to plan what it says: a claim 2,000 pages.
    assert reading.pages <= 60 * batch + (2_800 if what.endswith("call 0") else 800), what


def test_an_emails_way_reads_its_batch(reader: Reader) -> None:
    """Claim, begin, extend, settle: rows and pages in proportion to the batch, whatever the queue holds."""
    for call, batch in enumerate(BATCHES):
        with reader.undone():
            claimed = reader.read(
                "SELECT * FROM postroom.claim_emails(%s, %s, 'a@b.example')", [WORKER, batch]
            )
            held = [WORKER, [row[0] for row in claimed.rows], [row[1] for row in claimed.rows]]
            begun = reader.read("SELECT * FROM postroom.begin_emails(%s, %s, %s, '{}', '{}')", held)
            extended = reader.read("SELECT * FROM postroom.extend_email_leases(%s, %s, %s)", held)
            settled = reader.read(
                """
                SELECT * FROM postroom.settle_emails(
                    %s, %s, %s, array_fill('temporary'::text, %s), array_fill('450 later'::text, %s),
                    array_fill(NULL::double precision, %s), array_fill('{"outcome": "temporary"}'::jsonb, %s)
                )
                """,
                [*held, *[[batch]] * 4],
            )
        for what, reading in {
            "claim": claimed,
            "begin": begun,
            "extend": extended,
            "settle": settled,
        }.items():
            assert len(reading.rows) == batch, what
            assert_in_proportion(reading, "email_queue", batch, f"{what}, call {call}")
        assert not begun.scanned_whole("rate_limit_counters")
        assert begun.rows_of("rate_limit_counters") <= 8 * (batch + 1)


def test_a_claim_where_nothing_waits_for_a_limit_does_not_look_for_it_in_all_that_is_live(
    unplanned_reader: Reader,
) -> None:
    """That no row waits for a limit is seen in the index of those that do, whatever the statistics say."""
    for call, batch in enumerate(BATCHES):
        with unplanned_reader.undone():
            claimed = unplanned_reader.read("SELECT * FROM postroom.claim_emails(%s, %s)", [WORKER, batch])
            replanned = unplanned_reader.read("SELECT postroom.replan_limited_emails(1000)")
        assert len(claimed.rows) == batch
        assert_in_proportion(claimed, "email_queue", batch, f"claim, call {call}")
        assert replanned.rows == [(0,)]
        assert replanned.rows_of("email_queue") == 0
        assert replanned.pages <= 300


def test_a_webhooks_way_reads_its_batch(reader: Reader) -> None:
    """The same for the other queue."""
    for call, batch in enumerate(BATCHES):
        with reader.undone():
            claimed = reader.read("SELECT * FROM postroom.claim_webhooks(%s, %s)", [WORKER, batch])
            held = [WORKER, [row[0] for row in claimed.rows], [row[1] for row in claimed.rows]]
            begun = reader.read("SELECT * FROM postroom.begin_webhooks(%s, %s, %s, '{}', '{}')", held)
            extended = reader.read("SELECT * FROM postroom.extend_webhook_leases(%s, %s, %s)", held)
            settled = reader.read(
                """
                SELECT * FROM postroom.settle_webhooks(
                    %s, %s, %s, array_fill('temporary'::text, %s), array_fill('500'::text, %s),
                    array_fill(NULL::double precision, %s), array_fill('{"outcome": "temporary"}'::jsonb, %s)
                )
                """,
                [*held, *[[batch]] * 4],
            )
        for what, reading in {
            "claim": claimed,
            "begin": begun,
            "extend": extended,
            "settle": settled,
        }.items():
            assert len(reading.rows) == batch, what
            assert_in_proportion(reading, "webhook_retry_queue", batch, f"{what}, call {call}")


def test_a_batch_whose_worker_died_is_settled_and_claimed_in_proportion(reader: Reader) -> None:
    """Leases that ended with their start marks set are found by the claim, with no look at the rest."""
    batch = 50
    for call in range(CALLS):
        with reader.undone():
            claimed = reader.read("SELECT * FROM postroom.claim_emails(%s, %s)", [WORKER, batch])
            held = [WORKER, [row[0] for row in claimed.rows], [row[1] for row in claimed.rows]]
            reader.read("SELECT postroom.mark_begun(%s, %s, %s)", held)
            reader.read(
                "UPDATE email_queue SET due_at = '2020-01-01' WHERE id = ANY (%s) RETURNING id", [held[1]]
            )
            # Another worker's session: where this one's last look took long, it goes by that for a while.
            reader.read("SELECT set_config('postroom.look_email', '', false)")
            again = reader.read("SELECT * FROM postroom.claim_emails(%s, %s)", [uuid.uuid4(), batch])
            crashed = reader.read("SELECT id FROM email_queue WHERE id = ANY (%s) AND crashes = 1", [held[1]])
        assert len(crashed.rows) == batch
        assert_in_proportion(again, "email_queue", 3 * batch, f"call {call}")


POLLS: dict[LiteralString, str] = {
    "SELECT * FROM postroom.claim_emails(gen_random_uuid(), 50, NULL, '-infinity')": "email_queue",
    "SELECT postroom.email_wait_s()": "email_queue",
    "SELECT postroom.replan_limited_emails(1000)": "email_queue",
    "SELECT postroom.settle_refused_emails()": "email_queue",
    "SELECT public.enqueue_email('a@b.example', 's', 'h', idempotency_key => 'history500')": "email_queue",
    """
    SELECT * FROM postroom.begin_direct_email(
        gen_random_uuid(), gen_random_uuid(), 'a@b.example', 's', 'h',
        NULL, NULL, NULL, NULL, NULL, NULL, 'due500'
    )
    """: "email_queue",
    "SELECT public.mark_email_sent(gen_random_uuid())": "email_queue",
    "SELECT public.mark_email_failed(gen_random_uuid(), 'x')": "email_queue",
    "SELECT * FROM postroom.claim_webhooks(gen_random_uuid(), 50, '-infinity')": "webhook_retry_queue",
    "SELECT postroom.webhook_wait_s()": "webhook_retry_queue",
}


def test_what_is_called_each_second_reads_next_to_nothing(reader: Reader) -> None:
    """An empty poll, the wait, the tending, the look for a key: a few rows, and no table from end to end."""
    for statement, table in POLLS.items():
        for call in range(CALLS):
            with reader.undone():
                reading = reader.read(statement)
            assert not reading.scanned_whole(table), statement
            assert reading.rows_of(table) <= 4, (statement, call)
        # The first call of a session fills its caches of the catalog.
        assert reading.pages <= 300, statement


def test_a_limit_that_changed_replans_a_batch_by_the_index(reader: Reader) -> None:
    """What was planned under the old limit is found by it: a call reads what it writes."""
    for call in range(CALLS):
        with reader.undone():
            reader.connection.execute("SELECT postroom.set_setting('email.limit.recipient', '7/60s')")
            reading = reader.read("SELECT postroom.replan_limited_emails(500)")
        assert reading.rows == [(500,)]
        assert_in_proportion(reading, "email_queue", 500, f"call {call}")


def test_a_recipient_at_its_limit_costs_a_batch_no_more(reader: Reader) -> None:
    """A batch for one address, which thousands wait for already, is planned row by row."""
    batch = 50
    for call in range(CALLS):
        with reader.undone():
            claimed = reader.read("SELECT * FROM postroom.claim_emails(%s, %s)", [WORKER, batch])
            held = [WORKER, [row[0] for row in claimed.rows], [row[1] for row in claimed.rows]]
            reader.connection.execute(
                "UPDATE email_queue SET to_email = 'u0@example.com' WHERE id = ANY (%s)", [held[1]]
            )
            reader.connection.execute(
                """
                UPDATE rate_limit_counters
                SET taken_at = ARRAY[clock_timestamp()], taken = '{1000}', taken_total = 1000,
                    planned = 9000, planned_under = %s, checked_at = clock_timestamp()
                WHERE key = 'email:recipient:u0@example.com'
                """,
                [RECIPIENT_LIMIT],
            )
            begun = reader.read("SELECT state FROM postroom.begin_emails(%s, %s, %s, '{}', '{}')", held)
        assert begun.rows == [("waits",)] * batch
        assert_in_proportion(begun, "email_queue", batch, f"call {call}")


def test_workers_that_are_gone_are_forgotten_by_their_marks(reader: Reader) -> None:
    """Whether a row in flight still needs a mark is looked up by its id, not among all that waits."""
    for _ in range(CALLS):
        with reader.undone():
            reader.connection.execute(
                """
                INSERT INTO postroom.workers (id, queue, host, pid, version, seen_at, begun, begun_lease_nos)
                SELECT gen_random_uuid(), 'email', 'h', n, 'v', '2020-01-01', ARRAY[gen_random_uuid()], '{1}'
                FROM generate_series(1, 40) AS n
                """
            )
            reading = reader.read("SELECT postroom.forget_dead_workers()")
            left = reader.read("SELECT count(*) FROM postroom.workers")
        assert left.rows == [(1,)]
        assert_in_proportion(reading, "email_queue", 40, "forget_dead_workers")
        assert_in_proportion(reading, "webhook_retry_queue", 40, "forget_dead_workers")


def test_the_count_of_dead_letters_reads_dead_letters(reader: Reader) -> None:
    """A monitoring query that runs each minute is not to read all history."""
    for table in ("email_queue", "webhook_retry_queue"):
        with reader.undone():
            reading = reader.read(f"SELECT count(*) FROM {table} WHERE status = 'dead_letter'")
        assert reading.rows_of(table) <= 2 * reading.rows[0][0] + 10


def test_monitoring_reads_what_is_live_and_no_more_than_its_bound(reader: Reader) -> None:
    """Depths, ages and dead letters: 10,000 live rows at most, and nothing that is settled."""
    for _ in range(CALLS):
        depths = reader.read("SELECT * FROM postroom.queue_depths")
        ages = reader.read("SELECT postroom.email_due_s(), postroom.webhook_due_s()")
        for queue, table in (("email", "email_queue"), ("webhook", "webhook_retry_queue")):
            assert not depths.scanned_whole(table)
            assert not ages.scanned_whole(table)
            assert ages.rows_of(table) <= 20
            dead_letters = next(row[2] for row in depths.rows if row[:2] == (queue, "dead_letter"))
            assert depths.rows_of(table) <= 10_000 + dead_letters
        assert ages.pages <= 400
        waits = reader.read("SELECT * FROM postroom.limit_waits(8)")
        assert waits.rows_of("email_queue") <= 10_000
        assert not waits.scanned_whole("email_queue")


@contextmanager
def _swept(url: str, table: LiteralString) -> Iterator[None]:
    """
    What the block rolled back leaves no dead entries for other tests to read; the statistics stay.

    Of 2,000 rows that are due before all others, rolled back seven times for each statistics, an empty claim
    reads 779 pages for as long as nobody vacuums.
    """
    yield
    with psycopg.connect(url, autocommit=True) as connection:
        known = connection.execute(
            "SELECT relpages, reltuples, oid FROM pg_class WHERE oid >= 16384"
        ).fetchall()
        connection.execute(f"VACUUM {table}")
        connection.cursor().executemany(
            "UPDATE pg_class SET relpages = %s, reltuples = %s WHERE oid = %s", known
        )


def test_a_lane_in_which_thousands_wait_is_looked_up_once(reader: Reader, loaded: Loaded) -> None:
    """Behind its first event, which waits for a retry: a claim passes over the others and asks once."""
    with _swept(loaded.url, "webhook_retry_queue"):
        _look_up_a_busy_lane(reader)


def _look_up_a_busy_lane(reader: Reader) -> None:
    for _ in range(CALLS):
        with reader.undone():
            reader.connection.execute(
                """
                INSERT INTO webhook_retry_queue (webhook_type, payload, lane, lane_place, due_at)
                SELECT
                    'stripe', '{}', 'busy', n,
                    CASE WHEN n = 1 THEN clock_timestamp() + interval '1 hour' ELSE '2020-01-01' END
                FROM generate_series(1, 2000) AS n
                """
            )
            claimed = reader.read("SELECT * FROM postroom.claim_webhooks(%s, 50)", [WORKER])
            waiting = reader.read("SELECT postroom.webhook_wait_s()")
        assert len(claimed.rows) == 50
        assert waiting.rows == [(0.0,)]
        for reading in (claimed, waiting):
            asked = [plan for plan in reading.plans if "lane = p_lane" in plan["Query Text"]]
            assert 0 < len(asked) < 5
            assert not reading.scanned_whole("webhook_retry_queue")
            # Twice over those that wait: to find the lane, and to pass over them.
            assert reading.rows_of("webhook_retry_queue") <= 3 * 2000 + 250


LONG_AGO, JUST_NOW = datetime(2020, 1, 1, tzinfo=UTC), datetime.now(UTC) - timedelta(days=2)


@pytest.mark.parametrize("state", STATES)
def test_a_page_of_a_list_reads_a_page_in_either_direction(reader: Reader, state: State) -> None:
    """The first one, the one behind it and back, whatever the queue holds; also between two times."""
    for queue in QUEUES:
        table = queue.table.removeprefix("public.")
        for filters in (Filters(), Filters(since=LONG_AGO, until=JUST_NOW)):
            for part in parts_of(queue, state, timed=filters.timed):
                if part.hit or (filters.timed and part.asked != part.at):
                    continue
                with reader.undone():
                    first = _page(reader, [queue], part, filters, None)
                    if len(first.rows) > PAGE_ROWS:
                        behind = _page(reader, [queue], part, filters, first.rows[PAGE_ROWS])
                        back = _page(reader, [queue], part, filters, behind.rows[0], back=True)
                        for reading in (behind, back):
                            assert_a_page(reading, table, state)
                assert_a_page(first, table, state)


def test_a_page_of_dead_letters_of_both_queues_reads_a_page(reader: Reader) -> None:
    """Of all and of one reason, also of one that is rare."""
    for reason in (None, "permanent", "none"):
        (part, _) = parts_of(QUEUES[0], "dead_letter", timed=False, reason=reason)
        with reader.undone():
            reading = _page(reader, QUEUES, part, Filters(reason=reason), None)
        for table in ("email_queue", "webhook_retry_queue"):
            assert_a_page(reading, table, f"reason {reason}")


def test_a_search_reads_what_it_looks_through_and_stops_when_it_has_enough(reader: Reader) -> None:
    """Hits that stand in front end it; what is nowhere costs as many rows as it may look through."""
    (part, _) = parts_of(QUEUES[0], "done", timed=False)
    with reader.undone():
        nowhere = _page(reader, QUEUES[:1], part, Filters(text="nowhere"), None, scan=5_000)
        everywhere = _page(reader, QUEUES[:1], part, Filters(text="order"), None, scan=5_000)
    assert nowhere.rows_of("email_queue") <= 5_100
    assert everywhere.rows_of("email_queue") <= 3 * PAGE_ROWS
    assert not nowhere.scanned_whole("email_queue")


def assert_a_page(reading: Reading, table: str, what: str) -> None:
    """A page of rows and those with the same time as its last one; a row is on a page of its own at worst."""
    assert not reading.scanned_whole(table), what
    assert reading.rows_of(table) <= 3 * PAGE_ROWS, what
    assert reading.pages <= 10 * PAGE_ROWS + 2_800, what


def _page(
    reader: Reader,
    queues: Sequence[QueueTable],
    part: Part,
    filters: Filters,
    place: Sequence[Any] | None,
    *,
    back: bool = False,
    scan: int = PAGE_ROWS + 1,
) -> Reading:
    """As list_rows() reads it; the place is the key of a row, its last column."""
    key = [] if place is None else place[-1]
    values: list[object] = [scan, key]

    def argument(value: object) -> str:
        values.append(value)
        return f"${len(values)}"

    beyond = part.beyond("$2::text[]", back=back)[0] if key else "true"
    sql = page_of(queues, part, beyond, filters, argument, back=back, hits=PAGE_ROWS + 1)
    # In the order in which they stand there, each as often.
    places = [int(place) - 1 for place in re.findall(r"\$(\d+)", sql)]
    reader.connection.execute(in_order(filters.known_reason))
    statement: LiteralString = re.sub(r"\$\d+", "%s", sql)
    return reader.read(statement, [values[place] for place in places])
