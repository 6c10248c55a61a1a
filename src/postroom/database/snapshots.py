"""Who holds an old snapshot: meanwhile nothing that died since can be removed, and the queue slows down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from postroom.database.connect import Database
from postroom.wording import duration

OLD_SNAPSHOT_S = 300.0
"""A snapshot that is older than this is worth a warning."""

HELD_TRANSACTIONS_MIN = 1_000_000
"""A standby or a slot in use holds a little all the time; from this many transactions on it is behind."""


@dataclass(frozen=True, slots=True)
class SnapshotHolder:
    """
    Something that keeps dead rows from being removed.

    Attributes:
        kind: What it is; a standby holds what its own queries see (hot_standby_feedback).
        name: The prepared transaction's, the slot's or the standby's name; None for a session.
        pid: Of its server process; None where it has none.
        state: As pg_stat_activity has it, such as `idle in transaction`.
        command: The first word of what it says or said last, never more: a statement may hold secrets.
        age_s: For how long its transaction has been open; None where the server does not know.
        transactions: How many transactions have begun since the snapshot.
        advice: What ends it.
    """

    kind: Literal["session", "prepared transaction", "replication slot", "standby"]
    name: str | None
    pid: int | None
    user: str | None
    application: str | None
    state: str | None
    command: str | None
    age_s: float | None
    transactions: int
    advice: str

    def __str__(self) -> str:
        if self.kind != "session":
            who = f"the {self.kind} {self.name}"
        else:
            program = f" with {self.application}" if self.application else ""
            who = f"process {self.pid} ({self.user or 'of the server'}{program})"
            doing = ", ".join(part for part in (self.state, self.command) if part)
            who += f", {doing}" if doing else ""
        if self.age_s is None:
            return f"{who}, for {self.transactions:,} transactions"
        return f"{who}, for {duration(self.age_s)}"


async def read_snapshot_holders(
    database: Database, *, older_than_s: float | None = None, count_max: int = 5
) -> list[SnapshotHolder]:
    """
    Who has held a snapshot for longer than that (None: OLD_SNAPSHOT_S), the oldest first.

    A role without pg_read_all_stats sees its own sessions only.

    Raises:
        DatabaseUnavailable: No answer.
    """
    if older_than_s is None:
        older_than_s = OLD_SNAPSHOT_S
    rows = await database.fetch(_HOLDERS_SQL, older_than_s, HELD_TRANSACTIONS_MIN, count_max)
    return [SnapshotHolder(**row) for row in rows]


# Sessions of other databases keep nothing of ours, nor do VACUUM's own snapshots.
_HOLDERS_SQL = """
    SELECT holder.*
    FROM (
        SELECT
            'session' AS kind,
            NULL AS name,
            activity.pid,
            activity.usename::text AS user,
            NULLIF(activity.application_name, '') AS application,
            activity.state,
            upper(substring(activity.query FROM '^\\s*([A-Za-z]+)')) AS command,
            extract(EPOCH FROM clock_timestamp() - activity.xact_start)::double precision AS age_s,
            age(activity.backend_xmin) AS transactions,
            format('SELECT pg_terminate_backend(%s)', activity.pid) AS advice
        FROM pg_stat_activity AS activity
        WHERE activity.backend_xmin IS NOT NULL
            AND activity.datname = current_database()
            AND activity.pid <> pg_backend_pid()
            AND activity.backend_type NOT IN ('autovacuum worker', 'walsender')
            AND activity.xact_start < clock_timestamp() - make_interval(secs => $1)
        UNION ALL
        SELECT
            'prepared transaction', prepared.gid, NULL, prepared.owner::text, NULL, NULL, NULL,
            extract(EPOCH FROM clock_timestamp() - prepared.prepared)::double precision,
            age(prepared.transaction),
            format('ROLLBACK PREPARED %L', prepared.gid)
        FROM pg_prepared_xacts AS prepared
        WHERE prepared.database = current_database()
            AND prepared.prepared < clock_timestamp() - make_interval(secs => $1)
        UNION ALL
        SELECT
            'replication slot', slot.slot_name::text, slot.active_pid, NULL, NULL, NULL, NULL, NULL,
            age(slot.xmin),
            format('SELECT pg_drop_replication_slot(%L), if nobody needs it any more', slot.slot_name)
        FROM pg_replication_slots AS slot
        WHERE slot.xmin IS NOT NULL AND (NOT slot.active OR age(slot.xmin) > $2)
        UNION ALL
        SELECT
            'standby', standby.application_name, standby.pid, standby.usename::text, NULL, NULL, NULL, NULL,
            age(standby.backend_xmin),
            'look for a long query there, or set hot_standby_feedback = off on it'
        FROM pg_stat_replication AS standby
        WHERE age(standby.backend_xmin) > $2
    ) AS holder
    ORDER BY holder.transactions DESC, holder.age_s DESC NULLS LAST
    LIMIT $3
"""
