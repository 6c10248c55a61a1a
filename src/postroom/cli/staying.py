"""A process that stays: opened, ready, told to end, drained."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import Any

import uvloop

from postroom import log
from postroom.alerts.deputy import stand_in
from postroom.cli.before_opening import check_settings, room_of
from postroom.cli.garbage import collect_seldom, return_large_pieces
from postroom.cli.house import fit_schema
from postroom.cli.queue_names import QUEUES
from postroom.cli.screen import print_line
from postroom.database.migrate import migrate
from postroom.errors import PostroomError
from postroom.jobs import scheduler_of
from postroom.room import Room
from postroom.settings import unknown_variables
from postroom.telemetry import from_environment
from postroom.wording import count_of

_log = log.get_logger()


class Staying:
    """
    What such a process holds: its room, and the wish to end.

    The first SIGTERM or SIGINT drains: no new leases, attempts in flight are finished and settled.
    The second ends the process at once; what it had begun is known by its marks.
    """

    def __init__(self, room: Room) -> None:
        self.room = room
        self.stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_end, number)

    async def opened(self, *, bring_up_to_date: bool = False) -> bool:
        """Open the room; False where we were told to end meanwhile."""
        await self.unless_stopped(_open(self.room, bring_up_to_date))
        collect_seldom()
        return_large_pieces()
        return not self.stop.is_set()

    async def unless_stopped(self, work: Coroutine[Any, Any, object]) -> None:
        """Do some work; the wish to end breaks it off."""
        task = asyncio.create_task(work)
        stopped = asyncio.create_task(self.stop.wait())
        await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not task.done():
            task.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)
        if not task.cancelled():
            task.result()

    async def run_together(self, *parts: Coroutine[Any, Any, None]) -> None:
        """Run parts until told to end, or until one of them ends: then all do."""
        tasks = [asyncio.create_task(part) for part in parts]
        stopped = asyncio.create_task(self.stop.wait())
        await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
        self.stop.set()
        for end in await asyncio.gather(*tasks, stopped, return_exceptions=True):
            if isinstance(end, BaseException):
                raise end

    def _told_to_end(self, number: signal.Signals) -> None:
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        _log.info("house.ending", signal=number.name)
        self.stop.set()


def stay(work: Callable[[Staying], Awaitable[None]], app: str | None = None) -> None:
    """
    Run a process that stays, from its settings to its end.

    Args:
        app: `module:room`, the program whose room it is.

    Raises:
        WrongUsage: There is no such room.
        ConfigError: A setting is wrong.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_stay(work, app))


async def work_and_serve(staying: Staying) -> None:
    """All of the house."""
    ready = asyncio.Event()
    check_settings(staying.room, handlers=True)
    await _require_address(staying)
    if await staying.opened(bring_up_to_date=True):
        watch = stand_in(staying.room, staying.stop)
        await staying.run_together(_serve(staying, ready), _work_when(ready, staying), watch)


async def schedule(staying: Staying) -> None:
    """The scheduler alone."""
    check_settings(staying.room)
    if await staying.opened():
        scheduler = await scheduler_of(staying.room)
        await staying.run_together(scheduler.run(staying.stop))


async def serve(staying: Staying) -> None:
    """HTTP alone."""
    check_settings(staying.room)
    await _require_address(staying)
    if await staying.opened():
        watch = stand_in(staying.room, staying.stop)
        await staying.run_together(_serve(staying, asyncio.Event()), watch)


@dataclass(frozen=True)
class Work:
    """
    Workers alone.

    Attributes:
        queues: Which: `email`, `webhooks`.
    """

    queues: frozenset[str]

    async def __call__(self, staying: Staying) -> None:
        check_settings(staying.room, webhooks="webhooks" in self.queues, handlers=True)
        if await staying.opened():
            watch = stand_in(staying.room, staying.stop)
            await staying.run_together(*await _workers(staying, self.queues), watch)


