"""The faults: each breaks one thing of the house and gives back what ends it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import psycopg

from tests.chaos.house import BALLAST, House, Seat
from tests.support.proxy import (
    CUT_AFTER,
    CUT_BEFORE,
    HALF_OPEN_AFTER,
    HALF_OPEN_BEFORE,
    Delay,
    HalfOpen,
    Trickle,
)
from tests.support.proxy import Fault as ProxyFault

Undo = Callable[[], None]
Fault = Callable[[House, random.Random], Undo | None]
"""Breaks something, now; what it gives back is called when the fault ends."""

FAILOVER = "failover to the synchronous standby"  # needs Scenario.standby
QUEUE_PAUSED = "queue paused by a person"
TRANSPORT_PAUSED = "transport paused by a person"
PAUSE_MOST = timedelta(seconds=10)
END_S_MAX = 20.0
"""Who was told to end is killed after so long: with the database away it may not be able to."""


def _kill(seats: Callable[[House], list[Seat]]) -> Fault:
    def fault(house: House, rng: random.Random) -> None:
        victim = rng.choice(seats(house))
        victim.kill()
        victim.start()

    return fault


def _tell_to_end(seats: Callable[[House], list[Seat]]) -> Fault:
    def fault(house: House, rng: random.Random) -> Undo | None:
        victim = rng.choice(seats(house))
        told = victim.process
        if victim.told_to_end or not victim.is_at_work():
            return None  # a second signal ends it at once, and one that comes before it can hear does too
        victim.told_to_end = True
        victim.signal(signal.SIGTERM)

        def undo() -> None:
            if told is None or victim.process is not told:
                return  # killed meanwhile, and replaced
            victim.signal(signal.SIGCONT)
            ends = time.monotonic() + END_S_MAX
            while victim.ended() is None and time.monotonic() < ends:
                time.sleep(0.02)
            if (code := victim.ended()) is not None:
                victim.ends.append(code)
            victim.kill()
            victim.start()

        return undo

    return fault


def stop_worker(house: House, rng: random.Random) -> Undo:
    """SIGSTOP, and SIGCONT when its leases have long passed to others."""
    victim = rng.choice(house.workers)
    victim.signal(signal.SIGSTOP)
    return lambda: victim.signal(signal.SIGCONT)


def terminate_backends(house: House, rng: random.Random) -> None:
    """pg_terminate_backend of about half of the connections."""
    with suppress(psycopg.OperationalError), house.connected() as db:
        db.execute(
            """
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND random() < %s
            """,
            (rng.uniform(0.2, 0.8),),
        )


def _stop_server(how: signal.Signals) -> Fault:
    def fault(house: House, _rng: random.Random) -> Undo:
        if house.server.is_running():
            house.crash() if how == signal.SIGKILL else house.server.stop(how)
        return house.heal_server

    return fault


def fail_over(house: House, _rng: random.Random) -> Undo:
    """PostgreSQL is gone for ever, and its synchronous standby takes over; then that one gets a standby."""
    house.fail_over()
    return house.add_standby


def silence(house: House, _rng: random.Random) -> Undo:
    """The network is gone: nothing arrives and nobody hears of it; what was said comes when it is back."""
    house.proxy.silence()
    return house.proxy.heal


def _at_statements(fault: ProxyFault, pattern: str, least: float, most: float) -> Fault:
    """The network breaks at a share of the statements."""

    def break_it(house: House, rng: random.Random) -> Undo:
        house.proxy.on(pattern, fault, times=None, share=rng.uniform(least, most))

        def undo() -> None:
            house.proxy.clear()
            if isinstance(fault, HalfOpen):
                house.proxy.drop_connections()  # now both ends hear of it

        return undo

    return break_it


def fill_database_disk(house: House, _rng: random.Random) -> Undo:
    """No byte is left for data and WAL; the server may end by it."""
    assert house.database_disk is not None
    undo = _fill(house.database_disk)

    def heal() -> None:
        undo()
        house.heal_server()

    return heal


def fill_maildir_disk(house: House, _rng: random.Random) -> Undo:
    """No byte is left for mails."""
    assert house.maildir_disk is not None
    return _fill(house.maildir_disk)


def pause_queue(house: House, rng: random.Random) -> Undo:
    """A person pauses one of the queues, and resumes it."""
    return _pause(house, "queue", rng.choice(("email", "webhook")))


def pause_transport(house: House, _rng: random.Random) -> Undo:
    """A person pauses the way to the receiver, and resumes it."""
    return _pause(house, "transport", house.transport)


def _pause(house: House, kind: str, name: str) -> Undo:
    paused_at = float("inf")
    with suppress(psycopg.Error), house.connected() as db:
        # With an end: who resumes it may find no database.
        db.execute("SELECT postroom.pause(%s, %s, 'chaos', NULL, %s)", (kind, name, PAUSE_MOST))
        paused_at = time.time()

    def undo() -> None:
        house.pauses.append((kind, paused_at, time.time()))
        with suppress(psycopg.Error), house.connected() as db:
            db.execute("SELECT postroom.resume(%s, %s)", (kind, name))

    return undo


def _receiver(mode: str) -> Fault:
    def fault(house: House, _rng: random.Random) -> Undo:
        house.sink.behave(mode)
        return lambda: house.sink.behave(house.scenario.receiver)

    return fault


FAULTS: dict[str, Fault] = {
    "worker killed": _kill(lambda house: house.workers),
    "worker stopped for longer than its lease": stop_worker,
    "worker told to end": _tell_to_end(lambda house: house.workers),
    "door killed": _kill(lambda house: house.doors),
    "door told to end": _tell_to_end(lambda house: house.doors),
    "backends terminated": terminate_backends,
    "PostgreSQL stopped fast": _stop_server(signal.SIGINT),
    "PostgreSQL stopped at once": _stop_server(signal.SIGQUIT),
    "PostgreSQL killed": _stop_server(signal.SIGKILL),
    FAILOVER: fail_over,
    QUEUE_PAUSED: pause_queue,
    TRANSPORT_PAUSED: pause_transport,
    "network silent for a while": silence,
    "network half open": _at_statements(HALF_OPEN_BEFORE, ".", 0.1, 0.5),
    "network half open after the server has answered": _at_statements(HALF_OPEN_AFTER, ".", 0.05, 0.3),
    "reset after COMMIT was sent": _at_statements(CUT_AFTER, "COMMIT", 0.3, 1.0),
    "reset before COMMIT was sent": _at_statements(CUT_BEFORE, "COMMIT", 0.3, 1.0),
    "reset after any statement was sent": _at_statements(CUT_AFTER, ".", 0.02, 0.2),
    "network slow": _at_statements(Delay(0.15), ".", 0.3, 1.0),
    "slots of limits known late": _at_statements(Trickle(100, 0.4), "begin_emails", 0.3, 0.7),
    "network trickles": _at_statements(Trickle(32, 0.002), ".", 0.3, 1.0),
    "disk full for PostgreSQL": fill_database_disk,
    "disk full for the maildir": fill_maildir_disk,
    "receiver refuses connections": _receiver("refuse"),
    "receiver drops after the final dot": _receiver("drop"),
    "receiver answers 421": _receiver("421"),
    "receiver answers 451": _receiver("451"),
    "receiver answers 550 to some": _receiver("550"),
    "receiver is slow": _receiver("slow"),
}


def _fill(disk: Path) -> Undo:
    ballast = disk / BALLAST
    with suppress(OSError), ballast.open("ab") as file:
        room = os.statvfs(disk)
        with suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, max(room.f_bavail * room.f_frsize, 1))
        while True:  # until OSError: the disk is full
            os.write(file.fileno(), bytes(4096))
    return lambda: ballast.unlink(missing_ok=True)
