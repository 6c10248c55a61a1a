"""One worker that is broken at one point, its rescuers, and what must have become of every row."""

from __future__ import annotations

import asyncio
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from textwrap import dedent
from typing import Any, Protocol
from uuid import UUID

from aiohttp import web

from tests.email.transports.servers.resend_api import KEY, ResendApi
from tests.email.transports.servers.scripted_smtp import CLOSE, Say, ScriptedSmtp
from tests.failpoints.hatchery import Program
from tests.failpoints.lanes import Bench, Lane, open_lane, until
from tests.failpoints.table import Case, Loss, Point
from tests.webhooks.workshop import EFFECTS, ON_EVENT

MAILS = 24
EVENTS = 10
SLOW_S = 2.2
"""An attempt that takes longer than half a lease, which must be extended."""

STOPPED = "evt_0"
"""The event that a handler wants never again."""

_MESSAGE_ID = re.compile(rb"Message-ID: ?<([0-9a-f-]{36})@")


class Ledger(Protocol):
    """What the other side has seen, whoever sent it."""

    @property
    def environment(self) -> dict[str, str]:
        """How the worker is told of it."""
        ...

    def copies(self) -> list[tuple[UUID, bytes]]:
        """Each mail that came whole."""
        ...

    async def caught_up(self) -> None:
        """Return once all that has reached it is noted."""
        ...


@dataclass
class SmtpLedger:
    """A scripted SMTP server."""

    smtp: ScriptedSmtp

    @property
    def environment(self) -> dict[str, str]:
        return {"POSTROOM_TRANSPORT": f"smtp://127.0.0.1:{self.smtp.port}"}

    def copies(self) -> list[tuple[UUID, bytes]]:
        return [(_id_of(content), content) for content in self.smtp.contents]

    async def caught_up(self) -> None:
        # Bytes of a process that stands still are in the kernel: whoever asks now is answered after them.
        for _ in range(5):
            with suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.smtp.port)
                writer.write(b"NOOP\r\nQUIT\r\n")
                await reader.read()
                writer.close()


@dataclass
class ResendLedger:
    """A server that speaks Resend's API: a request is a copy, and the key makes one mail of them."""

    api: ResendApi

    @property
    def environment(self) -> dict[str, str]:
        return {"POSTROOM_TRANSPORT": f"resend+http://{KEY}@127.0.0.1:{self.api.port}"}

    def copies(self) -> list[tuple[UUID, bytes]]:
        return [(UUID(headers["Idempotency-Key"]), str(body).encode()) for headers, body in self.api.requests]

    async def caught_up(self) -> None:
        await asyncio.sleep(0.1)


@dataclass
class MaildirLedger:
    """A folder; a mail that is filed twice is one file."""

    lane: Lane

    @property
    def environment(self) -> dict[str, str]:
        return {"POSTROOM_TRANSPORT": f"maildir:{self.lane.folder / 'mail'}"}

    def copies(self) -> list[tuple[UUID, bytes]]:
        files = (self.lane.folder / "mail" / "new").iterdir()
        return [(_id_of(content), content) for content in (each.read_bytes() for each in files)]

    async def caught_up(self) -> None:
        return None


def _id_of(content: bytes) -> UUID:
    match = _MESSAGE_ID.search(content)
    assert match is not None, content[:500]
    return UUID(match[1].decode())


FILES = '[{"filename": "a.pdf", "content": "JVBERg=="}]'


