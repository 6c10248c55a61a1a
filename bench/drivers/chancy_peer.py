"""chancy as a contender; see queue_peer. Options: concurrency, polling_interval, eager_polling."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import queue_peer
from chancy import Chancy, Queue, Worker, job

JOBS: queue_peer.Jobs


@job(queue="default")
async def work(*, number: int, subject: str, html: str) -> None:  # noqa: ARG001
    """What a job does."""
    JOBS.started(number)


class ChancyPeer:
    """One worker, its jobs in its own event loop."""

    def __init__(self, settings: dict[str, Any], chancy: Chancy) -> None:
        self._options = settings["options"]
        self._chancy = chancy

    async def migrate(self) -> None:
        await self._chancy.migrate()
        await self._chancy.declare(
            Queue(
                "default",
                concurrency=self._options["concurrency"],
                executor=Chancy.Executor.Async,
                polling_interval=self._options["polling_interval"],
                eager_polling=self._options["eager_polling"],
            ),
            upsert=True,
        )

    async def enqueue(self, jobs: list[dict[str, Any]]) -> None:
        async for _ in self._chancy.push_many([work.job.with_kwargs(**given) for given in jobs]):
            pass

    async def enqueue_one(self, job: dict[str, Any]) -> None:
        await self._chancy.push(work.job.with_kwargs(**job))

    async def is_empty(self) -> bool:
        async with self._chancy.pool.connection() as connection:
            found = await connection.execute(
                "SELECT EXISTS (SELECT FROM chancy_jobs WHERE state NOT IN ('succeeded', 'failed'))"
            )
            row = await found.fetchone()
        return not row[0]

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        async with Worker(self._chancy, register_signal_handlers=False, shutdown_timeout=5):
            yield


async def main(settings: dict[str, Any]) -> None:
    global JOBS
    JOBS = queue_peer.Jobs(settings["count"])
    quiet = logging.getLogger("chancy-bench")
    quiet.setLevel(logging.ERROR)
    async with Chancy(settings["database_url"], log=quiet) as chancy:
        await queue_peer.work(ChancyPeer(settings, chancy), JOBS, settings)


if __name__ == "__main__":
    queue_peer.run(main(json.loads(sys.argv[1])))
