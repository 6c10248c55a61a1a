"""How long each handler takes, and how it ends: counted with the event's outcome."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from postroom import PermanentFailure, Room
from postroom.queue.times import read_stats
from postroom.testing import signed
from postroom.webhooks.store import WebhookStore
from tests.http.conftest import Served, serving, settings_of

SECRET = "whsec_times"


async def post(served: Served, count: int) -> None:
    """Some events of Stripe's."""
    for number in range(count):
        request = signed("stripe", {"id": f"evt_{number}", "type": "charge.failed"}, SECRET)
        await served.client.post("/webhooks/stripe", content=request.body, headers=dict(request.headers))


async def test_each_handler_is_counted_by_how_it_ended(database_url: str, tmp_path: Path) -> None:
    """In `stats --by handler` and at /metrics; the event's own figures are as they were."""
    async with Room(**settings_of(database_url, tmp_path, stripe_webhook_secret=SECRET)) as room:

        @room.on("stripe", name="quick")
        async def quick(event: Any, db: Any) -> None:
            pass

        @room.on("stripe", name="slow")
        async def slow(event: Any, db: Any) -> None:
            await asyncio.sleep(0.05)
            raise ValueError("later")

        @room.on("stripe", name="never")
        async def never(event: Any, db: Any) -> None:
            raise PermanentFailure("not that one")

        async with serving(room) as served:
            await post(served, 2)
            await room.prepare_handlers()
            await room.webhook_engine().run_pass()
            found = await read_stats(room.database, timedelta(hours=1), "handler")
            assert {line.kind: line.outcomes for line in found.lines} == {
                "stripe/quick": {"done": 2},
                "stripe/slow": {"temporary": 2},
                "stripe/never": {"permanent": 2},
            }
            times = {line.kind: line.times["attempt"].percentile_ms(0.5) or 0.0 for line in found.lines}
            assert times["stripe/slow"] > 40  # it slept for 50 ms; the others as long as the machine took
            events = await read_stats(room.database, timedelta(hours=1), None)
            assert [(line.queue, line.kind, line.attempts) for line in events.lines] == [
                ("webhook", "stripe", 2)
            ]
            samples = [
                sample
                for family in text_string_to_metric_families((await served.client.get("/metrics")).text)
                for sample in family.samples
            ]
    runs = {
        (one.labels["source"], one.labels["handler"], one.labels["outcome"]): one.value
        for one in samples
        if one.name == "postroom_handler_seconds_count"
    }
    assert runs == {
        ("stripe", "quick", "done"): 2,
        ("stripe", "slow", "temporary"): 2,
        ("stripe", "never", "permanent"): 2,
    }
    assert not any(one.labels.get("queue") == "handler" for one in samples)


async def test_a_settle_that_is_repeated_counts_its_handlers_once(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer was lost, so the worker sends it again: no row is found, nothing is counted."""
    settle, calls = WebhookStore.settle, []

    async def twice(*args: Any) -> Any:
        settled = await settle(*args)
        calls.append(await settle(*args))
        return settled

    monkeypatch.setattr(WebhookStore, "settle", twice)
    async with Room(**settings_of(database_url, tmp_path, stripe_webhook_secret=SECRET)) as room:

        @room.on("stripe", name="quick")
        async def quick(event: Any, db: Any) -> None:
            pass

        async with serving(room) as served:
            await post(served, 1)
            await room.prepare_handlers()
            await room.webhook_engine().run_pass()
            found = await read_stats(room.database, timedelta(hours=1), "handler")
    assert calls == [[]]
    assert [line.attempts for line in found.lines] == [1]
