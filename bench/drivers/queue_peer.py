"""
What every job queue in Python does as a contender. It runs in the peer's own environment, without postroom.

Settings (JSON, first argument): database_url; mode; options (the peer's own settings); count; payload_bytes.
Modes: `migrate` makes its tables; `fill` queues the jobs in batches of 1,000 by its own bulk call, and says
how long each took; `drain` works them off; `latency` queues one now and then, and says how long each took
from its commit to its start in a worker of the same process.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import uvloop

BATCH = 1_000
PAUSE_S_MIN, PAUSE_S_MAX = 0.02, 0.1


class Peer(Protocol):
    """One job queue. `started` is called with a job's number by each job."""

    async def migrate(self) -> None:
        """Make its tables."""

    async def enqueue(self, jobs: list[dict[str, Any]]) -> None:
        """Queue jobs by its bulk call; each is done when the payload has come to `started`."""

    async def enqueue_one(self, job: dict[str, Any]) -> None:
        """Queue one by its call for one."""

    async def is_empty(self) -> bool:
        """Whether all jobs are marked as done."""
        ...

    def working(self) -> AbstractAsyncContextManager[object]:
        """Its worker, at work while the block runs."""
        ...


class Jobs:
    """Counts the jobs that have begun, and when."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.begun = 0
        self.at: dict[int, float] = {}
        self.all_begun = asyncio.Event()
        self.with_times = False

    def started(self, number: int) -> None:
        """A job is here."""
        self.begun += 1
        if self.with_times:
            self.at[number] = time.perf_counter()
        if self.begun == self.count:
            self.all_begun.set()


def payload(number: int, payload_bytes: int) -> dict[str, Any]:
    """A job like ours: a subject and so many bytes of HTML."""
    return {"number": number, "subject": f"Order {number}", "html": "x" * payload_bytes}


async def work(peer: Peer, jobs: Jobs, settings: dict[str, Any]) -> None:
    """Do what the mode says, at the word."""
    words = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(words), sys.stdin)
    if settings["mode"] == "migrate":
        await peer.migrate()
        say("ready")
        return
    say("ready")
    await words.readline()
    answer = await {"fill": _fill, "drain": _drain, "latency": _latency}[settings["mode"]](
        peer, jobs, settings
    )
    say(json.dumps(answer))


async def _fill(peer: Peer, jobs: Jobs, settings: dict[str, Any]) -> dict[str, Any]:
    took_s = []
    for first in range(0, jobs.count, BATCH):
        numbers = range(first, min(first + BATCH, jobs.count))
        batch = [payload(number, settings["payload_bytes"]) for number in numbers]
        began = time.perf_counter()
        await peer.enqueue(batch)
        took_s.append(time.perf_counter() - began)
    return {"took_s": took_s}


async def _drain(peer: Peer, jobs: Jobs, settings: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    async with peer.working():
        await jobs.all_begun.wait()
        while not await peer.is_empty():
            await asyncio.sleep(0.002)
        return {"took_s": time.perf_counter() - began_s, "cpu_s": time.process_time() - began_cpu_s}


async def _latency(peer: Peer, jobs: Jobs, settings: dict[str, Any]) -> dict[str, Any]:
    jobs.with_times = True
    committed: dict[int, float] = {}
    async with peer.working():
        # The first one finds the worker awake and its connections made.
        await peer.enqueue_one(payload(-1, settings["payload_bytes"]))
        while -1 not in jobs.at:
            await asyncio.sleep(0.01)
        for number in range(jobs.count - 1):
            await asyncio.sleep(random.uniform(PAUSE_S_MIN, PAUSE_S_MAX))
            await peer.enqueue_one(payload(number, settings["payload_bytes"]))
            committed[number] = time.perf_counter()
        await asyncio.wait_for(jobs.all_begun.wait(), 30)
    return {"waits_ms": [max(0.0, jobs.at[number] - at) * 1e3 for number, at in committed.items()]}


def say(word: str) -> None:
    """A line to the benchmark."""
    print(word, flush=True)


def run(main: Awaitable[None]) -> None:
    """On uvloop, as postroom."""

    async def awaited() -> None:
        await main

    uvloop.run(awaited())
