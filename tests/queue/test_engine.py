"""The engine's promises: claim, attempt, settle, whatever happens in between."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from postroom.email.message import OutgoingEmail
from postroom.errors import PermanentFailure, TemporaryFailure, TransportDown, UncertainOutcome
from postroom.queue import engine as engine_module
from postroom.queue.claim import Claim
from tests.queue.conftest import House, Recorder


async def test_every_queued_mail_is_handed_over_once_and_settled(house: House) -> None:
    """Two workers share 300 mails; each goes out once and its row says so."""
    ids = await house.queue(300)
    async with house.working(house.engine(), house.engine()):
        await house.until_settled()
    assert Counter(house.recorder.handed_over) == Counter(ids)
    for row in await house.rows():
        assert (row["status"], row["attempts"], row["error_count"]) == ("sent", 1, 0)
        assert row["sent_at"] is not None
        assert row["from_email"] == "shop@example.com"


async def test_an_insert_wakes_a_sleeping_worker(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """With polling all but switched off, NOTIFY alone brings the mail out."""
    monkeypatch.setattr(engine_module, "POLL_S_MAX", 60.0)
    async with house.working(house.engine()):
        await house.until("EXISTS (SELECT FROM postroom.workers WHERE asleep)")
        await asyncio.sleep(0.3)  # past the first looks after lying down
        await house.queue(1)
        await house.until_settled(limit_s=10)
    assert len(house.recorder.handed_over) == 1


async def test_a_mail_that_is_due_later_goes_out_then(house: House) -> None:
    """send_at holds a mail back, by the database's clock, and no longer."""
    await house.database.execute(
        "SELECT enqueue_email('a@example.com', 's', 'h', send_at => clock_timestamp() + interval '400 ms')"
    )
    async with house.working(house.engine()):
        await house.until_settled()
    early = await house.database.fetchval("SELECT count(*) FROM email_queue WHERE sent_at < next_retry_at")
    assert early == 0


async def test_a_temporary_failure_is_repeated_by_the_schedule_and_then_a_dead_letter(house: House) -> None:
    """The schedule's delays hold, attempts and errors are counted, the last failure makes a dead letter."""
    await house.set("email.backoff", "20ms,40ms")

    async def refuse(_: OutgoingEmail) -> str:
        raise TemporaryFailure("450 4.2.1 try later", code=450)

    house.recorder.behave = refuse
    await house.queue(1, max_attempts=3)
    async with house.working(house.engine()):
        await house.until_settled()
    (row,) = await house.rows()
    assert (row["status"], row["attempts"], row["error_count"]) == ("dead_letter", 3, 3)
    assert (row["last_error"], row["dead_reason"]) == ("450 4.2.1 try later", "exhausted")
    assert len(house.recorder.handed_over) == 3


async def test_a_permanent_failure_is_a_dead_letter_at_once(house: House) -> None:
    """No second try, and the others go on."""

    async def refuse_first(email: OutgoingEmail) -> str:
        if email.to_email == "u1@example.com":
            raise PermanentFailure("550 5.1.1 no such user", code=550)
        return "250 ok"

    house.recorder.behave = refuse_first
    await house.queue(5)
    async with house.working(house.engine()):
        await house.until_settled()
    assert Counter(row["status"] for row in await house.rows()) == {"dead_letter": 1, "sent": 4}


async def test_an_uncertain_outcome_is_parked_where_the_setting_says_so(house: House) -> None:
    """email.on_uncertain = park: it may have gone out, so a person decides."""
    await house.set("email.on_uncertain", "park")

    async def lose_the_answer(_: OutgoingEmail) -> str:
        raise UncertainOutcome("the connection closed after the final dot")

    house.recorder.behave = lose_the_answer
    await house.queue(1)
    async with house.working(house.engine()):
        await house.until_settled()
    (row,) = await house.rows()
    assert (row["status"], row["dead_reason"]) == ("dead_letter", "uncertain")
    assert row["last_error"].startswith("uncertain:")


async def test_a_transport_that_is_down_costs_no_attempt(house: House) -> None:
    """It pauses, tries again with one mail, and then everything goes out at the first attempt."""
    tries = 0

    async def down_twice(_: OutgoingEmail) -> str:
        nonlocal tries
        tries += 1
        if tries <= 2:
            raise TransportDown("connection refused")
        return "250 ok"

    house.recorder.behave = down_twice
    await house.queue(60)
    async with house.working(house.engine(concurrency=1)):
        await house.until("EXISTS (SELECT FROM postroom.transports WHERE paused_until IS NOT NULL)")
        await house.until_settled()
    rows = await house.rows()
    assert {(row["status"], row["attempts"], row["error_count"]) for row in rows} == {("sent", 1, 0)}
    assert await house.database.fetchval("SELECT paused_until IS NULL FROM postroom.transports")


