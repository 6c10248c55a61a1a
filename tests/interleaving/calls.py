"""Every call that writes to a queue or to what stands beside it, as one session may make it."""

from __future__ import annotations

from dataclasses import dataclass

from tests.interleaving.world import W1, W2, W3, id_of, ids
from tests.sql.session import EMAIL, WEBHOOK, Queue


@dataclass(frozen=True)
class Call:
    """
    One statement of a session.

    Attributes:
        name: What it does, in the test's output.
        sql: The statement.
        touches: What it may write; calls that share nothing are not tried together.
        passes_over: It leaves out what another session has in hand (SKIP LOCKED).
        reads_committed: It refuses every stricter isolation.
    """

    name: str
    sql: str
    touches: frozenset[str]
    passes_over: bool = False
    reads_committed: bool = False

    def __str__(self) -> str:
        return self.name


def call(
    name: str, sql: str, touches: str, *, passes_over: bool = False, reads_committed: bool = False
) -> Call:
    """A call; `touches` are words."""
    return Call(name, " ".join(sql.split()), frozenset(touches.split()), passes_over, reads_committed)


def settle(queue: Queue, worker: object, verdict: str, lease_no: int, *labels: str) -> str:
    """A settle of some rows with one verdict."""
    count = len(labels)
    return f"""
        SELECT id, status, attempts FROM postroom.settle_{queue}s(
            '{worker}', {ids(*labels)}, array_fill({lease_no}::bigint, ARRAY[{count}]),
            array_fill('{verdict}'::text, ARRAY[{count}]), array_fill('reply'::text, ARRAY[{count}]),
            array_fill(NULL::double precision, ARRAY[{count}]),
            array_fill('{{"outcome": "{verdict}"}}'::jsonb, ARRAY[{count}])
        )
    """


def begin(queue: Queue, worker: object, *labels: str, begun: tuple[str, ...] = ()) -> str:
    """A start of some rows that are leased for the first time."""
    ones = "ARRAY[" + ", ".join("1" for _ in labels) + "]::bigint[]"
    marks = "ARRAY[" + ", ".join("1" for _ in begun) + "]::bigint[]"
    return f"""
        SELECT id, state, waits_for
        FROM postroom.begin_{queue}s('{worker}', {ids(*labels)}, {ones}, {ids(*begun)}, {marks})
    """


def extend(queue: Queue, worker: object, *labels: str) -> str:
    """Another lease for some rows."""
    ones = "ARRAY[" + ", ".join("1" for _ in labels) + "]::bigint[]"
    return f"SELECT * FROM postroom.extend_{queue}_leases('{worker}', {ids(*labels)}, {ones}) AS id"


_DUE = "due1 due2 expired unbegun"


