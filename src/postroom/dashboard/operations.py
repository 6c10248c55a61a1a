"""Queue policy and scheduled jobs: what there is, and a change."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from postroom import log
from postroom.dashboard.site import Problem, actor_of, form_of, page, render, session_of, site_of
from postroom.errors import DatabaseUnavailable, PostroomError
from postroom.jobs import JobRefused, run_by_name, runnable_jobs
from postroom.queue.policy import SettingRefused, read_settings, set_setting
from postroom.schedule.status import read_cron, read_runs
from postroom.setting_names import POLICY

RUNS_SHOWN = 50
WAITED_S = 5.0
"""For so long a page waits for the job that it has begun."""

_log = log.get_logger()


@page
async def settings(request: Request) -> Response:
    """Queue policy; on POST, change one setting."""
    database = site_of(request).room.database
    notice, refused, written = None, None, {}
    if request.method == "POST":
        form = await form_of(request)
        key, value = form.get("key", "").strip(), form.get("value", "").strip()
        try:
            before, after = await set_setting(database, key, value, by=actor_of(request))
        except SettingRefused as error:
            refused, written = str(error), {key: value}
        else:
            notice = f"{key} is {after} now (it was {before}), everywhere within 5 s."
            _log.info("dashboard.setting", key=key, value=after, key_id=session_of(request).key_id)
    return render(
        request,
        "settings.html",
        settings=await read_settings(database),
        meanings=POLICY,
        notice=notice,
        refused=refused,
        written=written,
    )


@page
async def cron(request: Request) -> Response:
    """The scheduled jobs and their last runs; on POST, run one now."""
    room = site_of(request).room
    notice, failed = None, None
    if request.method == "POST":
        try:
            notice = await _run_job(request, (await form_of(request)).get("job", ""))
        except DatabaseUnavailable:
            raise
        except PostroomError as error:
            failed = str(error)
    schedule = await read_cron(room.database)
    return render(
        request,
        "cron.html",
        cron=schedule,
        runs=await read_runs(room.database, None, RUNS_SHOWN),
        can_run=await runnable_jobs(room, schedule.jobs),
        notice=notice,
        failed=failed,
    )


async def _run_job(request: Request, name: str) -> str:
    """Run a job; what it did, or, where it takes long, that it goes on without this page."""
    site = site_of(request)
    jobs = (await read_cron(site.room.database)).jobs
    called = next((job.name for job in jobs if str(job.jobid) == name and job.name), name)
    task = site.work(run_by_name(site.room, name, by=actor_of(request)))
    await asyncio.wait([task], timeout=WAITED_S)
    if not task.done():
        return f"{called} runs. What becomes of it will stand below."
    try:
        return f"{called}: {task.result()}"
    except JobRefused as error:
        raise Problem(404, f"{error}.") from error
