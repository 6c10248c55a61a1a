"""PostgreSQL is stopped and killed under `postroom serve`, amid thousands of posts: what is 200 is stored."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import psycopg
import pytest

from postroom.database.migrate import migrate
from postroom.testing import signed
from tests.journey.programs import Programs
from tests.support.postgres import SETTINGS, running_server
from tests.support.waiting import until

SECRET = "whsec_of_the_tests"
DURABLE = SETTINGS.replace("synchronous_commit = off", "synchronous_commit = on")
EVENTS = 5_000
CONNECTIONS = 64
PAUSE_S = 0.1
"""How long a connection waits after a 503: the database is away for a second, and events must be left."""


class Provider:
    """
    Posts events over connections that it keeps.

    Attributes:
        answers: The status of each event's last post.
        given: How often each status was answered.
    """

    def __init__(self, session: aiohttp.ClientSession, address: str) -> None:
        self._session = session
        self._address = address
        self.answers: dict[str, int] = {}
        self.given: Counter[int] = Counter()

    async def post_all(self, event_ids: list[str]) -> None:
        """Post each of them once, many at a time."""
        line = iter(event_ids)
        await asyncio.gather(*(self._post_some(line) for _ in range(CONNECTIONS)))

    async def until_answered(self, status: int, more: int) -> None:
        """Wait until this status has been answered so many times more."""
        enough = self.given[status] + more
        await until(lambda: self.given[status] >= enough)

    async def _post_some(self, line: Iterator[str]) -> None:
        for event_id in line:
            request = signed("stripe", {"id": event_id, "type": "charge.succeeded"}, SECRET)
            async with self._session.post(
                f"{self._address}/webhooks/stripe", data=request.body, headers=request.headers
            ) as answer:
                await answer.read()
            self.answers[event_id] = answer.status
            self.given[answer.status] += 1
            if answer.status == 503:
                assert answer.headers["Retry-After"]
                await asyncio.sleep(PAUSE_S)


@pytest.mark.timeout(180)
async def test_of_5000_posts_every_200_is_stored_and_the_rest_are_503(tmp_path: Path) -> None:
    """PostgreSQL is stopped and started, killed and started meanwhile; what was 503 is sent again."""
    event_ids = [f"evt_{n}" for n in range(EVENTS)]
    with running_server(settings=DURABLE) as postgres:
        url = postgres.url_of(postgres.create_database())
        await migrate(url)
        programs = Programs(
            tmp_path,
            {
                "POSTROOM_DATABASE_URL": url,
                "POSTROOM_STRIPE_WEBHOOK_SECRET": SECRET,
                "POSTROOM_PORT": "0",
                "POSTROOM_LOG": "json",
                "POSTROOM_LOG_LEVEL": "warning",
            },
        )
        with programs.running("serve") as serve:
            address = await asyncio.to_thread(serve.ready)
            async with aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS), timeout=aiohttp.ClientTimeout(total=30)
            ) as session:
                provider = Provider(session, address)
                posting = asyncio.create_task(provider.post_all(event_ids))
                for how in (signal.SIGINT, signal.SIGKILL):
                    await provider.until_answered(200, 500)
                    await asyncio.to_thread(postgres.stop, how)
                    await provider.until_answered(503, CONNECTIONS)
                    await asyncio.to_thread(postgres.start)
                await posting
                first = dict(provider.answers)
                await provider.post_all([one for one, status in first.items() if status != 200])
            log = serve.log
        there = Counter(_stored(url))
    print(f"\n{Counter(first.values())} at first, {Counter(provider.answers.values())} in the end")
    assert set(first.values()) == {200, 503}
    assert [one for one, status in first.items() if status == 200 and one not in there] == []
    assert set(provider.answers.values()) == {200}
    assert there == Counter(event_ids)
    assert "Traceback" not in log


def _stored(url: str) -> list[str]:
    with psycopg.connect(url) as db:
        return [str(row[0]) for row in db.execute("SELECT webhook_event_id FROM webhook_retry_queue")]
