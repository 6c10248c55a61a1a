"""pgqueuer as a contender; see queue_peer. Options: batch_size."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import queue_peer
from pgqueuer import PgQueuer
from pgqueuer.models import Job
from pgqueuer.queries import Queries


class PgQueuerPeer:
    """One connection to work on, as its manual has it, and one to enqueue."""

    def __init__(self, settings: dict[str, Any], jobs: queue_peer.Jobs) -> None:
        self._settings = settings
        self._jobs = jobs

    async def open(self) -> None:
        self._worker = await asyncpg.connect(self._settings["database_url"])
        self._client = await asyncpg.connect(self._settings["database_url"])
        self._queries = Queries.from_asyncpg_connection(self._client)

    async def migrate(self) -> None:
        await self._queries.install()

    async def enqueue(self, jobs: list[dict[str, Any]]) -> None:
        await self._queries.enqueue(
            ["work"] * len(jobs), [json.dumps(job).encode() for job in jobs], [0] * len(jobs)
        )

    async def enqueue_one(self, job: dict[str, Any]) -> None:
        await self._queries.enqueue("work", json.dumps(job).encode())

    async def is_empty(self) -> bool:
        return not await self._client.fetchval("SELECT EXISTS (SELECT FROM pgqueuer)")

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        queue = PgQueuer.from_asyncpg_connection(self._worker)

        @queue.entrypoint("work")
        async def work(job: Job) -> None:
            self._jobs.started(json.loads(job.payload or b"")["number"])

        running = asyncio.create_task(
            queue.run(
                batch_size=self._settings["options"]["batch_size"], dequeue_timeout=timedelta(seconds=1)
            )
        )
        yield
        queue.shutdown.set()
        await asyncio.wait_for(running, 10)


async def main(settings: dict[str, Any]) -> None:
    logging.getLogger("pgqueuer").setLevel(logging.WARNING)
    jobs = queue_peer.Jobs(settings["count"])
    peer = PgQueuerPeer(settings, jobs)
    await peer.open()
    await queue_peer.work(peer, jobs, settings)


if __name__ == "__main__":
    queue_peer.run(main(json.loads(sys.argv[1])))
