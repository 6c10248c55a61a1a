"""procrastinate as a contender; see queue_peer. Options: concurrency, delete_jobs."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import queue_peer
from procrastinate import App, PsycopgConnector


class ProcrastinatePeer:
    """One worker with its pool."""

    def __init__(self, settings: dict[str, Any], jobs: queue_peer.Jobs) -> None:
        self._settings = settings
        self.app = App(connector=PsycopgConnector(conninfo=settings["database_url"], min_size=4, max_size=20))

        @self.app.task(name="work")
        async def work(number: int, subject: str, html: str) -> None:  # noqa: ARG001
            jobs.started(number)

        self._work = work

    async def migrate(self) -> None:
        await self.app.schema_manager.apply_schema_async()

    async def enqueue(self, jobs: list[dict[str, Any]]) -> None:
        await self._work.batch_defer_async(*jobs)

    async def enqueue_one(self, job: dict[str, Any]) -> None:
        await self._work.defer_async(**job)

    async def is_empty(self) -> bool:
        found = await self.app.connector.execute_query_one_async(
            "SELECT EXISTS (SELECT FROM procrastinate_jobs WHERE status IN ('todo', 'doing')) AS some"
        )
        return not found["some"]

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        options = self._settings["options"]
        running = asyncio.create_task(
            self.app.run_worker_async(
                concurrency=options["concurrency"],
                delete_jobs=options["delete_jobs"],
                install_signal_handlers=False,
                update_heartbeat_interval=10,
            )
        )
        yield
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def main(settings: dict[str, Any]) -> None:
    logging.getLogger("procrastinate").setLevel(logging.WARNING)
    async with await psycopg.AsyncConnection.connect(settings["database_url"]):
        pass  # an address that is wrong says so here
    jobs = queue_peer.Jobs(settings["count"])
    peer = ProcrastinatePeer(settings, jobs)
    async with peer.app.open_async():
        await queue_peer.work(peer, jobs, settings)


if __name__ == "__main__":
    queue_peer.run(main(json.loads(sys.argv[1])))
