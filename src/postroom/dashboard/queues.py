"""Queues, transports and workers: who works, what is paused, and the buttons that pause and resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from postroom import log
from postroom.dashboard.site import (
    TITLES,
    Form,
    Problem,
    actor_of,
    form_of,
    page,
    render,
    session_of,
    site_of,
)
from postroom.database.connect import Database
from postroom.queue.depths import Depths, read_depths
from postroom.queue.pauses import Kind, Pause, PauseRefused, pause, resume, seconds_of
from postroom.queue.status import WorkerStatus, read_workers
from postroom.queue.transports import TransportStatus, read_transports
from postroom.queues import QUEUES

WORKERS_SHOWN = 100

_log = log.get_logger()


@dataclass(frozen=True, slots=True)
class QueueCard:
    """
    A queue, as the page shows it.

    Attributes:
        held: A person has paused it.
        waiting: Live rows that are not in flight; about so many where that is an estimate.
        workers: How many are alive and claim.
    """

    name: str
    title: str
    path: str
    held: Pause | None
    waiting: int
    about_waiting: bool
    in_flight: int
    oldest_due_s: float
    workers: int


@dataclass(frozen=True, slots=True)
class TransportCard:
    """
    A transport, as the page shows it.

    Attributes:
        held: A person has paused it.
        down: It is down, and tried again by itself.
    """

    status: TransportStatus
    held: Pause | None
    down: Pause | None


@page
async def queues(request: Request) -> Response:
    """The page; on POST, pause or resume one of what it shows."""
    room = site_of(request).room
    notice, refused = None, None
    if request.method == "POST":
        form = await form_of(request)
        known = await read_transports(room.database, room.transport_names, [])
        kind, name = _named(form, [one.name for one in known])
        try:
            notice = await _decide(request, form, kind, name)
        except PauseRefused as error:
            refused = str(error)
    depths = await read_depths(room.database, QUEUES)
    workers = await read_workers(room.database)
    return render(
        request,
        "queues.html",
        queues=[_queue_card(depths, queue.name) for queue in QUEUES],
        transports=_transport_cards(
            depths, await read_transports(room.database, room.transport_names, depths.paused)
        ),
        workers=_alive_first(workers)[:WORKERS_SHOWN],
        more=max(len(workers) - WORKERS_SHOWN, 0),
        notice=notice,
        refused=refused,
    )


def _named(form: Form, known: Sequence[str]) -> tuple[Kind, str]:
    """
    What a form is about.

    Raises:
        Problem: It is not there (404).
    """
    kind, name = form.get("kind"), form.get("name", "")
    if kind == "queue" and name in {queue.name for queue in QUEUES}:
        return "queue", name
    if kind == "transport" and name in known:
        return "transport", name
    raise Problem(404, "There is no such queue or transport: the page shows those that can be paused.")


async def _decide(request: Request, form: Form, kind: Kind, name: str) -> str:
    database: Database = site_of(request).room.database
    note, key_id = form.get("reason", ""), session_of(request).key_id
    what = f"{TITLES[name][0]} is" if kind == "queue" else f"{name} is"
    if form.get("do") == "resume":
        before = await resume(database, kind, name, by=actor_of(request), note=note)
        if before is None:
            return f"{what} not paused: somebody has resumed it already, or its time was over."
        _log.info("dashboard.resumed", kind=kind, name=name, key_id=key_id)
        return f"{what} resumed, everywhere within 5 s."
    span = form.get("for", "").strip()
    for_s = seconds_of(span) if span else None
    await pause(database, kind, name, by=actor_of(request), reason=note, for_s=for_s)
    _log.info("dashboard.paused", kind=kind, name=name, key_id=key_id)
    return f"{what} paused, everywhere within 5 s. What is in flight is finished; nothing is lost."


def _queue_card(depths: Depths, name: str) -> QueueCard:
    title, path = TITLES[name]
    return QueueCard(
        name=name,
        title=title,
        path=path,
        held=next((one for one in depths.paused if (one.kind, one.name) == ("queue", name)), None),
        waiting=depths.waiting(name),
        about_waiting=depths.waiting_is_estimate(name),
        in_flight=depths.live.get((name, "leased"), 0),
        oldest_due_s=depths.oldest_due_s[name],
        workers=sum(worker.queue == name for worker in depths.workers),
    )


def _transport_cards(depths: Depths, known: Sequence[TransportStatus]) -> list[TransportCard]:
    of_transports = [one for one in depths.paused if one.kind == "transport"]
    held = {one.name: one for one in of_transports if one.by_hand}
    down = {one.name: one for one in of_transports if not one.by_hand}
    return [TransportCard(one, held.get(one.name), down.get(one.name)) for one in known]


def _alive_first(workers: Sequence[WorkerStatus]) -> list[WorkerStatus]:
    return sorted(workers, key=lambda worker: (not worker.alive, worker.queue, worker.host, worker.pid))