@dataclass(frozen=True)
class Drain:
    """
    Workers, until nothing is due.

    Attributes:
        queues: Which: `email`, `webhooks`.
    """

    queues: frozenset[str]

    async def __call__(self, staying: Staying) -> None:
        """
        Raises:
            PostroomError: Something is paused, so what is due stays.
        """
        check_settings(staying.room, webhooks="webhooks" in self.queues, handlers=True)
        if not await staying.opened():
            return
        paused: list[str | None] = []
        if "webhooks" in self.queues:
            paused.append(await _drain_webhooks(staying))
        if "email" in self.queues:
            paused.append(await _drain_emails(staying))
        if why := "; ".join(filter(None, paused)):
            raise PostroomError(f"what is due stays in the queue, since {why}")


async def _drain_emails(staying: Staying) -> str | None:
    """Why what is due stays, where it does."""
    ended = await staying.room.email_engine().run_pass(until_nothing_due=True, stop=staying.stop)
    waiting = f"{ended.put_back:,} put back to wait"
    print_line(f"{count_of(ended.done, 'e-mail')} sent, {ended.failed:,} failed, {waiting}")
    return ended.paused


async def _drain_webhooks(staying: Staying) -> str | None:
    """The same for events."""
    await staying.room.prepare_handlers()
    ended = await staying.room.webhook_engine().run_pass(until_nothing_due=True, stop=staying.stop)
    print_line(f"{count_of(ended.done, 'webhook event')} processed, {ended.failed:,} failed")
    return ended.paused


async def _workers(staying: Staying, queues: Collection[str]) -> list[Coroutine[Any, Any, None]]:
    """A worker of each queue, ready to run."""
    room = staying.room
    if "webhooks" in queues:
        await room.prepare_handlers()
    runs: list[Coroutine[Any, Any, None]] = []
    if "email" in queues:
        runs.append(room.email_engine().run(staying.stop))
    if "webhooks" in queues:
        runs.append(room.webhook_engine().run(staying.stop))
    return runs


async def _stay(work: Callable[[Staying], Awaitable[None]], app: str | None) -> None:
    room = Room() if app is None else room_of(app)
    log.configure(room.settings.log_format, room.settings.log_level)
    room.telemetry = from_environment()
    try:
        await work(Staying(room))
    finally:
        await room.close()
        if room.telemetry is not None:
            await asyncio.to_thread(room.telemetry.close)


async def _open(room: Room, bring_up_to_date: bool) -> None:
    if bring_up_to_date:
        await migrate(await room.database_url(), report=lambda line: _log.info("migration.step", did=line))
    await room.open()
    await fit_schema(room)
    _tell_where(room)


def _tell_where(room: Room) -> None:
    """Where the database is and where e-mail goes: with no settings at all, nobody could guess."""
    for name, meant in unknown_variables().items():
        _log.warning("settings.unknown", variable=name, meant=meant)
    embedded = room.settings.database_url is None
    _log.info(
        "house.opened",
        database=room.database.name,
        embedded_in=str(room.settings.data_dir) if embedded else None,
        transports=[transport.name for transport in room.delivery.transport.transports],
    )


async def _require_address(staying: Staying) -> None:
    """Where HTTP cannot listen, nothing is done at all."""
    from postroom.http.server import require_address

    await require_address(staying.room.settings.host, staying.room.settings.port)


async def _serve(staying: Staying, ready: asyncio.Event) -> None:
    from postroom.http import app
    from postroom.http.server import serve

    def tell(address: str) -> None:
        print(f"ready {address}", flush=True)
        ready.set()

    settings = staying.room.settings
    await serve(app(staying.room), settings.host, settings.port, ready=tell, stop=staying.stop)


async def _work_when(ready: asyncio.Event, staying: Staying) -> None:
    """The workers and the scheduler of `up`: where HTTP gets no port, nothing is begun."""
    await staying.unless_stopped(ready.wait())
    if not staying.stop.is_set():
        workers = await _workers(staying, QUEUES)
        scheduler = await scheduler_of(staying.room)
        await asyncio.gather(*workers, scheduler.run(staying.stop))
