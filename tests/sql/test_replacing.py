"""A dead letter that is mended: one new e-mail, whoever else mends it at the same time."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from tests.sql.conftest import Connect
from tests.sql.session import Session

REPLACE = "SELECT postroom.replace_dead_email($1, $2, NULL, NULL, NULL, 'ada')"


async def dead(sql: Session, **columns: Any) -> UUID:
    """A dead letter."""
    return await sql.insert(status="dead_letter", dead_reason="permanent", attempts=1, **columns)


async def test_all_that_was_not_changed_is_kept_but_the_key(sql: Session) -> None:
    """The old one is discarded and names the new one; the new one names the old one and begins anew."""
    old = await dead(
        sql,
        from_email="shop@example.com",
        reply_to="help@example.com",
        email_type="receipt",
        metadata=json.dumps({"order": 7}),
        headers=json.dumps({"List-Id": "x"}),
        priority=4,
        text="plain",
        max_attempts=1,
        idempotency_key="k",
    )
    new = await sql.fetchval(REPLACE, old, "bob@example.com")
    row, before = await sql.row(new), await sql.row(old)
    kept = ("subject", "html", "text", "from_email", "reply_to", "email_type", "headers", "priority")
    assert [row[name] for name in kept] == [before[name] for name in kept]
    assert json.loads(row["metadata"]) == {"order": 7, "replaces": str(old)}
    assert (row["to_email"], row["status"], row["attempts"]) == ("bob@example.com", "pending", 0)
    assert (row["idempotency_key"], row["max_attempts"]) == (None, 6)
    entry = json.loads(before["attempt_log"])[-1]
    assert (entry["outcome"], entry["by"], entry["by_email"]) == ("replaced", "ada", str(new))
    assert (before["status"], before["idempotency_key"]) == ("failed", "k")


async def test_two_who_mend_the_same_one_make_one_email(connect: Connect, sql: Session) -> None:
    """The second waits for the first, and finds no dead letter any more, unless the first gives up."""
    for commits in (True, False):
        old, first = await dead(sql), await connect()
        transaction = first.transaction()
        await transaction.start()
        await first.fetchval(REPLACE, old, "bob@example.com")
        second = await connect()
        waiting = asyncio.ensure_future(second.fetchval(REPLACE, old, "eve@example.com"))
        await sql.until_blocked(second, waiting)
        if commits:
            await transaction.commit()
            with pytest.raises(asyncpg.PostgresError) as refused:
                await waiting
            assert refused.value.sqlstate == "PR002"
        else:
            await transaction.rollback()
            await waiting
        made = await sql.fetch(
            "SELECT to_email FROM email_queue WHERE metadata ->> 'replaces' = $1", str(old)
        )
        assert [row["to_email"] for row in made] == ["bob@example.com" if commits else "eve@example.com"]


async def test_a_mended_email_that_could_not_be_stored_leaves_the_old_one_as_it_is(sql: Session) -> None:
    """Both, or neither."""
    old = await dead(sql)
    with pytest.raises(asyncpg.InvalidParameterValueError):
        await sql.fetchval(REPLACE, old, "nobody")
    assert (await sql.row(old))["status"] == "dead_letter"
    for other in (await sql.insert(), UUID(int=7)):
        with pytest.raises(asyncpg.PostgresError, match="no dead letter"):
            await sql.fetchval(REPLACE, other, "bob@example.com")
