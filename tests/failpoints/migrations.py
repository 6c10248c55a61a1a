"""An upgrade that is broken at one point: callers go on, and migrate, run again, completes it."""

from __future__ import annotations

import asyncio
import signal
from contextlib import ExitStack
from pathlib import Path
from tempfile import mkdtemp

import psycopg

from tests.failpoints.hatchery import Program
from tests.failpoints.lanes import Bench, until
from tests.failpoints.table import Case, Loss
from tests.support.proxy import Cut, running_proxy
from tests.upgrade.conftest import Project, handmade_project
from tests.upgrade.end_state import end_state

MIGRATE = ("migrate",)


async def break_migration(bench: Bench, whole: dict[str, object], case: Case) -> None:
    """
    Break one upgrade, run it again and compare.

    Args:
        whole: The end state of an upgrade that nothing broke.
    """
    with ExitStack() as stack:
        project = await asyncio.to_thread(stack.enter_context, handmade_project(bench.server))
        url, rule = project.url, None
        if isinstance(case.fault, Loss):
            proxy = stack.enter_context(running_proxy(bench.server.port))
            url = proxy.url_of(project.url)
            rule = proxy.on(
                case.fault.statement, Cut(case.fault.after), within=case.fault.within, skip=case.turn - 1
            )
        folder = Path(mkdtemp(dir=bench.folder))
        victim = bench.hatchery.start(MIGRATE, {"POSTROOM_DATABASE_URL": url, **case.environment}, folder)
        stack.callback(victim.kill)
        await until(lambda: victim.code is not None or victim.is_stopped)
        assert case.fault != "hang" or victim.is_stopped, victim.log
        if victim.is_stopped:
            await asyncio.to_thread(_call_as_before, project)
            victim.signal(signal.SIGCONT)
            await until(lambda: victim.code is not None)
        _check_broken(case, victim)
        assert rule is None or rule.fired == 1
        again = bench.hatchery.start(MIGRATE, {"POSTROOM_DATABASE_URL": project.url}, folder)
        stack.callback(again.kill)
        await until(lambda: again.code is not None)
        assert again.code == 0, again.log
        assert await asyncio.to_thread(end_state, project) == whole


def _check_broken(case: Case, victim: Program) -> None:
    assert "Traceback" not in victim.log, victim.log
    if case.fault == "kill":
        assert victim.code == -9
    elif case.fault == "hang":
        assert victim.code in (0, 1)
    else:
        assert victim.code == 1
    if victim.code == 1:
        assert victim.log.splitlines()[-1].startswith("postroom: "), victim.log


def _call_as_before(project: Project) -> None:
    """An old caller goes on although the upgrade stands still: none of its locks is kept for long."""
    with psycopg.connect(project.url) as caller:
        caller.execute("SET lock_timeout = '30s'")
        for table in ("email_queue", "webhook_retry_queue"):
            caller.execute(f"UPDATE {table} SET attempts = attempts WHERE false")
