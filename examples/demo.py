"""
A tour of postroom in twenty seconds: `make demo`.

On a throw-away database it queues e-mails of several kinds, by each of the doors that a program has. A
worker begins to send them and is killed in the middle, another one takes over, and a table tells what
became of each. It ends with exit 0 where all is as promised, and leaves nothing behind.

Read it from main() downwards. It uses what you have too: the command line, `Room`, HTTP, and SQL.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, chdir
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import asyncpg
from tiny_smtp import TinySmtp

from postroom import Room

POSTROOM = (sys.executable, "-m", "postroom")
LIMIT_S = 90
CLEAR_LINE = "\r\x1b[K" if sys.stdout.isatty() else ""
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
class House:
    """What the tour holds: the application's Room, its own connection to the same database, the receiver."""

    room: Room
    database: asyncpg.Connection
    receiver: TinySmtp
    exits: AsyncExitStack
    stories: list[Story] = field(default_factory=list)


async def main() -> int:
    """The tour."""
    async with asyncio.timeout(LIMIT_S), opened_house() as house:
        await set_policy()
        say("1. Queue e-mails, while no worker runs")
        await queue_by_command_line(house)
        await queue_in_a_transaction(house)
        await queue_twice_with_one_key(house)
        await queue_what_will_be_refused(house)
        await queue_more_than_a_recipient_may_get(house)
        await queue_for_later(house)

        say("2. `postroom up`: HTTP and a worker; and kill -9 in the middle of newsletters")
        up, address = await start(house, "up")
        await queue_over_http(house, address)
        await queue_newsletters(house)
        await kill_in_the_middle(house, up)

        say("3. `postroom worker` on its own takes over")
        worker, _ = await start(house, "worker")
        await explain_one_that_waits(house)
        await until_all_has_ended(house)
        await end(worker)

        say("4. What became of each")
        return await report(house)


# The house: nothing of it is there before, and nothing after


@asynccontextmanager
async def opened_house() -> AsyncIterator[House]:
    """A folder of its own, a mail server, and a Room whose embedded database lies in that folder."""
    folder = Path(tempfile.mkdtemp(prefix="postroom-demo-", dir="/tmp"))
    folder.chmod(0o711)  # for root, the database runs under another user, who must get through
    async with AsyncExitStack() as exits:
        exits.callback(shutil.rmtree, folder, ignore_errors=True)
        exits.enter_context(chdir(folder))
        receiver = await exits.enter_async_context(TinySmtp().running())
        for name in [name for name in os.environ if name.startswith("POSTROOM_") or name == "RESEND_API_KEY"]:
            del os.environ[name]
        os.environ |= {
            "POSTROOM_TRANSPORT": f"smtp://127.0.0.1:{receiver.port}",
            "POSTROOM_FROM": "Shop <shop@example.com>",
            "POSTROOM_PORT": "0",
            "POSTROOM_CONCURRENCY": "4",  # few at once, so that there is a middle to be killed in
        }
        room = Room()
        exits.push_async_callback(room.close)
        url = await room.database_url()
        await postroom("migrate")
        database = await asyncpg.connect(url)
        exits.push_async_callback(database.close)
        yield House(room, database, receiver, exits)


async def set_policy() -> None:
    """Queue policy is the same for all workers, and lies in the database. Here: short times, to be seen."""
    await postroom("settings", "set", "email.backoff", "1s,2s")
    await postroom("settings", "set", "email.limit.recipient", "2/4s")
    await postroom("settings", "set", "lease", "2s")


# The doors


async def queue_by_command_line(house: House) -> None:
    out = await postroom("send", "--to", "ada@example.com", "--subject", "Hi", "--html", "<p>Hi</p>")
    tell(
        house, Story("by `postroom send`", "any shell can queue an e-mail", [UUID(out)], ["ada@example.com"])
    )


async def queue_in_a_transaction(house: House) -> None:
    """The e-mail is part of your transaction, and so is the decision not to send it."""
    async with house.database.transaction():
        receipt = await house.database.fetchval(
            "INSERT INTO email_queue (to_email, subject, html) VALUES ($1, $2, $3) RETURNING id",
            *("bob@example.com", "Your order", "<p>Thank you</p>"),
        )
    tell(house, Story("by a plain INSERT", "committed is sent", [receipt], ["bob@example.com"]))

    transaction = house.database.transaction()
    await transaction.start()
    undone = await house.room.send(
        to="carol@example.com", subject="Your order", html="<p>Thank you</p>", connection=house.database
    )
    await transaction.rollback()
    lesson = "an order that is undone sends nothing"
    tell(house, Story("and rolled back", lesson, [undone], ["carol@example.com"], "no row", arrive=0))


