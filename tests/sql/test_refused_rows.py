"""Rows whose own trigger or constraint refuses our update: they stop no other, and nothing is forgotten."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import asyncpg
import pytest

from tests.sql.session import EMAIL, Queue, Session

RAISE = "RAISE EXCEPTION 'not this one'"
ASSERT = "ASSERT false, 'not this one'"
DIVIDE = "PERFORM 1 / 0"
UNIQUE = "RAISE unique_violation USING MESSAGE = 'not this one'"


async def refuse(
    session: Session, queue: Queue, *ids: UUID, when: str = "true", how: str = RAISE, timing: str = "BEFORE"
) -> None:
    """A trigger of the user's own that refuses updates of some rows while `when` holds."""
    await session.execute(
        "DROP TABLE IF EXISTS public.refused_by_user; CREATE TABLE public.refused_by_user (id uuid)"
    )
    await session.execute("INSERT INTO public.refused_by_user SELECT unnest($1::uuid[])", ids)
    await session.execute(
        f"""
        CREATE OR REPLACE FUNCTION public.users_own() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF ({when}) AND EXISTS (SELECT FROM public.refused_by_user WHERE refused_by_user.id = NEW.id) THEN
                {how};
            END IF;
            RETURN NEW;
        END $$;
        CREATE OR REPLACE TRIGGER users_own {timing} UPDATE ON {queue.table}
            FOR EACH ROW EXECUTE FUNCTION public.users_own()
        """
    )


async def let_be(session: Session) -> None:
    """The user has mended his trigger."""
    await session.execute("TRUNCATE public.refused_by_user")


async def set_aside(session: Session) -> dict[UUID, asyncpg.Record]:
    """The rows that are noted as refused."""
    return {row["id"]: row for row in await session.fetch("SELECT * FROM postroom.refused_rows")}


async def try_again(session: Session) -> Any:
    """Let the five minutes pass, and have the worker tend them."""
    await session.execute("UPDATE postroom.refused_rows SET next_try_at = clock_timestamp()")
    return await session.fetchval("SELECT postroom.settle_refused_emails()")


@pytest.mark.parametrize("how", [RAISE, ASSERT, DIVIDE, UNIQUE])
@pytest.mark.parametrize("timing", ["BEFORE", "AFTER"])
async def test_a_row_that_refuses_its_claim_stops_no_other(
    sql: Session, queue: Queue, how: str, timing: str
) -> None:
    """The others are leased in the same call; the row is named with its error and left as it was."""
    ids = [await sql.insert(queue) for _ in range(5)]
    await refuse(sql, queue, ids[1], ids[3], how=how, timing=timing)
    worker = await sql.worker(queue)
    assert [lease.id for lease in await worker.claim()] == [ids[0], ids[2], ids[4]]
    aside = await set_aside(sql)
    assert set(aside) == {ids[1], ids[3]}
    assert {row["queue"] for row in aside.values()} == {queue.name}
    assert all("not this one" in row["error"] or "division by zero" in row["error"] for row in aside.values())
    row = await sql.row(ids[1], queue)
    assert (row["status"], row["lease_no"], row["attempts"]) == ("pending", 0, 0)
    assert await worker.claim() == []


async def test_a_constraint_refuses_like_a_trigger(sql: Session, queue: Queue) -> None:
    """A CHECK that was added over old rows: NOT VALID, so that only an update meets it."""
    bad, good = await sql.insert(queue, last_error="old"), await sql.insert(queue)
    await sql.execute(f"ALTER TABLE {queue.table} ADD CONSTRAINT own CHECK (last_error <> 'old') NOT VALID")
    assert [lease.id for lease in await (await sql.worker(queue)).claim()] == [good]
    assert "own" in (await set_aside(sql))[bad]["error"]


async def test_an_old_callers_batch_passes_a_refused_row_too(sql: Session, queue: Queue) -> None:
    """The same claim under the name that it knows."""
    bad, good = await sql.insert(queue), await sql.insert(queue)
    await refuse(sql, queue, bad)
    assert [row["id"] for row in await sql.fetch(f"SELECT * FROM {queue.batch}()")] == [good]
    assert set(await set_aside(sql)) == {bad}


async def test_a_row_that_refuses_no_longer_is_claimed_after_five_minutes(sql: Session, queue: Queue) -> None:
    """And until then no claim tries it again."""
    bad = await sql.insert(queue)
    await refuse(sql, queue, bad)
    worker = await sql.worker(queue)
    assert await worker.claim() == []
    await let_be(sql)
    assert await worker.claim() == []
    await sql.execute("UPDATE postroom.refused_rows SET next_try_at = clock_timestamp()")
    assert [lease.id for lease in await worker.claim()] == [bad]


