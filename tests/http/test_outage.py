"""The database goes away under the doors, and comes back."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

from postroom import Room
from postroom.database.migrate import migrate
from postroom.email import direct
from postroom.email.message import OutgoingEmail
from postroom.errors import DatabaseUnavailable
from tests.http.conftest import PROCESS, serving, settings_of
from tests.support.postgres import SETTINGS, running_server
from tests.support.waiting import until

# What was committed must outlive the server.
DURABLE = SETTINGS.replace("synchronous_commit = off", "synchronous_commit = on")


async def test_doors_say_that_the_database_is_away_and_work_when_it_is_back(tmp_path: Path) -> None:
    """500 to callers, 503 to the probe, no traceback; nothing has to be started anew."""
    with running_server(settings=DURABLE) as postgres:
        url = postgres.url_of(postgres.create_database())
        await migrate(url)
        async with Room(**settings_of(url, tmp_path)) as room, serving(room) as served:
            assert (await served.send()).status_code == 200
            postgres.stop(signal.SIGQUIT)
            answers = [
                await served.send(),
                await served.send(use_queue=True),
                await served.client.post(PROCESS),
            ]
            assert [answer.status_code for answer in answers] == [500] * 3
            assert {tuple(answer.json()) for answer in answers} == {("error",)}

            async def readiness() -> bool:
                return (await served.client.get("/readyz")).status_code == 503

            await until(readiness)
            assert (await served.client.get("/healthz")).status_code == 200
            postgres.start()

            async def ready() -> bool:
                return (await served.client.get("/readyz")).status_code == 200

            await until(ready)
            assert (await served.send()).status_code == 200
            assert (await served.send(use_queue=True)).status_code == 200
            assert (await served.client.post(PROCESS)).json()["processed"] == 1
            assert len(served.recorder.handed_over) == 3


async def test_a_direct_email_that_is_out_is_answered_though_it_cannot_be_recorded(tmp_path: Path) -> None:
    """The database goes during the attempt: the answer is the truth, and the row follows when it is back."""
    with running_server(settings=DURABLE) as postgres:
        url = postgres.url_of(postgres.create_database())
        await migrate(url)
        async with Room(**settings_of(url, tmp_path)) as room, serving(room) as served:
            let_go = asyncio.Event()

            async def wait(_: OutgoingEmail) -> str:
                await let_go.wait()
                return "250 ok"

            served.recorder.behave = wait
            asking = asyncio.create_task(served.send())
            await until(lambda: len(served.recorder.handed_over) == 1)
            postgres.stop()
            let_go.set()
            answer = await asking
            assert answer.status_code == 200
            postgres.start()

            async def is_sent() -> bool:
                rows = await served.rows()
                return [(str(row["id"]), row["status"]) for row in rows] == [(answer.json()["id"], "sent")]

            await until(is_sent)
            assert len(served.recorder.handed_over) == 1


async def test_a_row_whose_making_was_not_answered_is_not_sent_later(
    tmp_path: Path, database_url: str, monkeypatch: Any
) -> None:
    """The answer to the insert is lost: its caller was told 500, so the row becomes a dead letter."""
    monkeypatch.setattr(direct, "UNKNOWN_AGAIN_S", 0.05)
    async with Room(**settings_of(database_url, tmp_path)) as room, serving(room) as served:
        begin = room.database.fetchrow

        async def lose_the_answer(sql: str, *arguments: object, **options: Any) -> Any:
            found = await begin(sql, *arguments, **options)
            if "begin_direct_email" in sql:
                raise DatabaseUnavailable("the connection was lost")
            return found

        monkeypatch.setattr(room.database, "fetchrow", lose_the_answer)
        answer = await served.send()
        assert answer.status_code == 500

        async def is_dead() -> bool:
            return [row["status"] for row in await served.rows()] == ["dead_letter"]

        await until(is_dead)
        assert served.recorder.handed_over == []