async def queue_twice_with_one_key(house: House) -> None:
    """A repeated request must not send a second e-mail."""
    ids = [
        await house.room.send(
            to="dan@example.com", subject="Receipt", html="<p>17 €</p>", idempotency_key="order-17-receipt"
        )
        for _ in range(2)
    ]
    lesson = "the same idempotency_key gives the same id"
    tell(house, Story("twice with one key", lesson, list(dict.fromkeys(ids)), ["dan@example.com"]))


async def queue_what_will_be_refused(house: House) -> None:
    house.receiver.replies["nobody@example.com"] = deque(["550 5.1.1 no such user"])
    refused = await house.room.send(to="nobody@example.com", subject="Hello", text="Anybody there?")
    lesson = "a permanent failure is a dead letter at once: `postroom dead-letters list`"
    tell(
        house,
        Story("to no such user (550)", lesson, [refused], ["nobody@example.com"], "dead_letter", arrive=0),
    )

    house.receiver.replies["erin@example.com"] = deque(["451 4.7.1 greylisted, come back later"])
    greylisted = await house.room.send(to="erin@example.com", subject="Hello", text="It is me again")
    lesson = "a temporary one is tried again by email.backoff"
    tell(house, Story("to a greylisting server (451)", lesson, [greylisted], ["erin@example.com"]))


async def queue_more_than_a_recipient_may_get(house: House) -> None:
    alerts = [{"to": "frank@example.com", "subject": f"Alert {n}", "text": "Disk full"} for n in range(1, 5)]
    ids = await house.room.send_many(alerts)
    lesson = "what waits for a limit (here 2 in 4 s) uses up no attempt"
    tell(house, Story("4 alerts to one person", lesson, ids, ["frank@example.com"], arrive=4))


async def queue_for_later(house: House) -> None:
    at = datetime.now(UTC) + timedelta(seconds=9)
    later = await house.room.send(to="grace@example.com", subject="Reminder", text="Now", send_at=at)
    tell(house, Story("with send_at in 9 s", "not before its time", [later], ["grace@example.com"]))


async def queue_newsletters(house: House) -> None:
    """Slow ones, for the kill: the server says 250 long after it has taken the e-mail."""
    house.receiver.slow |= set(NEWSLETTERS)
    ids = await house.room.send_many(
        [{"to": to, "subject": "News", "text": "Nothing new"} for to in NEWSLETTERS]
    )
    lesson = "a killed worker loses none; one that may have gone out goes again, with the same Message-ID"
    tell(house, Story(f"{len(ids)} newsletters, kill -9", lesson, ids, NEWSLETTERS, arrive=len(ids)))


