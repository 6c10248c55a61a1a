"""Queue policy and scheduled jobs: what there is, and a change."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from postroom import log
from postroom.dashboard.site import actor_of, form_of, page, render, session_of, site_of
from postroom.queue.policy import SettingRefused, read_settings, set_setting
from postroom.schedule.status import read_cron, read_runs

RUNS_SHOWN = 50

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
        notice=notice,
        refused=refused,
        written=written,
    )


@page
async def cron(request: Request) -> Response:
    """The scheduled jobs and their last runs."""
    database = site_of(request).room.database
    return render(
        request, "cron.html", cron=await read_cron(database), runs=await read_runs(database, None, RUNS_SHOWN)
    )
