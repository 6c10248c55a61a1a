"""oban for Python as a contender; see queue_peer. Options: limit."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import queue_peer
from oban import Oban, worker
from oban.schema import install

JOBS: queue_peer.Jobs


@worker(queue="default")
class Work:
    """What a job does."""

    async def process(self, job: Any) -> None:
        JOBS.started(job.args["number"])


class ObanPeer:
    """One instance with one queue."""

    def __init__(self, settings: dict[str, Any], pool: Any) -> None:
        self._settings = settings
        self._pool = pool
        self._client = Oban(pool=pool, name="client")

    async def migrate(self) -> None:
        await install(self._pool)

    async def enqueue(self, jobs: list[dict[str, Any]]) -> None:
        await self._client.enqueue_many([Work.new(job) for job in jobs])

    async def enqueue_one(self, job: dict[str, Any]) -> None:
        await self._client.enqueue(Work.new(job))

    async def is_empty(self) -> bool:
        async with self._pool.connection() as connection:
            found = await connection.execute(
                "SELECT EXISTS (SELECT FROM oban_jobs WHERE state IN ('available', 'executing', 'retryable'))"
            )
            row = await found.fetchone()
        return not row[0]

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        async with Oban(pool=self._pool, queues={"default": self._settings["options"]["limit"]}):
            yield


async def main(settings: dict[str, Any]) -> None:
    global JOBS
    JOBS = queue_peer.Jobs(settings["count"])
    logging.getLogger("oban").setLevel(logging.ERROR)
    pool = await Oban.create_pool(settings["database_url"], min_size=4, max_size=12)
    try:
        await queue_peer.work(ObanPeer(settings, pool), JOBS, settings)
    finally:
        await pool.close()


if __name__ == "__main__":
    queue_peer.run(main(json.loads(sys.argv[1])))
