"""A server that is broken at one point while callers wait for its answers, and what they may rely on."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from postroom.testing import signed
from tests.email.transports.servers.scripted_smtp import CLOSE, Say, ScriptedSmtp
from tests.failpoints.hatchery import Program
from tests.failpoints.lanes import Bench, Lane, open_lane, until
from tests.failpoints.table import Case, Loss, Point

KEY = "service-key-of-the-doors"
SECRET = "whsec_of_the_doors"
REQUESTS = 8
TIMEOUT_S = 3.0
"""How long a caller waits for a server that stands still; one that lives is given longer."""

BEHIND_THE_END = Case("direct.answer.before", "raise")
"""A mistake of ours when the mail is out and settled: its answer alone cannot be right."""

SERVE = ("serve",)
WORK = ("worker", "--queues", "email")


@dataclass(frozen=True)
class Answer:
    """What a caller got: a status and what was said; none where the connection was lost."""

    status: int | None
    said: dict[str, Any] = field(default_factory=dict)


@dataclass
class House:
    """A server, its callers, and the server that takes over."""

    lane: Lane
    smtp: ScriptedSmtp
    victim: Program
    address: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        return environment(self.smtp)

    async def post(self, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        """One request to whoever serves now."""
        if self.address is None:
            return Answer(None)
        total_s = TIMEOUT_S if self.lane.case.fault == "hang" else 60.0
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=total_s)) as client:
            with suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with client.post(self.address + path, data=body, headers=headers) as response:
                    return Answer(response.status, await response.json())
        return Answer(None)

    async def post_json(self, body: str) -> Answer:
        """One request to send-email."""
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        return await self.post("/functions/v1/send-email", body.encode(), headers)

    async def serve_again(self) -> None:
        """Wake the victim where it stands still, replace it where it is dead."""
        if self.lane.case.fault == "kill":
            self.victim = self.lane.start(SERVE, self.environment, victim=False)
        elif self.lane.case.fault == "hang":
            self.victim.signal(signal.SIGCONT)
        await self.ready()

    async def ready(self) -> None:
        """Wait until it serves, is dead or stands still."""
        victim = self.victim
        await until(lambda: victim.code is not None or victim.is_stopped or "\n" in victim.answer)
        self.address = victim.answer.split()[1] if "\n" in victim.answer else None

    async def end(self) -> None:
        """SIGTERM ends it well."""
        self.victim.signal(signal.SIGTERM)
        assert await self.lane.ended(self.victim) == 0, self.victim.log[-3000:]


def environment(smtp: ScriptedSmtp) -> dict[str, str]:
    """How a server is told what it needs."""
    return {
        "POSTROOM_PORT": "0",
        "POSTROOM_SERVICE_KEY": KEY,
        "POSTROOM_STRIPE_WEBHOOK_SECRET": SECRET,
        "POSTROOM_FROM": "shop@example.com",
        "POSTROOM_TRANSPORT": f"smtp://127.0.0.1:{smtp.port}",
    }


Door = Callable[[House, Point], Awaitable[None]]


async def break_server(bench: Bench, door: Door, point: Point, case: Case) -> None:
    """Break one server behind a door, and check."""
    async with open_lane(bench, case) as lane:
        smtp = ScriptedSmtp()
        await smtp.open()
        try:
            if isinstance(case.fault, Loss) and case.fault.statement.startswith("smtp:"):
                smtp.on(case.fault.statement.removeprefix("smtp:"), CLOSE)
            house = House(lane, smtp, lane.start(SERVE, environment(smtp), victim=True))
            await house.ready()
            await door(house, point)
            await house.end()
            lane.check_logs()
        finally:
            await smtp.close()


async def _met(house: House) -> None:
    """The victim has met its fault, whatever its callers got."""
    if isinstance(house.lane.case.fault, str) or house.lane.rule is not None:
        await house.lane.struck(house.victim)
    if house.lane.case.fault == "kill":
        await house.lane.quiet(gone=True)


async def webhook_door(house: House, _point: Point) -> None:
    """A provider that sends its events until each is answered 200."""
    events = {f"evt_{n}": signed("stripe", {"id": f"evt_{n}", "type": "x"}, SECRET) for n in range(REQUESTS)}

    async def send(event_id: str) -> Answer:
        request = events[event_id]
        return await house.post("/webhooks/stripe", request.body, request.headers)

    first = dict(zip(events, await asyncio.gather(*map(send, events)), strict=True))
    await _met(house)
    stored = await _stored(house)
    answered = {event_id for event_id, answer in first.items() if answer.status == 200}
    assert answered <= set(stored), "an event was answered and is not there"
    assert not any(answer.said.get("duplicate") for answer in first.values())
    assert {answer.status for answer in first.values()} <= {200, 500, 503, None}
    await house.serve_again()
    left = [event_id for event_id in events if event_id not in answered]
    for event_id, answer in zip(left, await asyncio.gather(*map(send, left)), strict=True):
        assert answer.status == 200
        if house.lane.case.fault != "hang":  # who wakes up may store it while it comes again
            assert answer.said.get("duplicate", False) == (event_id in stored)
    stored = await _stored(house)
    assert stored == Counter(dict.fromkeys(events, 1))
    bodies = await house.lane.db.fetch("SELECT body FROM postroom.webhook_requests")
    assert {row["body"] for row in bodies} == {request.body for request in events.values()}


async def _stored(house: House) -> Counter[str]:
    rows = await house.lane.db.fetch("SELECT webhook_event_id FROM webhook_retry_queue")
    return Counter(row["webhook_event_id"] for row in rows)


async def queue_door(house: House, _point: Point) -> None:
    """A caller who queues each mail with its key until that is answered 200."""
    keys = [f"key_{n}" for n in range(REQUESTS)]

    async def send(key: str) -> Answer:
        return await house.post_json(
            f'{{"to": "{key}@example.com", "subject": "s", "html": "h", "use_queue": true,'
            f' "idempotency_key": "{key}"}}'
        )

    first = dict(zip(keys, await asyncio.gather(*map(send, keys)), strict=True))
    await _met(house)
    await house.serve_again()
    left = [key for key, answer in first.items() if answer.status != 200]
    second = dict(zip(left, await asyncio.gather(*map(send, left)), strict=True))
    rows = await house.lane.db.fetch("SELECT id, idempotency_key, status FROM email_queue")
    assert {(row["idempotency_key"], row["status"]) for row in rows} == {(key, "pending") for key in keys}
    assert len(rows) == len(keys), "a key has two rows"
    for row in rows:
        answer = second.get(row["idempotency_key"]) or first[row["idempotency_key"]]
        assert (answer.status, answer.said["queue_id"]) == (200, str(row["id"]))


async def send_door(house: House, point: Point) -> None:
    """Callers who wait for what becomes of their mail, and do not come again."""
    is_limited = point.around == "limited"
    subjects = [f"first {n}" for n in range(2 if is_limited else REQUESTS)]
    if is_limited:
        # Both have a row before one of them can begin, and there is a slot for one.
        house.smtp.on("GREETING", *[Say("220 scripted.test ESMTP", delay_s=0.4)] * 2)
        await house.lane.db.execute("SELECT postroom.set_setting('email.limit.recipient', '1/1h')")

    async def send(subject: str) -> Answer:
        to = "hot" if is_limited else subject.replace(" ", "")
        return await house.post_json(f'{{"to": "{to}@example.com", "subject": "{subject}", "html": "h"}}')

    answers = dict(zip(subjects, await asyncio.gather(*map(send, subjects)), strict=True))
    await _met(house)
    if house.lane.case.fault == "kill":
        await house.lane.end_leases("email_queue")
    worker = house.lane.start(WORK, house.environment, victim=False)
    await until(lambda: _is_settled(house))
    await house.serve_again()
    if not is_limited:
        later = [f"later {n}" for n in range(REQUESTS)]
        answers |= dict(zip(later, await asyncio.gather(*map(send, later)), strict=True))
        assert {answers[subject].status for subject in later} == {200}, "it serves no longer as it did"
    await until(lambda: _is_settled(house))
    await until(lambda: "worker.started" in worker.log)
    worker.signal(signal.SIGTERM)
    assert await house.lane.ended(worker) == 0, worker.log[-2000:]
    await _check_sent(house, answers)


async def _is_settled(house: House) -> bool:
    count: int = await house.lane.db.fetchval(
        """
        SELECT count(*) FROM email_queue
        WHERE status = 'processing' OR status = 'pending' AND waits_for IS DISTINCT FROM $1
        """,
        "limit:email:recipient:hot@example.com",
    )
    return count == 0


async def _check_sent(house: House, answers: dict[str, Answer]) -> None:
    rows = {row["subject"]: row for row in await house.lane.db.fetch("SELECT * FROM email_queue")}
    copies = Counter(
        next(subject for subject in answers if f"Subject: {subject}\r\n".encode() in content)
        for content in house.smtp.contents
    )
    assert max(copies.values(), default=0) <= 1, "a mail that is attempted once went out twice"
    for subject, answer in answers.items():
        row, is_out = rows.get(subject), subject in copies
        if row is None:
            assert not is_out, (subject, answer)
            assert answer.status != 200
        elif row["status"] == "sent":
            assert is_out
        elif row["status"] == "pending":
            assert not is_out
        else:
            assert row["status"] == "dead_letter"
            assert not is_out or row["last_error"].startswith("uncertain: "), row["last_error"]
        if answer.status == 200:
            assert row is not None
            assert (row["status"], answer.said) == ("sent", {"id": str(row["id"])})
        elif answer.status == 429:
            assert row is None
        elif "queue_id" in answer.said:
            assert not is_out or answer.said.get("uncertain") is True
        elif answer.status == 500 and house.lane.case != BEHIND_THE_END:
            assert not is_out, f"{subject}: it was told that nothing was queued, and it went out"
