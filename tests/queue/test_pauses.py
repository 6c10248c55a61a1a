"""What a person has paused: nothing of it begins, what is in flight ends, and nothing is counted."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any
from uuid import uuid4

import pytest

from postroom.database.audit import Actor
from postroom.email.delivery import Delivery
from postroom.email.message import OutgoingEmail
from postroom.email.store import EmailStore
from postroom.email.transports.base import Start
from postroom.email.transports.failover import Failover
from postroom.errors import TransportDown
from postroom.queue.engine import Engine
from postroom.queue.pauses import Pauses, find_transport, pause, read_pauses, resume
from tests.queue.conftest import House, Recorder

ADA = Actor("ada@house", "cli")


async def _pause(house: House, kind: str = "queue", name: str = "email", for_s: float | None = None) -> None:
    assert kind in ("queue", "transport")
    await pause(
        house.database,
        "queue" if kind == "queue" else "transport",
        name,
        by=ADA,
        reason="the provider moves",
        for_s=for_s,
    )


async def _resume(house: House, kind: str = "queue", name: str = "email") -> None:
    assert await resume(house.database, "queue" if kind == "queue" else "transport", name, by=ADA)


def _over(house: House, *recorders: Recorder, **options: Any) -> Engine[OutgoingEmail]:
    store = EmailStore(house.database, sender="shop@example.com")
    return Engine(Delivery(store, Failover(recorders), Pauses(house.database)), house.database, **options)


async def _states(house: House) -> set[tuple[str, int]]:
    return {(row["status"], row["attempts"]) for row in await house.rows()}


class Busy(Recorder):
    """Takes one e-mail at once; the others wait for a connection until they are let go."""

    def __init__(self) -> None:
        super().__init__("busy")
        self.let_go = asyncio.Event()
        self._asked = 0

    async def send(self, email: OutgoingEmail, start: Start) -> str:
        self._asked += 1
        if self._asked > 1:
            await self.let_go.wait()
        return await super().send(email, start)

    async def until_asked(self, emails: int) -> None:
        """Wait until it was asked to take so many."""
        async with asyncio.timeout(20):
            while self._asked < emails:
                await asyncio.sleep(0.01)


async def test_nothing_of_a_paused_queue_is_claimed_by_anybody(house: House) -> None:
    """Neither by a worker nor by an old caller; events, which have a queue of their own, are."""
    await house.queue(3)
    await house.database.execute(
        "INSERT INTO webhook_retry_queue (webhook_type, payload) VALUES ('stripe', '{}')"
    )
    await _pause(house)
    worker = house.engine()
    await worker._register(patient=False)
    assert await worker.work.claim(worker.id, 10, None, 0) == []
    assert await house.database.fetch("SELECT * FROM get_email_queue_batch(10)") == []
    assert await house.database.fetchval("SELECT postroom.email_wait_s()") is None
    assert await house.database.fetchval("SELECT count(*) FROM get_webhook_retry_batch(10)") == 1
    assert {(row["status"], row["lease_no"]) for row in await house.rows()} == {("pending", 0)}

    await _resume(house)
    assert await house.database.fetchval("SELECT count(*) FROM get_email_queue_batch(1)") == 1
    assert len(await worker.work.claim(worker.id, 10, None, 0)) == 2


async def test_what_is_in_flight_ends_and_what_is_not_begun_goes_back(house: House) -> None:
    """Of two workers with full buffers; a resume lets them go on, each mail at its first attempt."""
    let_go = asyncio.Event()

    async def wait(_: OutgoingEmail) -> str:
        await let_go.wait()
        return "250 ok"

    house.recorder.behave = wait
    await house.queue(60)
    async with house.working(house.engine(concurrency=2), house.engine(concurrency=2)):
        while len(house.recorder.handed_over) < 4:
            await asyncio.sleep(0.01)
        await _pause(house)
        await house.until("(SELECT count(*) = 56 FROM email_queue WHERE status = 'pending')")
        let_go.set()
        await house.until("(SELECT count(*) = 4 FROM email_queue WHERE status = 'sent')")
        await asyncio.sleep(1.2)  # longer than a worker's poll
        found = Counter((row["status"], row["attempts"]) for row in await house.rows())
        assert found == {("sent", 1): 4, ("pending", 0): 56}
        # Nobody sleeps, so that no insert calls; and no mark of what has ended is left.
        await house.until("(SELECT bool_and(NOT asleep AND begun = '{}') FROM postroom.workers)")

        await _resume(house)
        await house.until_settled()
    assert {(row["status"], row["attempts"], row["error_count"]) for row in await house.rows()} == {
        ("sent", 1, 0)
    }
    assert len(house.recorder.handed_over) == 60


async def test_what_waits_for_its_turn_when_the_pause_comes_does_not_begin(house: House) -> None:
    """An attempt that a transport keeps waiting for a connection, or a handler for a slot, has not begun."""
    busy = Busy()
    await house.queue(10)
    async with house.working(house.engine(busy, concurrency=4)):
        await busy.until_asked(5)
        await _pause(house)
        await house.until("(SELECT count(*) = 5 FROM email_queue WHERE status = 'pending')")
        busy.let_go.set()
        await house.until("(SELECT count(*) = 9 FROM email_queue WHERE status = 'pending')")
        assert len(busy.handed_over) == 1
        assert await _states(house) == {("sent", 1), ("pending", 0)}

        await _resume(house)
        await house.until_settled()
    assert len(busy.handed_over) == 10
    assert {row["attempts"] for row in await house.rows()} == {1}


async def test_what_waits_for_a_transport_that_is_paused_meanwhile_goes_back_unattempted(
    house: House,
) -> None:
    """What has no connection yet has not begun: nothing is counted, and after the resume it goes out."""
    busy = Busy()
    await house.queue(10)
    async with house.working(_over(house, busy, concurrency=4)):
        await busy.until_asked(5)
        await _pause(house, "transport", "busy")
        await house.until("(SELECT count(*) = 5 FROM email_queue WHERE status = 'pending')")
        busy.let_go.set()
        await house.until("(SELECT count(*) = 9 FROM email_queue WHERE status = 'pending')")
        assert len(busy.handed_over) == 1
        assert await _states(house) == {("sent", 1), ("pending", 0)}

        await _resume(house, "transport", "busy")
        await house.until_settled()
    assert len(busy.handed_over) == 10
    assert {(row["attempts"], row["error_count"]) for row in await house.rows()} == {(1, 0)}


async def test_a_worker_that_gave_its_buffer_back_goes_on_saying_that_it_lives(house: House) -> None:
    """Its row says how many it gave back, as what; and it lies down when nothing is due."""
    busy = Busy()
    await house.queue(10)
    async with house.working(_over(house, busy, concurrency=4)):
        await busy.until_asked(5)
        await _pause(house, "transport", "busy")
        await house.until("(SELECT count(*) = 5 FROM email_queue WHERE status = 'pending')")
        busy.let_go.set()
        await house.until("(SELECT settled ->> 'transport_down' = '9' FROM postroom.workers)")
        await _resume(house, "transport", "busy")
        await house.until("(SELECT asleep AND settled ->> 'done' = '10' FROM postroom.workers)")


async def test_what_waits_for_a_transport_that_is_paused_meanwhile_goes_by_the_next_one(
    house: House,
) -> None:
    """As mail does that comes after the pause."""
    busy, other = Busy(), Recorder("other")
    await house.queue(10)
    engine = _over(house, busy, other, concurrency=4)
    assert isinstance(engine.work, Delivery)
    async with house.working(engine):
        await busy.until_asked(5)
        await _pause(house, "transport", "busy")
        async with asyncio.timeout(20):
            while not engine.work.transport.pauses():
                await asyncio.sleep(0.01)
        busy.let_go.set()
        await house.until_settled()
    assert (len(busy.handed_over), len(other.handed_over)) == (1, 9)
    assert {(row["attempts"], row["error_count"]) for row in await house.rows()} == {(1, 0)}


async def test_a_worker_that_begins_while_its_queue_is_paused_waits_for_the_resume(house: House) -> None:
    """It lies down as for an empty queue, and does not ask without end."""
    await house.queue(5)
    await _pause(house)
    async with house.working(house.engine()):
        await house.until("(SELECT count(*) = 1 FROM postroom.workers)")
        before = await _claims(house)
        await asyncio.sleep(1.5)
        assert house.recorder.handed_over == []
        assert await _claims(house) <= before + 50
        await _resume(house)
        await house.until_settled()
    assert len(house.recorder.handed_over) == 5


async def _claims(house: House) -> int:
    """How often claims looked for rows: each reads the settings, whatever it finds."""
    count: int = await house.database.fetchval(
        "SELECT pg_stat_get_tuples_fetched('postroom.settings'::regclass)"
    )
    return count


async def test_a_pause_whose_time_is_over_ends_by_itself(house: House) -> None:
    """By the database's clock; nobody has to do anything, and it is nowhere shown any more."""
    await house.queue(2)
    await _pause(house, for_s=1.5)
    async with house.working(house.engine()):
        assert [one.name for one in await read_pauses(house.database)] == ["email"]
        await house.until("(SELECT count(*) > 0 FROM email_queue WHERE status = 'sent')")
        await house.until("(SELECT count(*) = 0 FROM email_queue WHERE status = 'pending')")
        assert await house.database.fetchval(
            "SELECT min(sent_at) >= (SELECT until FROM postroom.pauses) FROM email_queue"
        )
    assert await read_pauses(house.database) == []
    assert await resume(house.database, "queue", "email", by=ADA) is None


