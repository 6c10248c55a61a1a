"""
Who watches the watchman: any process that stays looks whether the job `alerts` is run, and else runs it.

Where every scheduler is gone, nobody else could tell it. A run by a deputy is one by hand: in the history,
and one at a time, so of twenty workers one tells it.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import TYPE_CHECKING

from postroom import log
from postroom.errors import DatabaseUnavailable, PostroomError
from postroom.jobs import run_by_name

if TYPE_CHECKING:
    from postroom.room import Room

LOOK_S = 60.0
SILENT_S = 180.0
"""Three minutes without a run: a scheduler that was restarted has run it by then."""

_log = log.get_logger()


async def stand_in(
    room: Room, stop: asyncio.Event, *, look_s: float = LOOK_S, silent_s: float = SILENT_S
) -> None:
    """Look each minute until `stop` is set; does nothing where nobody is to be told."""
    if not room.alerts.targets:
        await stop.wait()
        return
    while not stop.is_set():
        # Spread, so that processes that were started together do not look together.
        with suppress(TimeoutError):
            async with asyncio.timeout(look_s * random.uniform(0.9, 1.1)):
                await stop.wait()
        if stop.is_set():
            return
        try:
            if await _is_silent(room, silent_s):
                _log.warning("alert.stood_in", silent_s=silent_s)
                await run_by_name(room, "alerts")
        except DatabaseUnavailable as error:
            _log.warning("database.away", error=str(error))
        except PostroomError as error:
            _log.warning("alert.not_stood_in", error=str(error))
        except Exception as error:
            # Ours: it must not end a worker.
            _log.error("alert.not_stood_in", error=f"{type(error).__name__}: {error}")


async def _is_silent(room: Room, silent_s: float) -> bool:
    silent: bool | None = await room.database.fetchval(
        """
        SELECT COALESCE(last.start_time, job.last_minute) < clock_timestamp() - make_interval(secs => $1)
        FROM postroom.jobs AS job
        LEFT JOIN LATERAL (
            SELECT run.start_time
            FROM postroom.job_runs AS run
            WHERE run.jobid = job.jobid
            ORDER BY run.runid DESC
            LIMIT 1
        ) AS last ON true
        WHERE job.builtin AND job.jobname = 'alerts' AND job.active
        """,
        silent_s,
    )
    return bool(silent)