@dataclass
class Emails:
    """A queue of mails, and where they go."""

    lane: Lane
    point: Point
    ledger: Ledger
    table = "email_queue"
    arguments = ("worker", "--queues", "email")
    _before: Counter[UUID] = field(default_factory=Counter)

    @property
    def environment(self) -> dict[str, str]:
        return {**self.ledger.environment, "POSTROOM_FROM": "shop@example.com"}

    async def queue(self, count: int = MAILS) -> None:
        """Fill the queue."""
        await self.lane.db.execute(
            """
            INSERT INTO email_queue (to_email, subject, html, attachments)
            SELECT 'u' || n || '@example.com', 'subject ' || n, '<p>Hi</p>', $2::text::jsonb
            FROM generate_series(1, $1) AS n
            """,
            count,
            FILES if self.point.around == "files" else None,
        )

    async def look(self) -> None:
        """Note what the other side has when the worker has been broken."""
        await self.ledger.caught_up()
        self._before = Counter(email_id for email_id, _ in self.ledger.copies())

    async def check(self, blamed: set[UUID], free: set[UUID]) -> None:
        """Compare rows and ledger with what the fault may cost; a row that is `free` may be blamed or not."""
        rows = {row["id"]: row for row in await self.lane.db.fetch("SELECT * FROM email_queue")}
        copies = self.ledger.copies()
        count = Counter(email_id for email_id, _ in copies)
        assert set(count) == set(rows), "a mail is lost, or one came from nowhere"
        assert len(set(copies)) == len(rows), "a mail that went out twice was another one"
        assert {row["status"] for row in rows.values()} == {"sent"}
        assert {row["attempts"] - row["error_count"] for row in rows.values()} == {1}
        failed = {email_id for email_id, row in rows.items() if row["error_count"]}
        doubled = {email_id for email_id, copies in count.items() if copies > 1}
        assert max(row["error_count"] for row in rows.values()) <= 1
        assert max(count.values()) <= 2
        fault = self.lane.case.fault
        if fault in ("kill", "hang"):
            assert failed - free == blamed - free, (failed, blamed)
            self._check_doubled(doubled, blamed)
        else:
            costs = self.point if fault == "raise" else fault
            assert isinstance(costs, Point | Loss)
            assert (len(failed), len(doubled)) == (costs.fails, costs.doubles)

    def _check_doubled(self, doubled: set[UUID], blamed: set[UUID]) -> None:
        taken = {email_id for email_id in self._before if email_id in blamed}
        if isinstance(self.ledger, MaildirLedger):
            taken = set()
        elif isinstance(self.ledger, ResendLedger):
            # Who wakes up posts what it had begun: the key makes one mail of both.
            assert taken <= doubled <= blamed
            assert len(self.ledger.api.sent) == MAILS
            return
        assert doubled == taken, (doubled, taken)


@asynccontextmanager
async def open_emails(lane: Lane, point: Point) -> AsyncIterator[Emails]:
    """A queue of mails whose way out is the one that comes by the point."""
    async with AsyncExitStack() as stack:
        ledger: Ledger
        if point.around == "maildir":
            ledger = MaildirLedger(lane)
        elif point.around == "resend":
            api = ResendApi()
            await api.open()
            stack.push_async_callback(api.close)
            ledger = ResendLedger(api)
        else:
            smtp = ScriptedSmtp()
            await smtp.open()
            stack.push_async_callback(smtp.close)
            ledger = SmtpLedger(smtp)
            _script(smtp, lane, point)
        emails = Emails(lane, point, ledger)
        yield emails


def _script(smtp: ScriptedSmtp, lane: Lane, point: Point) -> None:
    if point.around == "slow":
        smtp.on("CONTENT", *[Say("250 2.0.0 taken", delay_s=SLOW_S)] * 4)
    elif point.around == "down":
        smtp.on("GREETING", *[Say("421 4.3.2 busy", close=True)] * 6)
    fault = lane.case.fault
    if isinstance(fault, Loss) and fault.statement.startswith("smtp:"):
        smtp.on(fault.statement.removeprefix("smtp:"), CLOSE)


