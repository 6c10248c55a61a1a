"""POST /functions/v1/process-email-queue: one pass over what is due."""

from __future__ import annotations

import asyncio
from collections import Counter

import httpx
import pytest

from postroom.email.message import OutgoingEmail
from postroom.errors import PermanentFailure, TemporaryFailure, TransportDown
from postroom.http import passes
from tests.http.conftest import PROCESS, Served


async def _process(served: Served) -> dict[str, object]:
    answer = await served.client.post(PROCESS, json={})
    assert answer.status_code == 200
    found: dict[str, object] = answer.json()
    return found


async def _queue(served: Served, count: int, to: str = "u%s@example.com") -> None:
    await served.room.database.execute(
        """
        INSERT INTO email_queue (to_email, subject, html)
        SELECT replace($2, '%s', n::text), 's', 'h' FROM generate_series(1, $1::integer) AS n
        """,
        count,
        to,
    )


async def test_an_empty_queue_is_a_pass_of_nothing(served: Served) -> None:
    """All counts are there; errors are not."""
    expected = {"processed": 0, "failed": 0, "rateLimited": 0, "total": 0}
    assert await _process(served) == expected
    answer = await served.client.post(PROCESS)  # without a body, as cron's callers have it
    assert answer.json() == expected


async def test_what_is_due_goes_out_and_what_fails_is_told(served: Served) -> None:
    """Sent, failed for now and failed for good; a retry that becomes due is for the next pass."""
    await served.set("email.backoff", "1ms")

    async def behave(email: OutgoingEmail) -> str:
        if email.to_email == "u1@example.com":
            raise TemporaryFailure("450 later", code=450)
        if email.to_email == "u2@example.com":
            raise PermanentFailure("550 no such user", code=550)
        return "250 ok"

    served.recorder.behave = behave
    await _queue(served, 7)
    await served.room.database.execute(
        "SELECT enqueue_email('later@example.com', 's', 'h', send_at => now() + interval '1 hour')"
    )
    found = await _process(served)
    errors = found.pop("errors")
    assert found == {"processed": 5, "failed": 2, "rateLimited": 0, "total": 7}
    assert isinstance(errors, list)
    assert sorted(error.partition(": ")[2] for error in errors) == ["450 later", "550 no such user"]


async def test_rows_over_the_global_limit_are_counted_once(served: Served) -> None:
    """12 due against a limit of 5: five go out, seven wait, and the next pass sends none."""
    await served.set("email.limit.global", "5/60s")
    await _queue(served, 12)
    assert await _process(served) == {"processed": 5, "failed": 0, "rateLimited": 7, "total": 12}
    assert await _process(served) == {"processed": 0, "failed": 0, "rateLimited": 7, "total": 7}
    assert Counter(row["status"] for row in await served.rows()) == {"sent": 5, "pending": 7}
    assert {row["attempts"] for row in await served.rows() if row["status"] == "pending"} == {0}


async def test_rows_over_a_recipients_limit_are_counted(served: Served) -> None:
    """They are put back to a time of their own; others go out."""
    await served.set("email.limit.recipient", "3/60s")
    await _queue(served, 8, to="hot@example.com")
    await _queue(served, 4)
    assert await _process(served) == {"processed": 7, "failed": 0, "rateLimited": 5, "total": 12}
    assert await _process(served) == {"processed": 0, "failed": 0, "rateLimited": 0, "total": 0}


async def test_both_limits_count_each_row_once(served: Served) -> None:
    """The sum is what was due."""
    await served.set("email.limit.recipient", "3/60s")
    await served.set("email.limit.global", "6/60s")
    await _queue(served, 8, to="hot@example.com")
    await _queue(served, 10)
    found = await _process(served)
    assert (found["processed"], found["failed"], found["total"]) == (6, 0, 18)


async def test_a_transport_that_is_down_is_told(served: Served) -> None:
    """Nothing is counted as failed, and every row waits as it was."""

    async def down(_: OutgoingEmail) -> str:
        raise TransportDown("connection refused")

    served.recorder.behave = down
    await _queue(served, 30)
    found = await _process(served)
    assert found.pop("errors")
    assert found == {"processed": 0, "failed": 0, "rateLimited": 0, "total": 0}
    assert {(row["status"], row["attempts"], row["error_count"]) for row in await served.rows()} == {
        ("pending", 0, 0)
    }


async def test_passes_at_once_send_each_row_once(served: Served) -> None:
    """Four callers: the counts of all of them are the queue."""
    await _queue(served, 60)
    found = await asyncio.gather(*(_process(served) for _ in range(4)))
    assert sum(int(str(one["processed"])) for one in found) == 60
    assert len(served.recorder.handed_over) == len(set(served.recorder.handed_over)) == 60


async def test_a_pass_is_bounded_in_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """It claims nothing more after its time, and says what it has done."""
    monkeypatch.setattr(passes, "PASS_S_MAX", 0.4)
    served.room.__dict__["settings"] = served.room.settings.model_copy(update={"concurrency": 1})

    async def take_a_moment(_: OutgoingEmail) -> str:
        await asyncio.sleep(0.1)
        return "250 ok"

    served.recorder.behave = take_a_moment
    await _queue(served, 40)
    found = await _process(served)
    assert 0 < int(str(found["processed"])) < 40
    rows = Counter(row["status"] for row in await served.rows())
    assert rows["sent"] == found["processed"]
    assert rows["processing"] == 0


async def test_a_server_that_ends_ends_its_pass(served: Served) -> None:
    """No new leases: what is in flight is finished and answered."""
    served.room.__dict__["settings"] = served.room.settings.model_copy(update={"concurrency": 1})
    let_go = asyncio.Event()

    async def wait(_: OutgoingEmail) -> str:
        await let_go.wait()
        return "250 ok"

    served.recorder.behave = wait
    await _queue(served, 40)
    asking = asyncio.create_task(_process(served))
    while not served.recorder.handed_over:
        await asyncio.sleep(0.01)
    served.stop.set()
    await asyncio.sleep(0.3)
    let_go.set()
    try:
        found = await asking
    except httpx.HTTPError as error:
        raise AssertionError("the pass was cut off") from error
    assert 0 < int(str(found["processed"])) < 40
    assert {row["status"] for row in await served.rows()} == {"sent", "pending"}
