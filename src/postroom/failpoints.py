"""
Named points at which a test can break the house.

    reach("settle.after")

does nothing (20 ns) unless the environment has armed that point when the process began, as in

    POSTROOM_TEST_FAILPOINTS="settle.after=kill"

Then the first to reach it meets a fault: `kill` is kill -9; `raise` is an exception that nobody expects;
`hang` stops the whole process, as SIGSTOP does, until somebody sends SIGCONT. `settle.after=kill@3` is for
the third. Connections are broken outside of the process: tests/support/proxy.py.

What must hold at each point and fault is the table in tests/failpoints: a point that is not in it fails
a test.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable

VARIABLE = "POSTROOM_TEST_FAILPOINTS"

POINTS = {
    # The engine: both queues
    "worker.register.before": "A worker is about to write its row; or to write anew that it sleeps.",
    "worker.register.after": "It is written.",
    "worker.heartbeat.before": "A worker is about to say that it lives.",
    "worker.heartbeat.after": "It has said so.",
    "worker.forget.before": "A worker has drained and is about to delete its row.",
    "worker.forget.after": "The row is gone, the process has not ended.",
    "claim.before": "Nothing is asked for yet.",
    "claim.after": "Rows are leased, and nobody here knows of them yet.",
    "begin.before": "Attempts want to begin, and their marks are not written.",
    "begin.after": "The marks are written, and no attempt has gone on.",
    "attempt.before": "A row was taken from the buffer, and nothing was done with it.",
    "attachments.before": "An attempt has room for its mail's attachments, and they are not read.",
    "attachments.after": "They are read, and nothing is rendered.",
    "attempt.after": "The other side has answered.",
    "attempt.ended": "The outcome is known, and nobody was told to write it down.",
    "settle.before": "Outcomes are about to be written down.",
    "settle.after": "They are written down, and nobody here knows that.",
    "report.before": "An outcome is written down and not logged.",
    "extend.before": "Leases of long attempts are about to be extended.",
    "extend.after": "They are extended, and nobody here knows that.",
    "drain.before": "The worker was told to end and has given nothing back.",
    # E-mail
    "enqueue.before": "E-mails are about to be queued.",
    "enqueue.after": "They are queued, and the caller does not know that.",
    "direct.insert.before": "The row of an e-mail that is attempted at once is about to be made.",
    "direct.insert.after": "It is made and leased, and not attempted.",
    "direct.withdraw.before": "It found no slot of a limit, and its row is about to be taken back.",
    "direct.withdraw.after": "The row is gone, and the caller does not know that.",
    "direct.answer.before": "The outcome is written down, and the caller does not know it.",
    "tend.before": "A worker is about to look after its queue, as each second.",
    "tend.after": "It has looked.",
    "pause.before": "A transport is down, or up again, and nobody else knows that.",
    "pause.after": "Everybody may read it.",
    "smtp.connected": "There is a connection, and the attempt has not begun.",
    "smtp.envelope.before": "The attempt has begun, and the server has heard nothing of it.",
    "smtp.content.before": "The content is about to be written, and its last byte was not.",
    "smtp.content.after": "The content's last byte is written, and not answered.",
    "smtp.answered": "The server has taken the e-mail.",
    "resend.post.before": "The attempt has begun, and the server has heard nothing of it.",
    "resend.answered": "The server has taken the e-mail.",
    "maildir.write.before": "The attempt has begun, and there is no file.",
    "maildir.write.after": "The file is on the disk, and not in its place.",
    "maildir.move.after": "It is in its place, and that is not on the disk.",
    # Webhooks
    "store.before": "Events that came are about to be stored.",
    "store.after": "They are stored, and the door does not know that.",
    "door.answer.before": "The event is stored, and the provider has no answer.",
    "handlers.register.before": "A program is about to show its handlers to every worker.",
    "handlers.register.after": "They are shown.",
    "handler.before": "The attempt has begun, and its next handler has not.",
    "handler.after": "A handler is done, and its effect is committed.",
    "sql_handler.before": "Some events have begun, and the database was not told to handle them.",
    "sql_handler.after": "It has handled them, and nobody here knows that.",
    "async_handler.before": "A coroutine function has its transaction, and was not called.",
    "async_handler.effect": "It has returned, and is not marked as done.",
    "async_handler.mark": "It is marked, and nothing is committed.",
    "plain_handler.before": "A plain function has its transaction, and was not called.",
    "plain_handler.effect": "It has returned, and is not marked as done.",
    "plain_handler.mark": "It is marked, and nothing is committed.",
    "url_handler.answered": "The other side has answered, and the handler is not marked as done.",
    "handler.stop.before": "A handler wants the event never again, and that is not written.",
    "handler.stop.after": "It is written.",
    # The scheduler
    "cron.offer.before": "A scheduler is about to bring the jobs that it can run to the table.",
    "cron.offer.after": "They are there.",
    "cron.lead.before": "A scheduler is about to ask whether it leads.",
    "cron.lead.after": "It leads, or another does, and it does not know which.",
    "cron.give_up.before": "The leader is about to give up the runs of the dead.",
    "cron.give_up.after": "They are given up.",
    "cron.begin.before": "A job is due, and no run of it is written down.",
    "cron.begin.after": "The run is written down, and nobody has begun it.",
    "cron.run.before": "The job is about to run.",
    "cron.end.before": "The job has run, and that is not written down.",
    "cron.end.after": "It is written down, and nobody here knows that.",
    "cron.extend.before": "The leases of long runs are about to be extended.",
    "cron.extend.after": "They are extended, and nobody here knows that.",
    "cron.resign.before": "The leader was told to end and still leads.",
    "cron.resign.after": "Anybody may lead, the process has not ended.",
    "cleanup.batch.before": "Some pages are about to be cleaned up.",
    "cleanup.batch.after": "They are, and nobody here knows that.",
    # What a person does to many
    "bulk.begin.before": "An action on a whole group was asked for, and is not written down.",
    "bulk.begin.after": "It is written down with its entry in the audit trail, and nobody works on it.",
    "bulk.step.before": "The next thousand are about to be changed.",
    "bulk.step.inside": "They are changed, with the action's place and count, and nothing is committed.",
    "bulk.step.after": "It is committed, and nobody here knows that.",
    # Migrations
    "migrate.preflight.after": "What stands in the way was looked for.",
    "migrate.step.before": "A step has its transaction, and has done nothing.",
    "migrate.step.inside": "A step has done everything, and nothing is committed.",
    "migrate.step.after": "A step is committed.",
    "migrate.index.before": "An index is about to be built.",
    "migrate.index.after": "It is built, and its migration is not recorded.",
    "migrate.record.after": "A migration that ran outside a transaction is recorded.",
    "migrate.rows.inside": "Rows of before are settled, and nothing is committed.",
    "migrate.rows.after": "It is committed.",
}
"""Every point, with what has happened when it is reached and what has not."""


class FailpointReached(Exception):
    """What `raise` raises; no part of the house knows it."""


def reach(point: str) -> None:
    """
    Meet the fault that the point is armed with, if it is.

    Raises:
        FailpointReached: It is armed with `raise`.
    """
    if _armed:
        _strike(point)


def arm(faults: str) -> None:
    """
    Arm these points and no others.

    Args:
        faults: `point=fault` or `point=fault@n`, with commas between them.

    Raises:
        ValueError: There is no such point or fault.
    """
    _armed.clear()
    for one in filter(None, faults.split(",")):
        match = re.fullmatch(r"([a-z_.]+)=([a-z]+)(?:@(\d+))?", one)
        if match is None or match[1] not in POINTS or match[2] not in _FAULTS:
            raise ValueError(f"{VARIABLE}: {one!r} is no point with a fault")
        _armed[match[1]] = (match[2], int(match[3] or 1))


def _strike(point: str) -> None:
    fault, turns = _armed.get(point, ("", 0))
    if turns > 1:
        _armed[point] = (fault, turns - 1)
    elif fault:
        del _armed[point]
        os.write(2, f"failpoint {point}: {fault}\n".encode())
        _FAULTS[fault](point)


def _kill(_point: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _raise(point: str) -> None:
    raise FailpointReached(point)


def _hang(_point: str) -> None:
    # By thread: the one that reached the point goes no further, whichever it is.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


_FAULTS: dict[str, Callable[[str], None]] = {"kill": _kill, "raise": _raise, "hang": _hang}
_armed: dict[str, tuple[str, int]] = {}

arm(os.environ.get(VARIABLE, ""))
