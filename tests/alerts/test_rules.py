"""Each rule, provoked for real: it arrives by SMTP and by webhook, and is over when the cause is gone."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from datetime import timedelta
from functools import partial
from pathlib import Path

import psycopg
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import Envelope

from postroom import Room
from postroom.alerts import rules
from postroom.alerts.deputy import stand_in
from postroom.database import embedded
from postroom.database.audit import Actor
from postroom.database.migrate import migrate
from postroom.jobs import jobs_of, scheduler_of
from postroom.queue.dead_letters import decide
from postroom.queue.pauses import pause, resume
from postroom.queues import EMAILS
from postroom.schedule.scheduler import Scheduler
from postroom.schedule.store import CronStore
from tests.alerts.conftest import Watched, embedded_house, free_port, open_hook, open_mailbox, watched
from tests.journey.programs import Programs
from tests.support.pages import pages_read
from tests.support.waiting import until


class Picky:
    """An SMTP server's own opinion of recipients."""

    def __init__(self, answer: str) -> None:
        self.answer = answer

    async def handle_RCPT(  # noqa: N802
        self, _server: object, _session: object, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        """See aiosmtpd."""
        if self.answer.startswith("2"):
            envelope.rcpt_tos.append(address)
        return self.answer.replace("ADDRESS", address)


@pytest.fixture
def picky() -> Picky:
    """It refuses everybody, for good."""
    return Picky("550 5.1.1 <ADDRESS> is unknown here")


@pytest.fixture
def picky_url(picky: Picky) -> object:
    """The server's address."""
    controller = Controller(picky, hostname="127.0.0.1", port=free_port(), ready_timeout=30)
    controller.start()
    yield f"smtp://127.0.0.1:{controller.port}?starttls=never"
    controller.stop()


async def told(house: Watched, kind: str, rule: str, subject: str) -> str:
    """One round; both targets took this and nothing else. Returns the mail's text."""
    before = len(house.hook.told), len(house.mailbox.mails)
    await house.look()
    assert house.hook.told[before[0] :] == [(f"alert.{kind}", rule, subject)]
    (mail,) = house.mailbox.mails[before[1] :]
    data = house.hook.documents[-1]["data"]
    assert data["summary"] in f"{mail['Subject']}"
    assert mail["To"] == "ops@example.com"
    body = mail.get_content()
    assert isinstance(body, str)
    if kind != "over":
        assert f"Command: {data['command']}" in body
    assert "Dashboard: https://post.example/dashboard" in body
    return body


async def test_a_dead_letter_is_told_with_its_reason_and_the_command_that_retries(
    database_url: str, tmp_path: Path, picky_url: str
) -> None:
    """Three of one reason are one message; it names no recipient, and is over when they are retried."""
    async with watched(database_url, tmp_path, transport=picky_url, dead_letter=1) as house:
        await house.send(3)
        assert (await house.work()).failed == 3
        body = await told(house, "fired", "dead_letter", "email/permanent")
        assert "3 dead letters in queue email in the last day, reason permanent" in body
        assert "550 5.1.1 <…@example.net> is unknown here" in body
        assert "postroom dead-letters retry --all --reason permanent" in body
        assert house.mailbox.mails[-1]["Subject"].startswith("postroom: 3 dead letters in queue email")
        await house.look()
        assert len(house.hook.told) == 1
        ids = [row["id"] for row in await house.room.database.fetch("SELECT id FROM email_queue")]
        await decide(house.room.database, [EMAILS], "retry", ids, by=Actor("ada@house", "cli"))
        body = await told(house, "over", "dead_letter", "email/permanent")
        assert "This is over; it lasted " in body


async def test_what_is_due_for_too_long_is_told(database_url: str, tmp_path: Path) -> None:
    """No worker takes it; it is over when one has."""
    async with watched(database_url, tmp_path, oldest_due="0s") as house:
        await house.send()
        assert "The oldest due e-mail has been due for " in await told(house, "fired", "oldest_due", "email")
        await house.work()
        await told(house, "over", "oldest_due", "email")


async def test_what_waits_for_the_global_limit_is_no_fault(database_url: str, tmp_path: Path) -> None:
    """The line behind the limit is due, and not told."""
    async with watched(database_url, tmp_path, oldest_due="0s") as house:
        await house.room.database.execute("SELECT postroom.set_setting('email.limit.global', '1/1h')")
        await house.send(3)
        assert (await house.work()).done == 1
        assert await house.look() == "nothing found, 0 messages sent"


async def test_a_rate_of_failures_is_told(
    database_url: str, tmp_path: Path, picky: Picky, picky_url: str
) -> None:
    """Twenty attempts that fail; it is over when most succeed."""
    picky.answer = "451 4.3.0 later"
    async with watched(database_url, tmp_path, transport=picky_url, failure_rate="50%") as house:
        await house.room.database.execute("SELECT postroom.set_setting('email.limit.global', 'off')")
        await house.send(19)
        await house.work()
        assert await house.look() == "nothing found, 0 messages sent"  # of so few no rate is told
        await house.send(1)
        await house.work()
        body = await told(house, "fired", "failure_rate", "email")
        assert "20 of 20 attempts of queue email failed in the last 10 min" in body
        picky.answer = "250 ok"
        await house.room.database.execute("DELETE FROM email_queue")
        await house.send(30)
        await house.work()
        await told(house, "over", "failure_rate", "email")


async def test_a_transport_that_is_down_is_told(database_url: str, tmp_path: Path) -> None:
    """Nobody listens there; it is over when somebody does and took a mail."""
    port = free_port()
    transport = f"smtp://127.0.0.1:{port}?starttls=never"
    async with watched(database_url, tmp_path, transport=transport, transport_paused="0s") as house:
        await house.send()
        await house.work()
        name = house.room.delivery.transport.transports[0].name
        body = await told(house, "fired", "transport_paused", name)
        assert f"Transport {name} is down, after 1 failure in a row: " in body
        server = Controller(Picky("250 ok"), hostname="127.0.0.1", port=port, ready_timeout=30)
        server.start()
        try:

            async def is_sent() -> bool:
                return (await house.work()).done == 1

            await until(is_sent, look_s=0.3)
            paused = "SELECT failures FROM postroom.transports"

            async def is_up() -> bool:
                return bool(await house.room.database.fetchval(paused) == 0)

            await until(is_up)
        finally:
            server.stop()
        await told(house, "over", "transport_paused", name)


async def test_what_a_person_has_paused_is_told_as_that_and_not_as_what_is_late(
    database_url: str, tmp_path: Path
) -> None:
    """By whom and why, with the command that ends it; over when it is resumed."""
    ada = Actor("ada@house", "cli")
    async with watched(database_url, tmp_path, oldest_due="0s", paused="0s") as house:
        database = house.room.database
        await house.send()
        why = "bob@example.com asked"
        await pause(database, "queue", "email", by=ada, reason=why, for_s=None)
        body = await told(house, "fired", "paused", "emails")
        assert "queue email is paused by ada@house since " in body.lower()
        assert "because: …@example.com asked" in body
        assert "Command: postroom resume emails" in body
        await resume(database, "queue", "email", by=ada)
        await pause(
            database, "transport", name := house.room.transport_names[0], by=ada, reason=None, for_s=60
        )
        await house.look()  # the one is over, the other begins
        found = {("alert.over", "paused", "emails"), ("alert.fired", "paused", f"transport {name}")}
        assert set(house.hook.told[1:]) == found
        await resume(database, "transport", name, by=ada)
        await house.look()
        assert ("alert.fired", "oldest_due", "email") in house.hook.told


async def test_what_is_late_since_no_transport_takes_mail_says_so(database_url: str, tmp_path: Path) -> None:
    """One of them is down, by nobody's word: whoever is called hears of each of them why."""
    transport = f"maildir:{tmp_path}/a maildir:{tmp_path}/b"
    async with watched(database_url, tmp_path, transport=transport, oldest_due="0s") as house:
        database = house.room.database
        await house.send()
        first, second = house.room.transport_names
        ada = Actor("ada@house", "cli")
        await pause(database, "transport", first, by=ada, reason="it moves", for_s=None)
        await database.execute(
            """
            INSERT INTO postroom.transports (name, paused_until, reason, failures)
            VALUES ($1, now() + interval '1 minute', 'No space left for ada@example.com', 3)
            """,
            second,
        )
        body = await told(house, "fired", "oldest_due", "email")
        assert f"no transport takes mail: {first} is paused by ada@house because: it moves; " in body
        assert f"{second} is paused because: No space left for …@example.com" in body


async def test_that_no_worker_lives_is_told(database_url: str, tmp_path: Path, programs: Programs) -> None:
    """A worker process is killed; it is over when another one works."""
    async with watched(database_url, tmp_path, no_worker="0s") as house:
        await house.send()
        alive = (
            "SELECT pid FROM postroom.workers WHERE seen_at > clock_timestamp() - interval '15 s' AND claims"
        )

        async def is_alive() -> bool:
            return await house.room.database.fetchval(alive) is not None

        programs.start("worker", "--queues", "email")
        await until(is_alive)
        assert await house.look() == "nothing found, 0 messages sent"
        os.kill(await house.room.database.fetchval(alive), signal.SIGKILL)
        # As if it were the 15 s until it counts as dead.
        await house.room.database.execute("UPDATE postroom.workers SET seen_at = seen_at - interval '20 s'")
        body = await told(house, "fired", "no_worker", "email")
        assert "no worker of queue email is alive" in body.lower()
        with programs.running("worker", "--queues", "email"):
            await until(is_alive)
            await told(house, "over", "no_worker", "email")


async def test_that_no_scheduler_runs_is_told_by_whoever_stays(database_url: str, tmp_path: Path) -> None:
    """A process that stays runs the job, once; it is over when a scheduler has begun what is due."""
    async with watched(database_url, tmp_path, cron_silent="1m") as house:
        stop = asyncio.Event()
        await house.room.database.execute(
            "UPDATE postroom.jobs SET last_minute = clock_timestamp() - interval '10 minutes'"
        )
        deputies = [
            asyncio.create_task(stand_in(house.room, stop, look_s=0.05, silent_s=180)) for _ in range(3)
        ]
        await until(lambda: len(house.hook.told) > 0 and len(house.mailbox.mails) > 0)
        await asyncio.sleep(0.3)
        assert house.hook.told == [("alert.fired", "cron_silent", "")]
        assert "no scheduler begins what is due: " in house.mailbox.mails[0]["Subject"]
        stop.set()
        await asyncio.gather(*deputies)
        (run,) = await house.room.database.fetch("SELECT status, minute FROM postroom.job_runs")
        assert (run["status"], run["minute"]) == ("succeeded", None)

        scheduler = await scheduler_of(house.room)
        await scheduler.tick()
        await scheduler.settled()
        assert house.hook.told[1:] in ([("alert.over", "cron_silent", "")], [])
        await house.look()
        assert house.hook.told[1:] == [("alert.over", "cron_silent", "")]


async def test_a_scheduler_runs_the_job_each_minute(database_url: str, tmp_path: Path) -> None:
    """As one of postroom's own, on by default."""
    async with watched(database_url, tmp_path, oldest_due="0s") as house:
        await house.send()
        own = [job for job in jobs_of(house.room) if job.name == "alerts"]
        scheduler = Scheduler(CronStore(house.room.database), own, lambda _: never())
        now = await house.now()
        for minutes in (1, 2):
            await scheduler.tick(now + timedelta(minutes=minutes))
            await scheduler.settled()
        runs = await house.room.database.fetch(
            "SELECT status, return_message FROM postroom.job_runs WHERE jobid = 1003 ORDER BY runid"
        )
        assert [tuple(run) for run in runs] == [
            ("succeeded", "oldest_due found, 2 messages sent"),
            ("succeeded", "oldest_due found, 0 messages sent"),
        ]


async def never() -> str:
    """No job of these tests is a person's own."""
    raise AssertionError("it is called")


async def test_a_held_snapshot_is_told_with_its_holder(database_url: str, tmp_path: Path) -> None:
    """And with the statement that ends it; it is over when the transaction is."""
    async with watched(database_url, tmp_path, snapshot_held="0s") as house:
        with psycopg.connect(database_url, application_name="reports") as connection:
            connection.execute("SET default_transaction_isolation = 'repeatable read'")
            connection.commit()
            connection.execute("SELECT 'sk_live_of_somebody'")
            body = await told(house, "fired", "snapshot_held", "")
            assert "(postgres with reports), idle in transaction, SELECT, for " in body
            assert f"SELECT pg_terminate_backend({connection.info.backend_pid})" in body
            assert "sk_live" not in body
        await told(house, "over", "snapshot_held", "")


async def test_a_disk_that_fills_up_is_told(data_dir: Path) -> None:
    """The disk of the embedded database, as the system has it; over when it has enough."""
    with open_mailbox() as mailbox:
        async with embedded.running(data_dir) as url, open_hook() as hook:
            await migrate(url)
            async with embedded_house(data_dir, mailbox, hook, disk="99.999%") as house:
                body = await told(house, "fired", "disk", "")
                assert re.search(
                    r"The disk of the embedded database has [\d,]+\.\d GiB of [\d,]+\.\d left", body
                )
                assert "Command: postroom cleanup --dry-run" in body
                await house.look()
                assert len(hook.told) == 1
            async with embedded_house(data_dir, mailbox, hook, disk="0.001%") as house:
                assert "This is over; it lasted " in await told(house, "over", "disk", "")


async def test_another_servers_disk_is_not_ours_to_see(database_url: str, tmp_path: Path) -> None:
    """Nobody is told, whatever the threshold."""
    async with watched(database_url, tmp_path, disk="99.999%") as house:
        assert await house.look() == "nothing found, 0 messages sent"
        assert (house.hook.told, house.mailbox.mails) == ([], [])


async def test_the_share_of_failures_is_read_from_its_minutes_alone(
    database_url: str, tmp_path: Path
) -> None:
    """Each minute, whatever was counted in the month before."""
    async with Room(database_url=database_url, transport=f"maildir:{tmp_path}") as room:
        look = partial(rules.failure_rate, room, 0.5)
        before = await pages_read(room.database, look)
        await room.database.execute(
            """
            INSERT INTO postroom.processing_minutes
            SELECT
                date_trunc('minute', now()) - n * interval '1 minute', 'email', '', '', 'done', 'sent',
                1, '{1}', '{1}', '{1}'
            FROM generate_series(1, 40000) AS n
            """
        )
        await room.database.execute("ANALYZE")
        assert await pages_read(room.database, look) < before + 100