def _both(queue: Queue) -> list[Call]:
    table = queue.table
    lives = f"SELECT postroom.register_worker('{{worker}}', '{queue}', 'h', 1, '0', true, true, '{{{{}}}}')"
    return [
        call(
            "W1 claims",
            f"SELECT id, lease_no FROM postroom.claim_{queue}s('{W1}', 10)",
            f"{_DUE} W1",
            passes_over=True,
        ),
        call(
            "W2 claims",
            f"SELECT id, lease_no FROM postroom.claim_{queue}s('{W2}', 10)",
            f"{_DUE} W2",
            passes_over=True,
        ),
        call(
            "W2 claims one",
            f"SELECT id FROM postroom.claim_{queue}s('{W2}', 1)",
            f"{_DUE} W2",
            passes_over=True,
        ),
        call("an old caller claims", f"SELECT id FROM {queue.batch}(50)", _DUE, passes_over=True),
        call("W1 begins", begin(queue, W1, "short", "fresh", begun=("held",)), "fresh short W1 global"),
        call("W2 begins", begin(queue, W2, "other"), "other W2 global"),
        call(
            "W1 extends",
            extend(queue, W1, "held", "short", "fresh", "expired"),
            "held short fresh expired",
            passes_over=True,
        ),
        call(
            "W1 settles: done",
            settle(queue, W1, "done", 1, "held", "fresh", "expired"),
            "held fresh expired tallies",
        ),
        call("W1 settles: temporary", settle(queue, W1, "temporary", 1, "expired", "held"), "held expired"),
        call("W1 settles: permanent", settle(queue, W1, "permanent", 1, "held"), "held"),
        call("W1 gives back", settle(queue, W1, "transport_down", 1, "short", "fresh"), "fresh short"),
        call("W1 settles by an old lease", settle(queue, W1, "done", 0, "held", "done"), "held done"),
        call("the mark: done", f"SELECT {queue.mark_done}('{id_of('held')}')", "held tallies"),
        call("the mark: done, its lease over", f"SELECT {queue.mark_done}('{id_of('expired')}')", "expired"),
        call("an old caller marks: done", f"SELECT {queue.mark_done}('{id_of('old')}')", "old"),
        call("an old caller marks: failed", f"SELECT {queue.mark_failed}('{id_of('old')}', 'no')", "old"),
        call(
            "a person retries",
            f"SELECT postroom.retry_dead_{queue}s({ids('dead2', 'dead1')}) AS id",
            "dead1 dead2",
        ),
        call(
            "a person discards",
            f"SELECT postroom.discard_dead_{queue}s({ids('dead1', 'dead2')}) AS id",
            "dead1 dead2",
        ),
        call(
            "what was refused is settled",
            f"SELECT postroom.settle_refused_{queue}s()",
            "aside",
            passes_over=True,
        ),
        call("W1 settles what was refused", settle(queue, W1, "done", 1, "aside"), "aside"),
        call("W1 says that it lives", lives.format(worker=W1), "W1"),
        call("W3 comes", lives.format(worker=W3), "W3"),
        call("W1 leaves", f"SELECT postroom.forget_worker('{W1}')", "W1"),
        call(
            "what is old is cleaned up",
            f"SELECT * FROM postroom.cleanup_{queue}s('(0,0)', '(100000,0)', false)",
            "done dead1 dead2",
            passes_over=True,
        ),
        call(
            "attempts are moved into the figures",
            "SELECT postroom.merge_tallies()",
            "tallies",
            passes_over=True,
        ),
        call(
            "old figures are cleaned up",
            "SELECT * FROM postroom.cleanup_times('(0,0)', '(100000,0)', false)",
            "tallies",
            passes_over=True,
        ),
        call(
            "a person pauses the queue",
            f"SELECT postroom.pause('queue', '{queue}', 'ada', 'why')",
            "pause due1",
        ),
        call("another person pauses it", f"SELECT postroom.pause('queue', '{queue}', 'bob')", "pause"),
        call("a person resumes it", f"SELECT postroom.resume('queue', '{queue}') AS was", "pause"),
        call("the house is cleaned up", "SELECT postroom.cleanup_house()", "W1 W2"),
        call("dead workers are forgotten", "SELECT postroom.forget_dead_workers()", "W1 W2"),
        call(
            "an old caller takes a row",
            f"""
            UPDATE {table} SET status = 'processing'
            WHERE id = '{id_of("due1")}' AND status = 'pending' RETURNING id
            """,
            "due1",
        ),
        call(
            "an old caller puts a row back",
            f"UPDATE {table} SET status = 'pending' WHERE id = '{id_of('held')}'",
            "held",
        ),
        call(
            "somebody deletes a row",
            f"DELETE FROM {table} WHERE id = ANY ({ids('held', 'dead1')})",
            "held dead1",
        ),
        call(
            "migrate settles old rows",
            f"SELECT postroom.settle_old_rows('{table}', interval '7 days', NULL, 100)",
            "due1 due2 old aside",
            passes_over=True,
        ),
    ]


_EMAILS = [
    call("W1 begins one that waits", begin(EMAIL, W1, "limited", "fresh"), "limited fresh W1 global"),
    call("W1 settles one that waits", settle(EMAIL, W1, "done", 1, "fresh", "limited"), "limited fresh"),
    call(
        "what waits is planned anew",
        "SELECT postroom.replan_limited_emails(10)",
        "planned limits",
        passes_over=True,
    ),
    call(
        "a limit changes", "SELECT postroom.set_setting('email.limit.recipient', '5/60s')", "limits planned"
    ),
    call("the global limit is lifted", "SELECT postroom.set_setting('email.limit.global', 'off')", "limits"),
    call(
        "a mail is queued by a key",
        "SELECT enqueue_email('a@example.com', 's', 'h', idempotency_key => 'made') AS id",
        "made",
    ),
    call(
        "a mail is queued by a key that is there",
        "SELECT enqueue_email('a@example.com', 's', 'h', idempotency_key => 'there') AS id",
        "keyed",
    ),
    call(
        "mails are queued together, by a key that is there and a new one",
        """
        SELECT unnest(enqueue_emails(
            '[{"to_email": "a@example.com", "subject": "s", "html": "h", "idempotency_key": "there"},
              {"to_email": "a@example.com", "subject": "s", "html": "h", "idempotency_key": "made"}]'
        )) AS id
        """,
        "keyed made",
    ),
    call(
        "a person mends a dead letter",
        f"""
        SELECT true AS mended
        FROM postroom.replace_dead_email('{id_of("dead1")}', 'b@example.com', NULL, NULL, NULL)
        """,
        "dead1",
    ),
    call("a mail with a key is deleted", f"DELETE FROM email_queue WHERE id = '{id_of('keyed')}'", "keyed"),
    call(
        "a mail is sent directly by a key",
        f"""
        SELECT id, made FROM postroom.begin_direct_email(
            '{W2}', '{id_of("made")}', 'a@example.com', 's', 'h', NULL, NULL, NULL, NULL, NULL, NULL, 'made'
        )
        """,
        "made",
    ),
    call(
        "a direct mail is withdrawn",
        f"SELECT * FROM postroom.withdraw_direct_email('{id_of('direct')}', 1)",
        "direct",
    ),
    call(
        "a mail is queued by the direct one's key",
        "SELECT enqueue_email('a@example.com', 's', 'h', idempotency_key => 'direct') AS id",
        "direct",
    ),
    call(
        "two slots of the global limit",
        "SELECT * FROM increment_rate_limit('email:global', 2, 100)",
        "global",
    ),
    call(
        "two slots of the application's limit", "SELECT * FROM increment_rate_limit('app:open', 2, 6)", "open"
    ),
    call("two slots of a new limit", "SELECT * FROM increment_rate_limit('app:new', 2, 3)", "new"),
    call("two slots of a limit that ended", "SELECT * FROM increment_rate_limit('app:ended', 2, 3)", "ended"),
    call(
        "limits are cleaned up by pages",
        "SELECT * FROM postroom.cleanup_limits('(0,0)', '(100000,0)', false)",
        "ended open gone global",
        passes_over=True,
    ),
    call(
        "ended books are forgotten",
        "SELECT postroom.forget_ended_books('', 100)",
        "gone ended global",
        passes_over=True,
    ),
    call(
        "a slot of a book that ended",
        "SELECT * FROM increment_rate_limit('email:recipient:gone@example.com', 1, 9)",
        "gone",
    ),
    call(
        "counters are cleaned up",
        "SELECT cleanup_rate_limit_counters()",
        "ended open gone global",
        passes_over=True,
    ),
]