async def queue_over_http(house: House, address: str) -> None:
    key = Path(".postroom/service-key").read_text().strip()
    body = {"to": "heidi@example.com", "subject": "Hi", "html": "<p>Hi</p>", "use_queue": True}
    request = urllib.request.Request(
        f"{address}/functions/v1/send-email",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    with await asyncio.to_thread(urllib.request.urlopen, request, timeout=10) as answer:
        queued = UUID(json.load(answer)["queue_id"])
    tell(house, Story("over HTTP", "and so can any program", [queued], ["heidi@example.com"]))
    while await house.database.fetchval("SELECT status FROM email_queue WHERE id = $1", queued) != "sent":
        await asyncio.sleep(0.02)


# Workers come and go


async def kill_in_the_middle(house: House, up: asyncio.subprocess.Process) -> None:
    """kill -9 while the receiver has e-mails of which the worker does not know yet that they arrived."""
    receiver = house.receiver
    await until(lambda: arrived(house, NEWSLETTERS) >= 6 and receiver.unanswered > 0)
    unanswered, rest = receiver.unanswered, len(NEWSLETTERS) - arrived(house, NEWSLETTERS)
    os.kill(up.pid, signal.SIGKILL)
    await up.wait()
    print(f"   killed: the server had taken {unanswered} and not yet said so; {rest} were still to go")


async def explain_one_that_waits(house: House) -> None:
    """Where is my mail? Ask for the reminder, whose time has not come."""
    reminder = next(story for story in house.stories if story.to == ["grace@example.com"])
    print("   $ postroom explain", reminder.ids[0])
    for line in (await postroom("explain", str(reminder.ids[0]))).splitlines():
        print(f"     {line}")


async def until_all_has_ended(house: House) -> None:
    query = "SELECT count(*) FROM email_queue WHERE status IN ('pending', 'processing')"
    while waiting := await house.database.fetchval(query):
        if sys.stdout.isatty():
            print(f"\r   {waiting} to go ", end="", flush=True)
        await asyncio.sleep(0.1)
    print(f"{CLEAR_LINE}   all e-mails have come to their end")


async def start(house: House, *arguments: str) -> tuple[asyncio.subprocess.Process, str]:
    """Start a command that stays; the address where it serves, if it does."""
    with Path("postroom.log").open("ab") as log:  # noqa: ASYNC230 - a local file
        process = await asyncio.create_subprocess_exec(
            *POSTROOM, *arguments, stdout=asyncio.subprocess.PIPE, stderr=log
        )
    house.exits.push_async_callback(end, process)
    if arguments[0] != "up":
        return process, ""
    assert process.stdout is not None
    ready = (await process.stdout.readline()).decode().split()
    if not ready:
        raise SystemExit(f"postroom up did not start:\n{Path('postroom.log').read_text()}")
    return process, ready[1]


async def end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM drains: attempts in flight are finished and written down."""
    if process.returncode is None:
        process.terminate()
        await process.wait()


async def postroom(*arguments: str) -> str:
    """Run a command to its end; what it prints."""
    process = await asyncio.create_subprocess_exec(
        *POSTROOM, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, error = await process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"postroom {' '.join(arguments)}: {error.decode()}")
    return out.decode().strip()


# What became of them


@dataclass
class End:
    """How a story ended: rows by status, attempts, and what the receiver saw."""

    statuses: Counter[str]
    attempts: list[int]
    different: int
    copies: int


async def end_of(house: House, story: Story) -> End:
    rows = await house.database.fetch(
        "SELECT status, attempts FROM email_queue WHERE id = ANY ($1)", story.ids
    )
    statuses = Counter(row["status"] for row in rows)
    statuses["no row"] = len(story.ids) - len(rows)
    letters = [(to, message_id) for to in story.to for message_id in house.receiver.letters[to]]
    return End(+statuses, [row["attempts"] for row in rows], len(set(letters)), len(letters))


async def report(house: House) -> int:
    """Print the table; 1 where something is not as promised."""
    table, wrong = [("E-MAIL", "BECAME", "ATTEMPTS", "ARRIVED", "")], []
    for story in house.stories:
        ended = await end_of(house, story)
        table.append((story.title, became(ended), attempts(ended), seen(ended), story.lesson))
        if ended.statuses.keys() != {story.status} or ended.different != story.arrive:
            wrong.append(story.title)
    print_table(table)
    if wrong:
        print(f"\nNot as promised: {', '.join(wrong)}")
        print(Path("postroom.log").read_text())
        return 1
    print("\nAll as promised: nothing lost, nothing doubled but what could not be known, nothing silent.")
    return 0


def became(ended: End) -> str:
    return ", ".join(f"{count} {name}" if count > 1 else name for name, count in ended.statuses.items())


def attempts(ended: End) -> str:
    low, high = min(ended.attempts, default=0), max(ended.attempts, default=0)
    return f"{low}" if low == high else f"{low} to {high}"


def seen(ended: End) -> str:
    twice = ended.copies - ended.different
    return f"{ended.different}" + (f", {twice} of them twice" if twice else "")


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """The facts in columns, and below each line what it shows."""
    widths = [max(len(row[place]) for row in rows) for place in range(4)]
    for *cells, lesson in rows:
        print(
            "   " + "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        )
        if lesson:
            print(f"     → {lesson}")


def say(line: str) -> None:
    print(f"\n{line}", flush=True)


def tell(house: House, story: Story) -> None:
    house.stories.append(story)
    print(f"   {story.title}: {', '.join(story.to) if len(story.to) < 3 else '…'}", flush=True)


def arrived(house: House, addresses: list[str]) -> int:
    return sum(bool(house.receiver.letters[address]) for address in addresses)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


if __name__ == "__main__":
    began = time.monotonic()
    try:
        code = asyncio.run(main())
    except KeyboardInterrupt:
        sys.exit("demo: interrupted")
    except TimeoutError:
        sys.exit(f"demo: not done within {LIMIT_S} s")
    print(f"({time.monotonic() - began:.0f} s)")
    sys.exit(code)
