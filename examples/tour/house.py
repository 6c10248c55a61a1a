"""What the tour stands on: a folder of its own, a database, a mail server, and postroom's commands."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, chdir
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from postroom import Room
from tour.tiny_smtp import TinySmtp

POSTROOM = (sys.executable, "-m", "postroom")
LOG = Path("postroom.log")
CLEAR_LINE = "\r\x1b[K" if sys.stdout.isatty() else ""


@dataclass
class House:
    """The application's Room, its own connection to the same database, the receiver of e-mail."""

    room: Room
    database: asyncpg.Connection
    receiver: TinySmtp
    exits: AsyncExitStack


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


async def start(house: House, *arguments: str) -> tuple[asyncio.subprocess.Process, str]:
    """Start a command that stays; the address where it serves, if it does."""
    with LOG.open("ab") as log:  # noqa: ASYNC230 - a local file
        process = await asyncio.create_subprocess_exec(
            *POSTROOM, *arguments, stdout=asyncio.subprocess.PIPE, stderr=log
        )
    house.exits.push_async_callback(end, process)
    if arguments[0] not in ("up", "serve"):
        return process, ""
    assert process.stdout is not None
    ready = (await process.stdout.readline()).decode().split()
    if not ready:
        raise SystemExit(f"postroom {arguments[0]} did not start:\n{Path('postroom.log').read_text()}")
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


async def until_all_has_ended(house: House) -> None:
    """Wait until nothing is to be done, in either queue: handlers queue receipts."""
    query = """
        SELECT
            (SELECT count(*) FROM webhook_retry_queue WHERE status IN ('pending', 'processing'))
            + (SELECT count(*) FROM email_queue WHERE status IN ('pending', 'processing'))
    """
    while waiting := await house.database.fetchval(query):
        if sys.stdout.isatty():
            print(f"\r   {waiting} to go ", end="", flush=True)
        await asyncio.sleep(0.1)
    print(f"{CLEAR_LINE}   all have come to their end")


# On the screen


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """The facts in columns, and below each line what it shows."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]) - 1)]
    for *cells, lesson in rows:
        print(
            "   " + "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        )
        if lesson:
            print(f"     → {lesson}")


def say(line: str) -> None:
    print(f"\n{line}", flush=True)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)