def store(*labels: str, key: str | None = None) -> str:
    """A door stores events; those with a `key` are known by it."""

    def each(value: str) -> str:
        return f"array_fill({value}, ARRAY[{len(labels)}])"

    event_id = "NULL::text" if key is None else f"'{key}'::text"
    return f"""
        SELECT * FROM postroom.store_webhooks(
            {ids(*labels)}, {each("'stripe'::text")}, {each(event_id)}, {each("'t'::text")},
            {each("'{}'::text")},
            {each("'[]'::jsonb")}, {each("'POST'::text")}, {each("'/'::text")}, {each("'[]'::jsonb")},
            {each("'b'::bytea")}, {each("NULL::text")}, {each("NULL::numeric")}, {each("false")}
        ) AS id
    """


def finish(worker: object, label: str, handler: str) -> str:
    """A handler's mark."""
    return f"SELECT postroom.finish_handler('{worker}', '{id_of(label)}', 1, '{handler}')"


_REGISTER = """
    SELECT postroom.register_handlers('{app}', '{{{source}}}', '{{{name}}}', ARRAY['["*"]'::jsonb]) AS other
"""

_WEBHOOKS = [
    call("events without ids are stored", store("new1", "new2", "new3"), "new"),
    call("the same events again, in another order", store("new3", "new2", "new1"), "new"),
    call("an event is stored by its id", store("new1", key="evt_new"), "event new"),
    call("the same event comes to another door", store("new2", key="evt_new"), "event new"),
    call("an event comes that was seen", store("new4", key="evt_seen"), "event"),
    call("an event comes that was seen long ago", store("new4", key="evt_old"), "old event"),
    call(
        "events that were seen long ago are forgotten",
        "SELECT * FROM postroom.cleanup_seen_webhooks('(0,0)', '(100000,0)', false)",
        "old event",
        passes_over=True,
    ),
    call("W1 finishes a handler", finish(W1, "held", "h"), "held"),
    call("W1 finishes another handler", finish(W1, "held", "h2"), "held"),
    call("W2 finishes a handler of W1's", finish(W2, "held", "h"), "held"),
    call("W1 finishes a handler late", finish(W1, "expired", "h"), "expired"),
    call(
        "a person replays",
        f"SELECT postroom.replay_webhooks({ids('done', 'dead1')}, 'h') AS id",
        "done dead1",
    ),
    call("a lane's first is done", settle(WEBHOOK, W1, "done", 1, "lane1"), "lane due1"),
    call(
        "W2 claims from the lane",
        f"SELECT id FROM postroom.claim_webhooks('{W2}', 10)",
        "lane",
        passes_over=True,
    ),
    call("a program is forgotten", "SELECT app, name FROM postroom.forget_handlers('app')", "handlers"),
    call(
        "that program brings its handlers again",
        _REGISTER.format(app="app", source="stripe", name="h2"),
        "handlers",
        reads_committed=True,
    ),
    call(
        "a program brings handlers",
        _REGISTER.format(app="a", source="github", name="h"),
        "handlers",
        reads_committed=True,
    ),
    call(
        "another program brings the same source",
        _REGISTER.format(app="b", source="github", name="k"),
        "handlers",
        reads_committed=True,
    ),
]

CALLS: dict[Queue, list[Call]] = {EMAIL: _both(EMAIL) + _EMAILS, WEBHOOK: _both(WEBHOOK) + _WEBHOOKS}