SHOP = """
    from postroom import PermanentFailure, Room
    room = Room()

    @room.on("stripe", name="async")
    async def write(event, db):
        await db.execute("INSERT INTO effects VALUES ('async', $1)", event.event_id)

    @room.on("stripe", name="plain")
    def write_plain(event, db):
        db.execute("INSERT INTO effects VALUES ('plain', %s)", (event.event_id,))

    @room.on("stripe", "checkout.stop", name="stopper")
    async def stop(event, db):
        raise PermanentFailure("never again")

    @room.on("stripe", "checkout.slow", name="sleeper")
    async def sleep(event, db):
        import asyncio
        await asyncio.sleep(2.2)
"""
SOURCE = """
    [webhooks.stripe]
    secrets = ["whsec_x"]
    [[webhooks.stripe.handlers]]
    name = "url"
    url = "http://127.0.0.1:{port}/"
    [[webhooks.stripe.handlers]]
    name = "sql"
    sql = "public.on_event"
"""
SOURCE_OF_STOP = """
    [webhooks.stripe]
    secrets = ["whsec_x"]
    [[webhooks.stripe.handlers]]
    name = "sql"
    sql = "public.on_event"
"""


@dataclass
class Events:
    """A queue of events, and the handlers that want them."""

    lane: Lane
    point: Point
    posted: list[str]
    table = "webhook_retry_queue"
    arguments = ("worker", "--queues", "webhooks", "--app", "shop:room")

    @property
    def environment(self) -> dict[str, str]:
        return {}

    async def queue(self) -> None:
        """Fill the queue."""
        await self.lane.db.execute(
            """
            INSERT INTO webhook_retry_queue (webhook_type, webhook_event_id, payload)
            SELECT
                'stripe', 'evt_' || n,
                jsonb_build_object('type', CASE WHEN n <= $2 THEN 'checkout.slow' ELSE 'checkout.done' END)
            FROM generate_series(1, $1) AS n
            """,
            EVENTS,
            4 if self.point.around == "slow" else 0,
        )
        await self.lane.db.execute(
            """
            INSERT INTO webhook_retry_queue (webhook_type, webhook_event_id, payload)
            VALUES ('stripe', $1, '{"type": "checkout.stop"}')
            """,
            STOPPED,
        )

    async def look(self) -> None:
        """Effects need no look: once is once."""

    async def check(self, blamed: set[UUID], free: set[UUID]) -> None:
        """Each effect once, and each attempt counted as it ended."""
        rows = await self.lane.db.fetch("SELECT * FROM webhook_retry_queue")
        ids = {row["webhook_event_id"] for row in rows}
        assert len(ids) == len(rows) == EVENTS + 1
        effects = await self.lane.db.fetch("SELECT handler, event_id FROM effects")
        wanted = Counter((handler, event) for handler in ("async", "plain", "sql") for event in ids)
        assert Counter((row["handler"], row["event_id"]) for row in effects) == wanted
        failed = set()
        for row in rows:
            is_stopped = row["webhook_event_id"] == STOPPED
            assert row["status"] == ("dead_letter" if is_stopped else "processed")
            errors = row["error_count"] - is_stopped
            assert errors in (0, 1)
            assert row["attempts"] == errors + 1
            if errors:
                failed.add(row["id"])
        self._check_posted(rows, failed | blamed)
        fault = self.lane.case.fault
        if fault in ("kill", "hang"):
            assert failed - free == blamed - free, (failed, blamed)
        else:
            costs = self.point if fault == "raise" else fault
            assert isinstance(costs, Point | Loss)
            assert len(failed) == costs.fails

    def _check_posted(self, rows: list[Any], broken: set[UUID]) -> None:
        if self.point.around == "stop":
            return
        count = Counter(UUID(event_id) for event_id in self.posted)
        assert set(count) == {row["id"] for row in rows}
        assert {event_id for event_id, times in count.items() if times > 1} <= broken