async def test_a_pass_over_a_paused_queue_ends_and_says_so(house: House) -> None:
    """As `worker --drain`, the scheduled job and HTTP run it."""
    await house.queue(3)
    await _pause(house)
    ended = await house.engine().run_pass(until_nothing_due=True)
    assert (ended.done, ended.failed, ended.put_back) == (0, 0, 0)
    assert ended.paused is not None
    assert ended.paused.startswith("queue email is paused by ada@house since ")
    assert ended.paused.endswith("because: the provider moves")


async def test_a_paused_transport_is_passed_over(house: House) -> None:
    """Mail goes by the next one, and by the first again after a resume."""
    first, second = Recorder("first"), Recorder("second")
    async with house.working(_over(house, first, second)):
        await _pause(house, "transport", "first")
        await asyncio.sleep(1.2)  # in force within a second
        await house.queue(3)
        await house.until_settled()
        assert (len(first.handed_over), len(second.handed_over)) == (0, 3)
        await _resume(house, "transport", "first")
        await asyncio.sleep(1.2)
        await house.queue(3)
        await house.until_settled()
    assert (len(first.handed_over), len(second.handed_over)) == (3, 3)


async def test_where_all_transports_are_paused_mail_waits_and_no_attempt_is_counted(house: House) -> None:
    """Also what was claimed already: it goes back as for a transport that is down."""
    one = Recorder("one")
    await _pause(house, "transport", "one")
    await house.queue(4)
    async with house.working(_over(house, one)):
        await house.until("(SELECT count(*) = 1 FROM postroom.workers)")
        await asyncio.sleep(1.5)
        assert one.handed_over == []
        assert {(row["status"], row["attempts"]) for row in await house.rows()} == {("pending", 0)}
        await _resume(house, "transport", "one")
        await house.until_settled()
    assert len(one.handed_over) == 4


