"""The first half: e-mails of several kinds, by each of the doors that a program has."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.request
from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from tour.house import House, end, postroom, print_table, say, start, until, until_all_has_ended

NEWSLETTERS = [f"reader{number}@example.com" for number in range(1, 13)]


@dataclass
class Story:
    """
    E-mails of one kind, and what the reader should learn from them.

    Attributes:
        to: Where they go; no two stories share an address.
        arrive: How many different e-mails the receiver must have seen in the end.
    """

    title: str
    lesson: str
    ids: list[UUID]
    to: list[str]
    status: str = "sent"
    arrive: int = 1


@dataclass
class Emails:
    """This half of the tour: the house, and the stories so far."""

    house: House
    stories: list[Story] = field(default_factory=list)


async def show_emails(house: House) -> list[str]:
    """E-mails queued, a worker killed, what became of each; the titles of those that are not as promised."""
    tour = Emails(house)
    await set_policy()
    say("1. Queue e-mails, while no worker runs")
    await queue_by_command_line(tour)
    await queue_in_a_transaction(tour)
    await queue_twice_with_one_key(tour)
    await queue_what_will_be_refused(tour)
    await queue_more_than_a_recipient_may_get(tour)
    await queue_for_later(tour)

    say("2. `postroom up`: HTTP and a worker; and kill -9 in the middle of newsletters")
    up, address = await start(house, "up")
    await queue_over_http(tour, address)
    await queue_newsletters(tour)
    await kill_in_the_middle(tour, up)

    say("3. `postroom worker` on its own takes over")
    worker, _ = await start(house, "worker")
    await explain_one_that_waits(tour)
    await until_all_has_ended(tour.house)
    await end(worker)

    say("4. What became of each e-mail")
    return await report(tour)


async def set_policy() -> None:
    """Queue policy is the same for all workers, and lies in the database. Here: short times, to be seen."""
    await postroom("settings", "set", "email.backoff", "1s,2s")
    await postroom("settings", "set", "email.limit.recipient", "2/4s")
    await postroom("settings", "set", "lease", "2s")


# The doors


async def queue_by_command_line(tour: Emails) -> None:
    out = await postroom("send", "--to", "ada@example.com", "--subject", "Hi", "--html", "<p>Hi</p>")
    tell(tour, Story("by `postroom send`", "any shell can queue an e-mail", [UUID(out)], ["ada@example.com"]))


async def queue_in_a_transaction(tour: Emails) -> None:
    """The e-mail is part of your transaction, and so is the decision not to send it."""
    async with tour.house.database.transaction():
        receipt = await tour.house.database.fetchval(
            "INSERT INTO email_queue (to_email, subject, html) VALUES ($1, $2, $3) RETURNING id",
            *("bob@example.com", "Your order", "<p>Thank you</p>"),
        )
    tell(tour, Story("by a plain INSERT", "committed is sent", [receipt], ["bob@example.com"]))

    transaction = tour.house.database.transaction()
    await transaction.start()
    undone = await tour.house.room.send(
        to="carol@example.com", subject="Your order", html="<p>Thank you</p>", connection=tour.house.database
    )
    await transaction.rollback()
    lesson = "an order that is undone sends nothing"
    tell(tour, Story("and rolled back", lesson, [undone], ["carol@example.com"], "no row", arrive=0))


async def queue_twice_with_one_key(tour: Emails) -> None:
    """A repeated request must not send a second e-mail."""
    ids = [
        await tour.house.room.send(
            to="dan@example.com", subject="Receipt", html="<p>17 €</p>", idempotency_key="order-17-receipt"
        )
        for _ in range(2)
    ]
    lesson = "the same idempotency_key gives the same id"
    tell(tour, Story("twice with one key", lesson, list(dict.fromkeys(ids)), ["dan@example.com"]))


async def queue_what_will_be_refused(tour: Emails) -> None:
    tour.house.receiver.replies["nobody@example.com"] = deque(["550 5.1.1 no such user"])
    refused = await tour.house.room.send(to="nobody@example.com", subject="Hello", text="Anybody there?")
    lesson = "a permanent failure is a dead letter at once: `postroom dead-letters list`"
    tell(
        tour,
        Story("to no such user (550)", lesson, [refused], ["nobody@example.com"], "dead_letter", arrive=0),
    )

    tour.house.receiver.replies["erin@example.com"] = deque(["451 4.7.1 greylisted, come back later"])
    greylisted = await tour.house.room.send(to="erin@example.com", subject="Hello", text="It is me again")
    lesson = "a temporary one is tried again by email.backoff"
    tell(tour, Story("to a greylisting server (451)", lesson, [greylisted], ["erin@example.com"]))


async def queue_more_than_a_recipient_may_get(tour: Emails) -> None:
    alerts = [{"to": "frank@example.com", "subject": f"Alert {n}", "text": "Disk full"} for n in range(1, 5)]
    ids = await tour.house.room.send_many(alerts)
    lesson = "what waits for a limit (here 2 in 4 s) uses up no attempt"
    tell(tour, Story("4 alerts to one person", lesson, ids, ["frank@example.com"], arrive=4))


async def queue_for_later(tour: Emails) -> None:
    at = datetime.now(UTC) + timedelta(seconds=9)
    later = await tour.house.room.send(to="grace@example.com", subject="Reminder", text="Now", send_at=at)
    tell(tour, Story("with send_at in 9 s", "not before its time", [later], ["grace@example.com"]))


async def queue_newsletters(tour: Emails) -> None:
    """Slow ones, for the kill: the server says 250 long after it has taken the e-mail."""
    tour.house.receiver.slow |= set(NEWSLETTERS)
    ids = await tour.house.room.send_many(
        [{"to": to, "subject": "News", "text": "Nothing new"} for to in NEWSLETTERS]
    )
    lesson = "a killed worker loses none; one that may have gone out goes again, with the same Message-ID"
    tell(tour, Story(f"{len(ids)} newsletters, kill -9", lesson, ids, NEWSLETTERS, arrive=len(ids)))


async def queue_over_http(tour: Emails, address: str) -> None:
    key = Path(".postroom/service-key").read_text().strip()
    body = {"to": "heidi@example.com", "subject": "Hi", "html": "<p>Hi</p>", "use_queue": True}
    request = urllib.request.Request(
        f"{address}/functions/v1/send-email",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    with await asyncio.to_thread(urllib.request.urlopen, request, timeout=10) as answer:
        queued = UUID(json.load(answer)["queue_id"])
    tell(tour, Story("over HTTP", "and so can any program", [queued], ["heidi@example.com"]))
    while (
        await tour.house.database.fetchval("SELECT status FROM email_queue WHERE id = $1", queued) != "sent"
    ):
        await asyncio.sleep(0.02)


# Workers come and go


async def kill_in_the_middle(tour: Emails, up: asyncio.subprocess.Process) -> None:
    """kill -9 while the receiver has e-mails of which the worker does not know yet that they arrived."""
    receiver = tour.house.receiver
    await until(lambda: arrived(tour, NEWSLETTERS) >= 6 and receiver.unanswered > 0)
    unanswered, rest = receiver.unanswered, len(NEWSLETTERS) - arrived(tour, NEWSLETTERS)
    os.kill(up.pid, signal.SIGKILL)
    await up.wait()
    print(f"   killed: the server had taken {unanswered} and not yet said so; {rest} were still to go")


async def explain_one_that_waits(tour: Emails) -> None:
    """Where is my mail? Ask for the reminder, whose time has not come."""
    reminder = next(story for story in tour.stories if story.to == ["grace@example.com"])
    print("   $ postroom explain", reminder.ids[0])
    for line in (await postroom("explain", str(reminder.ids[0]))).splitlines():
        print(f"     {line}")


# What became of them


@dataclass
class End:
    """How a story ended: rows by status, attempts, and what the receiver saw."""

    statuses: Counter[str]
    attempts: list[int]
    different: int
    copies: int


async def end_of(tour: Emails, story: Story) -> End:
    rows = await tour.house.database.fetch(
        "SELECT status, attempts FROM email_queue WHERE id = ANY ($1)", story.ids
    )
    statuses = Counter(row["status"] for row in rows)
    statuses["no row"] = len(story.ids) - len(rows)
    letters = [(to, message_id) for to in story.to for message_id in tour.house.receiver.letters[to]]
    return End(+statuses, [row["attempts"] for row in rows], len(set(letters)), len(letters))


async def report(tour: Emails) -> list[str]:
    """Print the table."""
    table, wrong = [("E-MAIL", "BECAME", "ATTEMPTS", "ARRIVED", "")], []
    for story in tour.stories:
        ended = await end_of(tour, story)
        table.append((story.title, became(ended), attempts(ended), seen(ended), story.lesson))
        if ended.statuses.keys() != {story.status} or ended.different != story.arrive:
            wrong.append(story.title)
    print_table(table)
    return wrong


def became(ended: End) -> str:
    return ", ".join(f"{count} {name}" if count > 1 else name for name, count in ended.statuses.items())


def attempts(ended: End) -> str:
    low, high = min(ended.attempts, default=0), max(ended.attempts, default=0)
    return f"{low}" if low == high else f"{low} to {high}"


def seen(ended: End) -> str:
    twice = ended.copies - ended.different
    return f"{ended.different}" + (f", {twice} of them twice" if twice else "")


def tell(tour: Emails, story: Story) -> None:
    tour.stories.append(story)
    print(f"   {story.title}: {', '.join(story.to) if len(story.to) < 3 else '…'}", flush=True)


def arrived(tour: Emails, addresses: list[str]) -> int:
    return sum(bool(tour.house.receiver.letters[address]) for address in addresses)
