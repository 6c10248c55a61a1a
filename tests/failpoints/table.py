"""
The table: each point, what happens around it, and what each fault may cost there.

A kill and a hang cost the same everywhere: the attempts that had begun count as failed once, and a mail that
the other side had taken by then goes out again, as the same bytes. That is checked from the marks and the
ledger, so the table says only what is particular to a point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from postroom import failpoints

FAULTS = ("kill", "raise", "hang")
"""Those that a process can be armed with; see postroom.failpoints."""


@dataclass(frozen=True)
class Loss:
    """
    One way to lose a connection at a point.

    Attributes:
        statement: A pattern of the statement (PostgreSQL), or the server's step (SMTP, `smtp:DATA`).
        after: It has run, and its answer is lost.
        within: A statement of the same transaction, where it is its COMMIT.
        fails: How many attempts are counted as failed by it.
        doubles: How many mails go out twice by it.
        dies: The program ends by it, with a line that says why.
    """

    statement: str
    after: bool = False
    within: str | None = None
    fails: int = 0
    doubles: int = 0
    dies: bool = False


@dataclass(frozen=True)
class Point:
    """
    What is particular to a point.

    Attributes:
        around: The set-up that comes by it.
        at_end: It is reached when the program is told to end.
        fails, doubles, dies: What `raise` costs there; see Loss.
        losses: The connections that can be lost there.
        short: The fault that the short form has for it: it once broke something. Else they take turns.
    """

    around: str = ""
    at_end: bool = False
    fails: int = 0
    doubles: int = 0
    dies: bool = False
    losses: tuple[Loss, ...] = ()
    short: str | None = None


@dataclass(frozen=True)
class Case:
    """
    A point and the fault that it meets.

    Attributes:
        fault: One of FAULTS, or the connection that is lost.
        turn: Of those that reach the point, which one meets it.
    """

    point: str
    fault: str | Loss
    turn: int = 1

    def __str__(self) -> str:
        if isinstance(self.fault, str):
            return f"{self.point} {self.fault}@{self.turn}"
        within = f" within {self.fault.within}" if self.fault.within else ""
        return f"{self.point} cut {'after' if self.fault.after else 'before'} {self.fault.statement}{within}"

    @property
    def environment(self) -> dict[str, str]:
        """What arms it."""
        if isinstance(self.fault, Loss):
            return {}
        return {failpoints.VARIABLE: f"{self.point}={self.fault}@{self.turn}"}


def cases_of(table: Mapping[str, Point]) -> list[Case]:
    """All of a table."""
    return [Case(name, fault) for name, point in table.items() for fault in _faults_of(point)]


def one_a_point(table: Mapping[str, Point]) -> list[Case]:
    """Each point once, with another fault at each."""
    found = []
    for turn, (name, point) in enumerate(table.items()):
        faults = _faults_of(point)
        found.append(Case(name, point.short or faults[turn % len(faults)]))
    return found


def _faults_of(point: Point) -> list[str | Loss]:
    return [*FAULTS, *point.losses]


def _around(statement: str, **costs: bool) -> tuple[Point, Point]:
    """The points before and after a statement."""
    return (
        Point(losses=(Loss(statement, dies=costs.get("dies", False)),)),
        Point(losses=(Loss(statement, after=True, dies=costs.get("dies", False)),)),
    )


REGISTER = _around("register_worker")
HEARTBEAT = _around("SET seen_at = clock_timestamp")
CLAIM = _around("FROM postroom.claim_")
ATTACHMENTS = _around("FROM postroom.email_attachments")
BEGIN = _around("FROM postroom.begin_(emails|webhooks)")
SETTLE = _around("FROM postroom.settle_(emails|webhooks)")
EXTEND = _around("extend_(email|webhook)_leases")
TEND = _around("settle_refused_")
FORGET = _around("forget_worker")

ENGINE = {
    "worker.register.before": Point(dies=True, losses=REGISTER[0].losses),
    "worker.register.after": Point(dies=True, losses=REGISTER[1].losses),
    "worker.heartbeat.before": HEARTBEAT[0],
    "worker.heartbeat.after": HEARTBEAT[1],
    "worker.forget.before": Point(at_end=True, losses=FORGET[0].losses),
    "worker.forget.after": Point(at_end=True, losses=FORGET[1].losses),
    "claim.before": CLAIM[0],
    "claim.after": CLAIM[1],
    "begin.before": BEGIN[0],
    "begin.after": BEGIN[1],
    "settle.before": SETTLE[0],
    "settle.after": SETTLE[1],
    "report.before": Point(short="raise"),
    "extend.before": Point("slow", losses=EXTEND[0].losses),
    "extend.after": Point("slow", losses=EXTEND[1].losses),
    "tend.before": TEND[0],
    "tend.after": TEND[1],
    "drain.before": Point(at_end=True, dies=True),
    "attempt.before": Point(fails=1),
}
"""Where both queues meet."""

EMAIL = ENGINE | {
    "attempt.after": Point(fails=1, doubles=1),
    "attempt.ended": Point(fails=1, doubles=1, short="raise"),
    "attachments.before": Point("files", fails=1, losses=ATTACHMENTS[0].losses),
    "attachments.after": Point("files", fails=1, losses=ATTACHMENTS[1].losses),
    "pause.before": Point("down", losses=(Loss("INTO postroom.transports"),)),
    "pause.after": Point("down", losses=(Loss("INTO postroom.transports", after=True),)),
    "smtp.connected": Point(fails=1),
    "smtp.envelope.before": Point(fails=1, losses=(Loss("smtp:MAIL", fails=1),), short="hang"),
    "smtp.content.before": Point(fails=1, losses=(Loss("smtp:DATA", fails=1),)),
    "smtp.content.after": Point(fails=1, doubles=1, losses=(Loss("smtp:CONTENT", fails=1, doubles=1),)),
    "smtp.answered": Point(fails=1, doubles=1),
    "resend.post.before": Point("resend", fails=1),
    "resend.answered": Point("resend", fails=1, doubles=1),
    "maildir.write.before": Point("maildir", fails=1),
    "maildir.write.after": Point("maildir", fails=1),
    "maildir.move.after": Point("maildir", fails=1),
}

_ASYNC = r"INSERT INTO effects VALUES \('async', \$"
_PLAIN = r"INSERT INTO effects VALUES \('plain', \$"

WEBHOOK = ENGINE | {
    "attempt.after": Point(fails=1),
    "attempt.ended": Point(fails=1),
    "handlers.register.before": Point(dies=True, losses=(Loss("register_handlers", dies=True),)),
    "handlers.register.after": Point(dies=True, losses=(Loss("register_handlers", after=True, dies=True),)),
    "handler.before": Point(fails=1),
    "handler.after": Point(
        fails=1,
        losses=(
            Loss("^COMMIT", after=True, within=_ASYNC, fails=1),
            Loss("^COMMIT", after=True, within=_PLAIN, fails=1),
        ),
    ),
    # Whatever breaks the call, each event is called for alone, and what is done is not done again.
    "sql_handler.before": Point(losses=(Loss("handle_webhooks"),)),
    "sql_handler.after": Point(losses=(Loss("handle_webhooks", after=True),)),
    "async_handler.before": Point(fails=1, losses=(Loss(_ASYNC, fails=1),)),
    "async_handler.effect": Point(fails=1, losses=(Loss(_ASYNC, after=True, fails=1),)),
    "async_handler.mark": Point(fails=1, losses=(Loss("^COMMIT", within=_ASYNC, fails=1),)),
    "plain_handler.before": Point(fails=1, losses=(Loss(_PLAIN, fails=1),)),
    "plain_handler.effect": Point(fails=1, losses=(Loss(_PLAIN, after=True, fails=1),)),
    "plain_handler.mark": Point(fails=1, losses=(Loss("^COMMIT", within=_PLAIN, fails=1),)),
    "url_handler.answered": Point(
        fails=1,
        losses=(
            Loss("^SELECT postroom.finish_handler", fails=1),
            Loss("^SELECT postroom.finish_handler", after=True, fails=1),
        ),
    ),
    "handler.stop.before": Point("stop", fails=1, losses=(Loss("^SELECT postroom.finish_handler", fails=1),)),
    "handler.stop.after": Point(
        "stop", fails=1, losses=(Loss("^SELECT postroom.finish_handler", after=True, fails=1),)
    ),
}

STORE = _around("FROM postroom.store_webhooks")
ENQUEUE = _around("public.enqueue_email")
INSERT = _around("FROM postroom.begin_direct_email")
WITHDRAW = _around("FROM postroom.withdraw_direct_email")

WEBHOOK_DOOR = {"store.before": STORE[0], "store.after": STORE[1], "door.answer.before": Point()}
QUEUE_DOOR = {"enqueue.before": ENQUEUE[0], "enqueue.after": ENQUEUE[1]}
SEND_DOOR = {
    "direct.insert.before": INSERT[0],
    "direct.insert.after": Point(losses=INSERT[1].losses, short="raise"),
    "direct.withdraw.before": Point("limited", losses=WITHDRAW[0].losses),
    "direct.withdraw.after": Point("limited", losses=WITHDRAW[1].losses),
    "direct.answer.before": Point(),
    "worker.register.before": Point(losses=REGISTER[0].losses, short="raise"),
    "worker.register.after": REGISTER[1],
    "begin.before": BEGIN[0],
    "begin.after": BEGIN[1],
    "attempt.before": Point(),
    "attempt.after": Point(),
    "settle.before": SETTLE[0],
    "settle.after": SETTLE[1],
    "report.before": Point(),
    "smtp.connected": Point(),
    "smtp.envelope.before": Point(losses=(Loss("smtp:MAIL"),)),
    "smtp.content.before": Point(losses=(Loss("smtp:DATA"),)),
    "smtp.content.after": Point(losses=(Loss("smtp:CONTENT"),)),
    "smtp.answered": Point(),
}
"""What a caller who waits for the answer is told, and what becomes of the mail."""

CRON_OFFER = _around("postroom.offer_jobs")
CRON_LEAD = _around("FROM postroom.lead_cron")
CRON_GIVE_UP = _around("FROM postroom.fail_dead_runs")
CRON_BEGIN = _around("SELECT postroom.begin_run")
CRON_END = _around("SELECT postroom.end_run")
CRON_EXTEND = _around("SELECT postroom.extend_runs")
CRON_RESIGN = _around("SELECT postroom.resign_cron")

SCHEDULER = {
    "cron.offer.before": CRON_OFFER[0],
    "cron.offer.after": CRON_OFFER[1],
    "cron.lead.before": CRON_LEAD[0],
    "cron.lead.after": CRON_LEAD[1],
    "cron.give_up.before": CRON_GIVE_UP[0],
    "cron.give_up.after": CRON_GIVE_UP[1],
    "cron.begin.before": CRON_BEGIN[0],
    "cron.begin.after": CRON_BEGIN[1],
    "cron.run.before": Point(losses=(Loss("INTO public.beats"), Loss("INTO public.beats", after=True))),
    "cron.end.before": CRON_END[0],
    "cron.end.after": CRON_END[1],
    "cron.extend.before": Point("slow", losses=CRON_EXTEND[0].losses),
    "cron.extend.after": Point("slow", losses=CRON_EXTEND[1].losses),
    "cron.resign.before": Point(at_end=True, losses=CRON_RESIGN[0].losses),
    "cron.resign.after": Point(at_end=True, losses=CRON_RESIGN[1].losses),
}
"""No minute has two runs, and the schedule goes on."""

CLEANUP_BATCH = _around("FROM postroom.cleanup_emails")

CLEANUP = {"cleanup.batch.before": CLEANUP_BATCH[0], "cleanup.batch.after": CLEANUP_BATCH[1]}
"""What is old goes, what lives stays, and it may be begun anew."""

_CONTINUE = "FROM postroom.continue_bulk_action"
BULK_STEP = _around(_CONTINUE)

BULK = {
    "bulk.begin.before": Point(losses=(Loss("INSERT INTO postroom.bulk_actions"),)),
    "bulk.begin.after": Point(
        losses=(Loss("^COMMIT", after=True, within="INSERT INTO postroom.bulk_actions"),)
    ),
    "bulk.step.before": BULK_STEP[0],
    "bulk.step.inside": Point(losses=(*BULK_STEP[1].losses, Loss("^COMMIT", within=_CONTINUE))),
    "bulk.step.after": Point(losses=(Loss("^COMMIT", after=True, within=_CONTINUE),)),
}
"""Whatever breaks off, the action goes on where it was: each letter is decided once, its counts are true."""

MIGRATION = {
    "migrate.preflight.after": Point(),
    "migrate.step.before": Point(
        losses=(Loss("^SET LOCAL lock_timeout"), Loss("LOCK TABLE public.email_queue"))
    ),
    "migrate.step.inside": Point(losses=(Loss("^COMMIT"),), short="hang"),
    "migrate.step.after": Point(losses=(Loss("^COMMIT", after=True),)),
    "migrate.index.before": Point(losses=(Loss("^CREATE INDEX CONCURRENTLY"),)),
    "migrate.index.after": Point(losses=(Loss("^CREATE INDEX CONCURRENTLY", after=True),)),
    "migrate.record.after": Point(losses=(Loss("^INSERT INTO postroom.migrations", after=True),)),
    "migrate.rows.inside": Point(losses=(Loss("FROM postroom.settle_old_rows", after=True),)),
    "migrate.rows.after": Point(losses=(Loss("^COMMIT", after=True, within="settle_old_rows"),)),
}
"""An upgrade that is run again completes, wherever it was cut off."""