async def test_a_transport_that_is_down_and_paused_waits_for_both(house: House) -> None:
    """The one says nothing of the other."""
    one = Recorder("one")
    failover = Failover([one])
    held = Delivery(EmailStore(house.database), failover, pauses := Pauses(house.database))
    await _pause(house, "transport", "one", for_s=60)
    await pauses.look(older_than_s=0)
    paused = held.paused()
    assert paused is not None
    assert 50 < paused.left_s <= 60
    assert [each.said for each in failover.pauses()] == ["paused by ada@house because: the provider moves"]
    email = OutgoingEmail(uuid4(), "a@example.com", "s", "h", "b@example.com")
    with pytest.raises(TransportDown, match="one is paused by ada@house") as raised:
        await failover.send(email, _never)
    assert raised.value.retry_after_s is not None


async def test_an_insert_and_a_call_that_came_before_the_pause_do_not_keep_a_worker_running(
    house: House,
) -> None:
    """The call of a NOTIFY is taken once: else the whole process would stand still in a loop."""
    engine = house.engine()
    await _pause(house)
    engine._woken.set()
    async with house.working(engine):
        await house.until("(SELECT count(*) = 1 FROM postroom.workers)")
        await asyncio.sleep(0.1)
        assert not engine._woken.is_set()


async def _never() -> None:
    raise AssertionError("it was begun")


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("smtp://Relay.example.com:25", "smtp://relay.example.com:25"),
        ("smtp://user:pass@relay.example.com:25", "smtp://relay.example.com:25"),
        ("smtp:", "smtp://relay.example.com:25"),
        ("resend", "resend"),
        ("maildir:/var/mail/b", "maildir:/var/mail/b"),
        ("maildir:/var/mail", None),
        ("", None),
        ("other", None),
    ],
)
def test_a_transport_is_found_by_its_name_or_by_how_it_alone_begins(said: str, found: str | None) -> None:
    """Whoever writes the whole address of POSTROOM_TRANSPORT means the same."""
    known = [
        "smtp://relay.example.com:25",
        "resend",
        "resend+http://127.0.0.1:9",
        "maildir:/var/mail/a",
        "maildir:/var/mail/b",
    ]
    assert find_transport(known, said) == found


async def test_a_worker_that_dies_before_a_pause_is_blamed_after_it_and_for_no_more(house: House) -> None:
    """Its leases end meanwhile, and nobody takes them; then what had begun counts, and nothing else."""
    await house.set("lease", "1s")
    await house.queue(10)
    dead = house.engine()
    await dead._register(patient=False)
    claims = await dead.work.claim(dead.id, 10, None, 0)
    for claim in claims[:2]:
        await dead._starts.begin(claim)
    await _pause(house)
    async with house.working(house.engine()):
        await house.until("(SELECT bool_and(due_at < clock_timestamp()) FROM email_queue)")
        await asyncio.sleep(1.2)  # longer than a worker's poll
        assert house.recorder.handed_over == []
        assert {(row["status"], row["lease_no"]) for row in await house.rows()} == {("processing", 1)}
        await _resume(house)
        await house.until_settled()
    counted = {row["id"]: (row["status"], row["attempts"], row["error_count"]) for row in await house.rows()}
    begun = {claim.id for claim in claims[:2]}
    assert {counted[row_id] for row_id in begun} == {("sent", 2, 1)}
    assert {counted[row_id] for row_id in counted.keys() - begun} == {("sent", 1, 0)}