@asynccontextmanager
async def open_events(lane: Lane, point: Point) -> AsyncIterator[Events]:
    """A queue of events with handlers of each kind."""
    posted: list[str] = []

    async def take(request: web.Request) -> web.Response:
        await request.read()
        posted.append(request.headers["webhook-id"])
        return web.Response()

    app = web.Application()
    app.router.add_post("/", take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    source = SOURCE_OF_STOP if point.around == "stop" else SOURCE.format(port=runner.addresses[0][1])
    (lane.folder / "postroom.toml").write_text(dedent(source))
    (lane.folder / "shop.py").write_text(dedent(SHOP))
    await lane.db.execute(f"{EFFECTS}; {ON_EVENT}")
    try:
        yield Events(lane, point, posted)
    finally:
        await runner.cleanup()


async def break_worker(bench: Bench, table: Mapping[str, Point], case: Case) -> None:
    """Break one worker, let others finish, and check."""
    point = table[case.point]
    opened = open_emails if "smtp.connected" in table else open_events
    async with open_lane(bench, case) as lane, opened(lane, point) as work:
        await work.queue()
        victim = lane.start(work.arguments, work.environment, victim=True)
        await _broken(lane, work, victim)
        await lane.quiet(gone=False)
        blamed, free = {row_id for row_id, _ in await lane.begun(work.table)}, set[UUID]()
        await work.look()
        if case.fault == "kill":
            await lane.end_leases(work.table)
        if case.fault == "hang":
            free = await _taken_over_while_it_hangs(lane, work, victim)
        await _finished(lane, work, victim)
        await work.check(blamed, free)
        lane.check_logs()


async def _broken(lane: Lane, work: Emails | Events, victim: Program) -> None:
    """Wait until the victim has met its fault."""
    if work.point.at_end:
        await until(lambda: is_settled(lane, work))
        victim.signal(signal.SIGTERM)
    if isinstance(work, Emails) and isinstance(lane.case.fault, Loss) and lane.rule is None:
        return  # the other side does it
    await lane.struck(victim)
    if lane.case.fault == "kill":
        await lane.quiet(gone=True)


async def _taken_over_while_it_hangs(lane: Lane, work: Emails | Events, victim: Program) -> set[UUID]:
    """
    Others do all that they can reach; then the victim wakes up where it was.

    Returns:
        Rows that it had locked: whether it or another worker settles them is open.
    """
    worker = await lane.db.fetchval("SELECT id FROM postroom.workers WHERE pid = $1", victim.pid)
    rescuer = lane.start(work.arguments, work.environment, victim=False)
    unsettled = f"SELECT id, leased_by FROM {work.table} WHERE status IN ('pending', 'processing')"

    async def are_all_locked() -> bool:
        if await lane.db.fetch(f"{unsettled} FOR NO KEY UPDATE SKIP LOCKED"):
            return False
        return all(row["leased_by"] == worker for row in await lane.db.fetch(unsettled))

    async def is_nothing_left() -> bool:
        # Also a claim that is under way locks rows: it has ended when the server does nothing.
        for _ in range(3):
            if not await are_all_locked():
                return False
            await lane.quiet(gone=False)
        return await are_all_locked()

    await until(is_nothing_left)
    locked = {row["id"] for row in await lane.db.fetch(unsettled)}
    victim.signal(signal.SIGCONT)
    await until(lambda: is_settled(lane, work))
    await end(lane, rescuer)
    return locked


async def _finished(lane: Lane, work: Emails | Events, victim: Program) -> None:
    """Wait until every row is settled and every program has ended as it should."""
    fault = lane.case.fault
    dies = fault == "kill" or (
        fault != "hang" and (work.point.dies if isinstance(fault, str) else fault.dies)
    )
    last = victim
    if dies:
        code = await lane.ended(victim)
        assert code == (-9 if fault == "kill" else 1), victim.log[-2000:]
        last = lane.start(work.arguments, work.environment, victim=False)
    await until(lambda: last.code is not None or is_settled(lane, work))
    if work.point.at_end and not dies:
        assert await lane.ended(victim) == 0, victim.log[-2000:]
    else:
        assert last.code is None, f"it ended by itself: {last.log[-2000:]}"
        await end(lane, last)


async def end(lane: Lane, program: Program) -> None:
    """Tell a worker to end, and see that it does so well."""
    await until(lambda: "worker.started" in program.log or program.code is not None)
    program.signal(signal.SIGTERM)
    assert await lane.ended(program) == 0, program.log[-2000:]


async def is_settled(lane: Lane, work: Emails | Events) -> bool:
    """Whether no row is pending or in flight."""
    count: int = await lane.db.fetchval(
        f"SELECT count(*) FROM {work.table} WHERE status IN ('pending', 'processing')"
    )
    return count == 0