async def test_calls_do_not_keep_a_worker_busy_whose_claims_are_refused(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each insert wakes whoever sleeps; who waits before he tries again is not asleep."""
    engine = house.engine()
    tries = 0

    async def refuse(*_: object) -> list[Claim[OutgoingEmail]]:
        nonlocal tries
        tries += 1
        raise ValueError("a fault of ours")

    monkeypatch.setattr(engine.work, "claim", refuse)
    async with house.working(engine):
        while tries < 3:
            engine._woken.set()
            await asyncio.sleep(0.01)
        began = asyncio.get_running_loop().time()
        for _ in range(100):
            engine._woken.set()
            await asyncio.sleep(0.001)
        assert tries <= 4 + (asyncio.get_running_loop().time() - began) / 0.4


async def test_a_heartbeat_that_the_database_refuses_is_in_the_log(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Others take the worker for dead; and it goes on beating when that is over."""
    monkeypatch.setattr(engine_module, "HEARTBEAT_S", 0.05)
    engine = house.engine()
    async with house.working(engine):
        await house.until("(SELECT count(*) = 1 FROM postroom.workers)")
        await house.database.execute(
            """
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no room'; END $$;
            CREATE TRIGGER refuse BEFORE UPDATE ON postroom.workers FOR EACH ROW EXECUTE FUNCTION refuse();
            """
        )
        said = ""
        async with asyncio.timeout(20):
            while '"tend.failed"' not in said:
                await asyncio.sleep(0.05)
                said += capsys.readouterr().err
        assert "RaiseError: no room" in said
        await house.database.execute("DROP TRIGGER refuse ON postroom.workers")
        await house.database.execute("UPDATE postroom.workers SET seen_at = '2020-01-01'")
        await house.until("(SELECT seen_at > '2020-01-01' FROM postroom.workers)")


async def test_what_an_attempt_waited_for_may_be_cancelled(house: House) -> None:
    """A CancelledError that comes from within ends that attempt, and no attempter."""

    async def be_cancelled(_: OutgoingEmail) -> str:
        if len(house.recorder.handed_over) <= 3:
            raise asyncio.CancelledError
        return "250 ok"

    house.recorder.behave = be_cancelled
    await house.set("email.backoff", "20ms")
    await house.queue(10)
    async with house.working(house.engine(concurrency=2)):
        await house.until_settled()
    assert {row["status"] for row in await house.rows()} == {"sent"}


async def test_a_worker_that_stops_gives_back_what_it_had_not_begun(house: House) -> None:
    """Drain: the attempts in flight end and are settled, the buffer goes back as it was."""
    let_go = asyncio.Event()

    async def wait(_: OutgoingEmail) -> str:
        await let_go.wait()
        return "250 ok"

    house.recorder.behave = wait
    await house.queue(30)
    async with house.working(house.engine(concurrency=2)) as stop:
        await house.until("(SELECT count(*) > 2 FROM email_queue WHERE status = 'processing')")
        while len(house.recorder.handed_over) < 2:
            await asyncio.sleep(0.01)
        stop.set()
        await house.until("(SELECT count(*) = 28 FROM email_queue WHERE status = 'pending')")
        let_go.set()
    found = Counter((row["status"], row["attempts"], row["leased_by"]) for row in await house.rows())
    assert found == {("sent", 1, None): 2, ("pending", 0, None): 28}
    assert await house.database.fetchval("SELECT count(*) FROM postroom.workers") == 0


async def test_a_worker_that_dies_is_blamed_for_what_it_had_begun_and_for_nothing_else(house: House) -> None:
    """40 claimed, 3 begun: three errors are counted; all 40 go out once more."""
    await house.set("lease", "1s")
    await house.queue(40)
    dead = house.engine()
    await dead._register(patient=False)
    claims = await dead.work.claim(dead.id, 40, None, 0)
    for claim in claims[:3]:
        await dead._starts.begin(claim)
    async with house.working(house.engine()):
        await house.until_settled()
    rows = await house.rows()
    blamed = [row for row in rows if row["error_count"]]
    assert {row["id"] for row in blamed} == {claim.id for claim in claims[:3]}
    assert {(row["status"], row["attempts"], row["error_count"]) for row in blamed} == {("sent", 2, 1)}
    assert {(row["status"], row["attempts"]) for row in rows if not row["error_count"]} == {("sent", 1)}


async def test_a_long_attempt_keeps_its_lease(house: House) -> None:
    """An attempt of three leases' length is not taken over by the worker beside it."""
    await house.set("lease", "1s")

    async def take_long(_: OutgoingEmail) -> str:
        await asyncio.sleep(3)
        return "250 ok"

    house.recorder.behave = take_long
    await house.queue(3)
    async with house.working(house.engine(), house.engine()):
        await house.until_settled()
    assert len(house.recorder.handed_over) == 3
    assert {(row["attempts"], row["error_count"]) for row in await house.rows()} == {(1, 0)}


async def test_an_attempt_that_never_ends_is_given_up_as_uncertain(house: House) -> None:
    """The deadline ends it; since it had started, nobody knows what became of it."""
    await house.set("email.on_uncertain", "park")

    async def hang(_: OutgoingEmail) -> str:
        await asyncio.Event().wait()
        return ""

    house.recorder.behave = hang
    await house.queue(1)
    async with house.working(house.engine(attempt_deadline_s=0.3)):
        await house.until_settled()
    (row,) = await house.rows()
    assert (row["status"], row["dead_reason"], row["attempts"]) == ("dead_letter", "uncertain", 1)


async def test_a_mail_that_waits_for_a_limit_uses_up_no_attempt(house: House) -> None:
    """Seven mails to one address at 3 a second, and everybody else's pass them."""
    await house.set("email.limit.recipient", "3/1s")
    await house.queue(7, to="hot@example.com")
    await house.queue(5)
    async with house.working(house.engine()):
        await house.until("(SELECT count(*) >= 8 FROM email_queue WHERE status = 'sent')")
        await house.until_settled()
    rows = await house.rows()
    assert {(row["status"], row["attempts"], row["error_count"]) for row in rows} == {("sent", 1, 0)}
    assert len(house.recorder.handed_over) == 12


async def test_the_global_limit_keeps_the_order_of_the_queue(house: House) -> None:
    """What waits for the global limit is not written to, and a mail of a higher priority goes first."""
    await house.set("email.limit.global", "4/1s")
    await house.queue(10)
    async with house.working(house.engine()):
        await house.until("(SELECT count(*) = 4 FROM email_queue WHERE status = 'sent')")
        urgent = await house.database.fetchval(
            "SELECT enqueue_email('urgent@example.com', 's', 'h', priority => 9)"
        )
        await house.until_settled()
    assert urgent in house.recorder.handed_over[4:8]
    assert await house.database.fetchval("SELECT max(lease_no) FROM email_queue") <= 2


async def test_a_pass_takes_what_is_due_and_ends(house: House) -> None:
    """One pass: what fails and is due again a moment later is left to the next."""
    await house.set("email.backoff", "1ms")

    async def refuse_odd(email: OutgoingEmail) -> str:
        if email.to_email in ("u1@example.com", "u3@example.com"):
            raise TemporaryFailure("450 later")
        return "250 ok"

    house.recorder.behave = refuse_odd
    await house.queue(5)
    result = await house.engine().run_pass()
    assert (result.done, result.failed, result.put_back) == (3, 2, 0)
    assert len(result.errors) == 2


async def test_a_mail_of_which_it_is_known_that_it_went_out_is_never_sent_again(house: House) -> None:
    """A user's trigger refuses 'sent' for one row: the outcome is kept beside it until it can be written."""
    await house.set("lease", "1s")
    await house.database.execute(
        """
        CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.status = 'sent' AND NEW.to_email = 'u2@example.com' THEN
                RAISE EXCEPTION 'not this one';
            END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER refuse BEFORE UPDATE ON email_queue FOR EACH ROW EXECUTE FUNCTION refuse();
        """
    )
    await house.queue(5)
    async with house.working(house.engine()):
        await house.until("(SELECT count(*) = 4 FROM email_queue WHERE status = 'sent')")
        await asyncio.sleep(2.5)  # two leases
        assert len(house.recorder.handed_over) == 5
        await house.database.execute("DROP TRIGGER refuse ON email_queue")
        await house.database.execute("UPDATE postroom.refused_rows SET next_try_at = clock_timestamp()")
        await house.until_settled()
    assert len(house.recorder.handed_over) == 5


async def test_two_recorders_of_the_same_database_never_share_a_mail(house: House) -> None:
    """Workers with transports of their own: each mail is in one ledger only."""
    other = Recorder("other")
    ids = await house.queue(200)
    async with house.working(house.engine(), house.engine(other)):
        await house.until_settled()
    assert sorted(house.recorder.handed_over + other.handed_over) == sorted(ids)