@pytest.mark.parametrize("how", [RAISE, ASSERT])
async def test_a_settle_batch_that_one_row_makes_fail_is_bisected(
    sql: Session, queue: Queue, how: str
) -> None:
    """The others are settled in the same call; the verdict of that one is kept, and nobody claims it."""
    ids = [await sql.insert(queue) for _ in range(4)]
    worker = await sql.worker(queue)
    leases = await worker.claim()
    await worker.begin(*leases)
    await refuse(sql, queue, ids[2], when=f"NEW.status = '{queue.done}'", how=how)
    assert set(await worker.settle("done", *leases, reply="250 ok")) == {ids[0], ids[1], ids[3]}
    (aside,) = (await set_aside(sql)).values()
    assert (aside["id"], aside["lease_no"], aside["verdict"], aside["reply"]) == (ids[2], 1, "done", "250 ok")
    assert "not this one" in aside["error"]
    assert (await sql.row(ids[2], queue))["status"] == "processing"
    await sql.make_due(ids[2], queue=queue)
    await sql.execute("UPDATE postroom.refused_rows SET next_try_at = clock_timestamp() - interval '1s'")
    await let_be(sql)
    assert await (await sql.worker(queue)).claim() == []


@pytest.mark.parametrize(("verdict", "status"), [("done", "sent"), ("permanent", "dead_letter")])
async def test_a_refused_outcome_is_written_when_it_can_be(sql: Session, verdict: str, status: str) -> None:
    """Tried again every five minutes with the verdict that is known, and forgotten when it is written."""
    row_id = await sql.insert()
    worker = await sql.worker()
    lease = await worker.take_one()
    await refuse(sql, EMAIL, row_id, when="NEW.status <> 'processing'")
    assert await worker.settle(verdict, lease, reply="the answer") == []
    assert await sql.fetchval("SELECT postroom.settle_refused_emails()") == 0
    assert await try_again(sql) == 0
    assert (await set_aside(sql))[row_id]["verdict"] == verdict
    await let_be(sql)
    assert await try_again(sql) == 1
    assert await set_aside(sql) == {}
    row = await sql.row(row_id)
    assert (row["status"], row["attempts"]) == (status, 1)


async def test_a_refused_outcome_never_overwrites_a_newer_one(sql: Session) -> None:
    """It is fenced by its lease number like any other."""
    row_id = await sql.insert()
    worker = await sql.worker()
    lease = await worker.take_one()
    await refuse(sql, EMAIL, row_id, when="NEW.status <> 'processing'")
    await worker.settle("temporary", lease)
    await let_be(sql)
    await sql.execute("SELECT mark_email_sent($1)", row_id)
    before = await sql.row(row_id)
    await try_again(sql)
    assert await sql.row(row_id) == before
    assert await set_aside(sql) == {}


async def test_one_refused_outcome_stops_no_other(sql: Session) -> None:
    """Of those that are tried again, each stands for itself; one whose row is gone is forgotten."""
    ids = [await sql.insert() for _ in range(3)]
    worker = await sql.worker()
    leases = await worker.claim()
    await worker.begin(*leases)
    await refuse(sql, EMAIL, *ids, when="NEW.status = 'sent'")
    await worker.settle("done", *leases)
    await sql.execute("DELETE FROM public.refused_by_user WHERE id = $1", ids[1])
    await sql.execute("DELETE FROM email_queue WHERE id = $1", ids[2])
    assert await try_again(sql) == 1
    assert (await sql.row(ids[1]))["status"] == "sent"
    assert set(await set_aside(sql)) == {ids[0]}


async def test_a_crash_whose_settle_is_refused_stops_no_claim(sql: Session, queue: Queue) -> None:
    """A dead worker's row may be the one that refuses."""
    crashed = await sql.insert(queue)
    await (await sql.worker(queue)).die_during(crashed)
    await refuse(sql, queue, crashed)
    waiting = await sql.insert(queue)
    assert [lease.id for lease in await (await sql.worker(queue)).claim()] == [waiting]
    assert (await set_aside(sql))[crashed]["verdict"] == "crashed"


async def test_a_shortage_is_not_blamed_on_a_row(sql: Session, queue: Queue) -> None:
    """A full disk, a conflict, a server that stops: the whole call fails and is repeated later."""
    await sql.insert(queue)
    row_id = await sql.insert(queue)
    await refuse(sql, queue, row_id, how="RAISE disk_full")
    worker = await sql.worker(queue)
    with pytest.raises(asyncpg.DiskFullError):
        await worker.claim()
    assert await set_aside(sql) == {}
    await let_be(sql)
    leases = await worker.claim()
    await refuse(sql, queue, row_id, how="RAISE serialization_failure")
    with pytest.raises(asyncpg.SerializationError):
        await worker.settle("done", *leases)
    assert await set_aside(sql) == {}


async def test_an_old_caller_hears_of_its_own_rows_refusal(sql: Session, queue: Queue) -> None:
    """It named the row, so the error is its own."""
    row_id = await sql.insert(queue)
    await sql.fetch(f"SELECT * FROM {queue.batch}()")
    await refuse(sql, queue, row_id)
    for call in (f"{queue.mark_failed}($1, 'no')", f"{queue.mark_done}($1)"):
        with pytest.raises(asyncpg.RaiseError, match="not this one"):
            await sql.execute(f"SELECT {call}", row_id)
