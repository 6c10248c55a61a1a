"""Limits: exact in any sliding window, one book for the engine and for old callers."""

from __future__ import annotations

import asyncio
import random
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from tests.sql.conftest import Connect
from tests.sql.session import Session, Worker

ADA = "email:recipient:ada@example.com"


async def take(session: Session, key: str, slots: int, limit: int) -> int:
    """What increment_rate_limit answers."""
    return int(
        await session.fetchval("SELECT count FROM increment_rate_limit($1, $2, $3)", key, slots, limit)
    )


async def counter(session: Session, key: str) -> Any:
    """The count in the key's row."""
    return await session.fetchval("SELECT count FROM rate_limit_counters WHERE key = $1", key)


async def age_books(session: Session, by: timedelta) -> None:
    """Let time pass for all books."""
    await session.execute(
        """
        UPDATE rate_limit_counters SET
            taken_at = ARRAY(
                SELECT entry - $1::interval FROM unnest(taken_at) WITH ORDINALITY AS e (entry, n) ORDER BY n
            ),
            window_start = window_start - $1::interval, window_end = window_end - $1::interval,
            updated_at = updated_at - $1::interval
        WHERE taken_at IS NOT NULL
        """,
        by,
    )


def most_in_a_window(times: list[datetime], window: timedelta) -> int:
    """The largest number of times in any window (t, t + window]."""
    ordered = sorted(times)
    most = start = 0
    for end, time in enumerate(ordered):
        while time - ordered[start] >= window:
            start += 1
        most = max(most, end - start + 1)
    return most


async def begun_and_waiting(worker: Worker, limit: int = 100) -> tuple[list[UUID], list[UUID]]:
    """Claim and begin what is due: the ids that got their slots, and those that wait."""
    leases = await worker.claim(limit)
    answers = await worker.begin(*leases) if leases else {}
    of = {
        state: [row_id for row_id, row in answers.items() if row["state"] == state]
        for state in ("begun", "waits")
    }
    return of["begun"], of["waits"]


async def test_an_own_key_counts_in_windows_of_60_seconds(sql: Session) -> None:
    """The first count opens the window; when it has ended, the next one opens another."""
    assert [await take(sql, "login:7", 1, 3) for _ in range(3)] == [1, 2, 3]
    row = await sql.fetchrow("SELECT * FROM rate_limit_counters WHERE key = 'login:7'")
    assert row is not None
    assert (row["count"], row["window_end"] - row["window_start"], row["taken_at"]) == (
        3,
        pytest.approx(timedelta(seconds=60), abs=timedelta(seconds=1)),
        None,
    )
    assert await take(sql, "login:7", 1, 3) == 4
    await sql.execute(
        "UPDATE rate_limit_counters SET window_start = now() - interval '61s', window_end = now()"
    )
    assert await take(sql, "login:7", 2, 3) == 2
    assert await sql.fetchval("SELECT window_end > now() + interval '58s' FROM rate_limit_counters") is True


@pytest.mark.parametrize("key", ["own", "email:global", ADA, "email:type:welcome"])
async def test_what_is_refused_consumes_nothing(sql: Session, key: str) -> None:
    """The answer is above the limit, the row as it was, and a smaller increment still fits."""
    assert await take(sql, key, 3, 5) == 3
    before = await sql.fetchrow("SELECT * FROM rate_limit_counters WHERE key = $1", key)
    assert await take(sql, key, 3, 5) == 6
    assert await take(sql, key, 2147483647, 5) > 5
    assert await sql.fetchrow("SELECT * FROM rate_limit_counters WHERE key = $1", key) == before
    assert await take(sql, key, 2, 5) == 5
    assert await counter(sql, key) == 5
    assert await take(sql, key, 0, 5) == 5
    assert await take(sql, key, 1, 0) > 0


@pytest.mark.parametrize("key", ["own", "email:global"])
async def test_a_refusal_that_no_count_could_tell_is_an_error(sql: Session, key: str) -> None:
    """No integer is above 2147483647: who asks with that as his limit must not take a refusal for a slot."""
    await sql.set("email.limit.global", "3/60s")
    assert await take(sql, key, 3, 2147483647) == 3
    with pytest.raises(asyncpg.InvalidParameterValueError, match=f"the limit {key} is reached"):
        await take(sql, key, 2147483647, 2147483647)
    assert await counter(sql, key) == 3


async def test_nonsense_is_refused(sql: Session) -> None:
    """NULL and negative numbers: a counter never goes down."""
    for arguments in (("k", -1, 5), ("k", 1, -5), (None, 1, 5), ("k", None, 5), ("k", 1, None)):
        with pytest.raises(asyncpg.InvalidParameterValueError, match="must be 0 or more"):
            await sql.fetch("SELECT * FROM increment_rate_limit($1, $2, $3)", *arguments)


async def test_the_lower_of_the_callers_limit_and_the_setting_holds(sql: Session) -> None:
    """A caller that asks with a larger limit than the setting is told that he is above his."""
    await sql.set("email.limit.global", "4/60s")
    await sql.set("email.limit.recipient", "2/60s")
    assert [await take(sql, "email:global", 1, 100) for _ in range(4)] == [1, 2, 3, 4]
    assert await take(sql, "email:global", 1, 100) > 100
    assert [await take(sql, ADA, 1, 100) for _ in range(2)] == [1, 2]
    assert await take(sql, ADA, 1, 100) > 100
    assert await take(sql, "email:recipient:bob@example.com", 1, 1) == 1
    assert await take(sql, "email:recipient:bob@example.com", 1, 1) == 2
    assert await counter(sql, "email:global") == 4
    assert await counter(sql, ADA) == 2


async def test_where_the_setting_is_off_the_callers_own_limit_holds(sql: Session) -> None:
    """`off` lifts the engine's limit, not what the caller asks for."""
    assert [await take(sql, "email:global", 1, 2) for _ in range(3)] == [1, 2, 3]
    assert await counter(sql, "email:global") == 2


async def test_a_recipients_key_is_in_lower_case(sql: Session) -> None:
    """However it is written: one book, the same for old callers and for the engine."""
    await sql.set("email.limit.recipient", "3/60s")
    assert await take(sql, "email:recipient:ADA@Example.com", 1, 3) == 1
    await sql.insert(to_email="Ada@EXAMPLE.com")
    begun, _ = await begun_and_waiting(await sql.worker())
    assert len(begun) == 1
    assert await take(sql, ADA, 1, 3) == 3
    assert await sql.fetchval("SELECT array_agg(key) FROM rate_limit_counters") == [ADA]


async def test_old_callers_and_workers_keep_one_book(sql: Session) -> None:
    """Slots that an old caller took are missing for the engine, and the other way round."""
    await sql.set("email.limit.global", "5/60s")
    assert await take(sql, "email:global", 3, 5) == 3
    await sql.insert_many([f"u{n}@example.com" for n in range(4)])
    worker = await sql.worker()
    begun, _ = await begun_and_waiting(worker)
    assert len(begun) == 2
    assert await counter(sql, "email:global") == 5
    assert await take(sql, "email:global", 1, 5) == 6
    assert await worker.claim() == []


async def test_no_sliding_window_holds_more_than_the_limit(connect: Connect, sql: Session) -> None:
    """Six connections take in bursts, with pauses in between, for several windows of one second."""
    await sql.set("email.limit.global", "20/1s")
    ends = asyncio.get_running_loop().time() + 3.5
    granted: list[datetime] = []

    async def caller(session: Session) -> None:
        while asyncio.get_running_loop().time() < ends:
            for _ in range(random.randint(1, 10)):
                row = await session.fetchrow(
                    "SELECT count, clock_timestamp() AS at FROM increment_rate_limit('email:global', 1, 20)"
                )
                assert row is not None
                if row["count"] <= 20:
                    granted.append(row["at"])
            await asyncio.sleep(random.uniform(0.02, 0.4))

    await asyncio.gather(*[caller(await connect()) for _ in range(6)])
    assert len(granted) > 20, "the limit is used, not only kept"
    assert most_in_a_window(granted, timedelta(seconds=1)) <= 20


async def test_slots_come_back_one_by_one_as_the_window_slides(sql: Session) -> None:
    """Not all at once at a window's end: each slot counts until it is 60 s (and half a second) old."""
    await sql.set("email.limit.global", "3/60s")
    assert await take(sql, "email:global", 2, 3) == 2
    await age_books(sql, timedelta(seconds=40))
    assert await take(sql, "email:global", 1, 3) == 3
    await age_books(sql, timedelta(seconds=20))
    assert await take(sql, "email:global", 1, 3) == 4
    await age_books(sql, timedelta(seconds=1))
    assert await take(sql, "email:global", 2, 3) == 3
    assert await counter(sql, "email:global") == 3
    assert await take(sql, "email:global", 1, 3) == 4
    await age_books(sql, timedelta(seconds=61))
    assert await take(sql, "email:global", 3, 3) == 3


async def test_the_book_is_bounded_whatever_the_limit_is(sql: Session) -> None:
    """Slots of one grain share an entry that is dated with the latest of them."""
    await sql.set("email.limit.global", "100000/60s")
    for _ in range(50):
        await take(sql, "email:global", 10, 100000)
    row = await sql.fetchrow("SELECT cardinality(taken_at) AS entries, count FROM rate_limit_counters")
    assert row is not None
    assert row["count"] == 500
    assert row["entries"] < 25


async def test_a_limit_that_is_off_asks_no_book(sql: Session) -> None:
    """Everything begins, and nothing is written down."""
    await sql.insert_many(["ada@example.com"] * 30)
    begun, waiting = await begun_and_waiting(await sql.worker())
    assert (len(begun), waiting) == (30, [])
    assert await sql.fetchval("SELECT count(*) FROM rate_limit_counters") == 0


async def test_a_mail_that_waits_for_a_limit_uses_up_no_attempt(sql: Session) -> None:
    """It goes back as it was, with the reason and the time; the time is where a slot frees."""
    await sql.set("email.limit.recipient", "1/60s")
    await sql.insert_many(["ada@example.com"] * 2)
    before = await sql.now()
    begun, (waiting,) = await begun_and_waiting(await sql.worker())
    assert len(begun) == 1
    row = await sql.row(waiting)
    assert (row["status"], row["attempts"], row["error_count"], row["last_error"]) == ("pending", 0, 0, None)
    assert (row["waits_for"], row["leased_by"]) == (f"limit:{ADA}", None)
    assert row["next_retry_at"] == row["due_at"]
    wait = row["due_at"] - before
    assert timedelta(seconds=60) <= wait <= timedelta(seconds=63)


async def test_mails_for_a_hot_recipient_are_spread_over_the_coming_windows(sql: Session) -> None:
    """Each is planned once, for the window in which its turn comes."""
    await sql.set("email.limit.recipient", "5/60s")
    await sql.insert_many(["ada@example.com"] * 20)
    worker = await sql.worker()
    begun, waiting = await begun_and_waiting(worker)
    assert (len(begun), len(waiting)) == (5, 15)
    now = await sql.now()
    dues = sorted([(await sql.row(row_id))["due_at"] for row_id in waiting])
    rounds = [round((due_at - now).total_seconds() / 60.8) for due_at in dues]
    assert sorted(rounds) == [1] * 5 + [2] * 5 + [3] * 5
    assert await worker.claim() == []


async def test_a_mail_that_waits_for_the_global_limit_keeps_its_place(sql: Session) -> None:
    """Claims take no more than the global book has left; the others are not touched."""
    await sql.set("email.limit.global", "2/60s")
    ids = await sql.insert_many([f"u{n}@example.com" for n in range(5)])
    before = [await sql.row(row_id) for row_id in ids[2:]]
    worker = await sql.worker()
    begun, waiting = await begun_and_waiting(worker)
    assert (begun, waiting) == (ids[:2], [])
    assert await worker.claim() == []
    assert [await sql.row(row_id) for row_id in ids[2:]] == before
    assert 59 < await sql.fetchval("SELECT postroom.email_wait_s()") < 62
    await age_books(sql, timedelta(seconds=61))
    begun, _ = await begun_and_waiting(worker)
    assert begun == ids[2:4]


async def test_two_workers_that_claimed_for_the_same_global_slots_share_them(sql: Session) -> None:
    """A look promises nothing: what the begin finds taken goes back to its place in the queue."""
    await sql.set("email.limit.global", "3/60s")
    ids = await sql.insert_many([f"u{n}@example.com" for n in range(6)])
    one, two = await sql.worker(), await sql.worker()
    of_one, of_two = await one.claim(), await two.claim()
    assert (len(of_one), len(of_two)) == (3, 3)
    first, second = await one.begin(*of_one), await two.begin(*of_two)
    states = [(first | second)[row_id]["state"] for row_id in ids]
    assert states == ["begun"] * 3 + ["waits"] * 3
    for row_id in ids[3:]:
        row = await sql.row(row_id)
        assert (row["status"], row["waits_for"], row["attempts"]) == ("pending", "limit:email:global", 0)
        assert row["due_at"] <= await sql.now()


async def test_a_slot_is_taken_of_both_limits_or_of_none(sql: Session) -> None:
    """Who is stopped by one limit leaves the other's slot to the next."""
    await sql.set("email.limit.global", "3/60s")
    await sql.set("email.limit.recipient", "1/60s")
    ids = await sql.insert_many(["ada@example.com", "ada@example.com", "bob@example.com"])
    begun, waiting = await begun_and_waiting(await sql.worker())
    assert (begun, waiting) == ([ids[0], ids[2]], [ids[1]])
    assert await counter(sql, "email:global") == 2
    await take(sql, "email:global", 1, 3)
    (carl,) = await sql.insert_many(["carl@example.com"])
    assert await (await sql.worker()).claim() == []
    assert await counter(sql, "email:recipient:carl@example.com") is None
    assert (await sql.row(carl))["status"] == "pending"


@pytest.mark.parametrize("changed", ["100/60s", "off", "1/1s"])
async def test_a_changed_limit_plans_waiting_rows_anew(sql: Session, changed: str) -> None:
    """They are due at once; who must wait still gets a time by the new limit."""
    await sql.set("email.limit.recipient", "1/31d")
    ids = await sql.insert_many(["ada@example.com"] * 4)
    later = await sql.insert(to_email="bob@example.com", next_retry_at=await sql.now() + timedelta(hours=1))
    worker = await sql.worker()
    await begun_and_waiting(worker)
    assert await sql.fetchval("SELECT postroom.replan_limited_emails(100)") == 0
    await sql.set("email.limit.recipient", changed)
    assert await sql.fetchval("SELECT postroom.replan_limited_emails(2)") == 2
    assert await sql.fetchval("SELECT postroom.replan_limited_emails(100)") == 1
    assert await sql.fetchval("SELECT postroom.replan_limited_emails(100)") == 0
    assert (await sql.row(later))["waits_for"] == "send_at"
    begun, waiting = await begun_and_waiting(worker)
    if changed == "1/1s":
        assert begun == []
        soon = await sql.now() + timedelta(seconds=6)
        assert all([(await sql.row(row_id))["due_at"] < soon for row_id in waiting])
    else:
        assert (begun, waiting) == (ids[1:], [])


async def test_a_changed_global_limit_is_in_force_at_the_next_claim(sql: Session) -> None:
    """Rows that wait for it were never touched, so there is nothing to plan anew."""
    await sql.set("email.limit.global", "1/31d")
    ids = await sql.insert_many([f"u{n}@example.com" for n in range(3)])
    worker = await sql.worker()
    assert await begun_and_waiting(worker) == (ids[:1], [])
    await sql.set("email.limit.global", "3/31d")
    assert await begun_and_waiting(worker) == (ids[1:], [])
    await sql.set("email.limit.global", "1/31d")
    await sql.insert()
    assert await worker.claim() == []
    await sql.set("email.limit.global", "off")
    assert len(await worker.claim()) == 1


@pytest.mark.parametrize("key", ["email:global", ADA])
async def test_a_clock_that_was_set_back_costs_one_window_at_most(sql: Session, key: str) -> None:
    """The book's times lie a day ahead: they count from now on, and no slot is given twice."""
    await sql.set("email.limit.global", "2/60s")
    await sql.set("email.limit.recipient", "2/60s")
    assert await take(sql, key, 2, 2) == 2
    await age_books(sql, timedelta(days=-1))
    await sql.insert_many(["ada@example.com"] * 2)
    worker = await sql.worker()
    begun, waiting = await begun_and_waiting(worker)
    assert begun == []
    await age_books(sql, timedelta(seconds=61))
    if waiting:
        await sql.make_due(*waiting)
    begun, waiting = await begun_and_waiting(worker)
    assert (len(begun), waiting) == (2, [])


async def test_a_direct_send_does_not_wait_a_day_for_a_clock_that_was_set_back(sql: Session) -> None:
    """What it is told to wait is a window at most."""
    await sql.set("email.limit.global", "1/60s")
    await take(sql, "email:global", 1, 1)
    await age_books(sql, timedelta(days=-1))
    wait_s = await sql.fetchval("SELECT wait_s FROM postroom.free_slots('email:global')")
    assert wait_s is None or wait_s < 62


async def test_a_clock_that_lags_a_little_gives_no_slot_twice(sql: Session) -> None:
    """Times up to a second ahead stay as they are: the book's own last time is the present."""
    await sql.set("email.limit.global", "2/60s")
    await take(sql, "email:global", 2, 2)
    await age_books(sql, timedelta(milliseconds=-800))
    assert await take(sql, "email:global", 1, 2) == 3
    assert await sql.fetchval("SELECT wait_s FROM postroom.free_slots('email:global')") < 62


async def test_a_hand_made_counter_becomes_a_book(sql: Session) -> None:
    """A window that is open counts with its present count, one that has ended with nothing."""
    await sql.set("email.limit.global", "5/60s")
    await sql.set("email.limit.recipient", "5/60s")
    await sql.execute(
        """
        INSERT INTO rate_limit_counters (key, count, window_start, window_end, updated_at) VALUES
            ('email:global', 4, now() - interval '10s', now() + interval '50s', now()),
            ($1, 5, now() - interval '70s', now() - interval '10s', now() - interval '15s'),
            ('email:recipient:bob@example.com', NULL, NULL, NULL, NULL)
        """,
        ADA,
    )
    assert await take(sql, ADA, 2, 5) == 2
    assert await take(sql, "email:recipient:bob@example.com", 1, 5) == 1
    assert await take(sql, "email:global", 1, 5) == 5
    assert await take(sql, "email:global", 1, 5) == 6
    await age_books(sql, timedelta(seconds=61))
    assert await take(sql, "email:global", 5, 5) == 5


async def test_cleanup_forgets_windows_that_have_ended_and_no_other(sql: Session) -> None:
    """Own keys and books alike; a book with mails that wait in its line stays."""
    await sql.set("email.limit.recipient", "1/60s")
    for key in ("own:ended", "email:recipient:ended@example.com"):
        await take(sql, key, 1, 5)
    await sql.insert_many(["ada@example.com"] * 2)
    await begun_and_waiting(await sql.worker())
    await sql.execute("UPDATE rate_limit_counters SET window_end = now() - interval '1s'")
    for key in ("own:open", "email:recipient:open@example.com"):
        await take(sql, key, 1, 5)
    await sql.execute("SELECT cleanup_rate_limit_counters()")
    left = await sql.fetchval("SELECT array_agg(key) FROM rate_limit_counters")
    assert set(left) == {"own:open", "email:recipient:open@example.com", ADA}


async def test_books_that_have_ended_are_forgotten_in_steps(sql: Session) -> None:
    """Those of the engine alone, a bounded number of keys a step; what counts or has a line stays."""
    await sql.set("email.limit.recipient", "1/60s")
    await take(sql, "own:ended", 1, 5)
    await sql.insert_many(["ada@example.com"] * 2)
    await begun_and_waiting(await sql.worker())
    await sql.execute(
        "SELECT increment_rate_limit('email:domain:d' || n, 1, 5) FROM generate_series(1, 25) AS n"
    )
    await sql.execute("UPDATE rate_limit_counters SET window_end = now() - interval '1s'")
    await take(sql, "email:domain:d7", 1, 5)
    steps = 0
    after: str | None = ""
    while after is not None:
        after = await sql.fetchval("SELECT postroom.forget_ended_books($1, 10)", after)
        steps += 1
    assert steps == 3
    left = await sql.fetchval("SELECT array_agg(key ORDER BY key) FROM rate_limit_counters")
    assert left == ["email:domain:d7", ADA, "own:ended"]


async def test_cleanup_waits_for_nobody(connect: Connect, sql: Session) -> None:
    """A counter that somebody holds is passed over."""
    await take(sql, "own", 1, 5)
    await sql.execute("UPDATE rate_limit_counters SET window_end = now() - interval '1s'")
    holder = await connect()
    async with holder.transaction():
        await take(holder, "own", 1, 5)
        await asyncio.wait_for(sql.execute("SELECT cleanup_rate_limit_counters()"), 20)
    assert await counter(sql, "own") == 1


@pytest.mark.parametrize("key", ["own", "email:global"])
async def test_concurrent_increments_lose_none_and_grant_none_too_many(
    connect: Connect, sql: Session, key: str
) -> None:
    """Eight connections, 20 takes each, 50 slots: each of the 50 is given once."""

    async def twenty(session: Session) -> list[int]:
        return [await take(session, key, 1, 50) for _ in range(20)]

    answers = await asyncio.gather(*[twenty(await connect()) for _ in range(8)])
    assert sorted(count for counts in answers for count in counts if count <= 50) == list(range(1, 51))
    assert await counter(sql, key) == 50


async def test_workers_over_crossed_recipients_never_deadlock(connect: Connect, sql: Session) -> None:
    """Four workers' batches name the same recipients in crossed orders: all get through, the books add up."""
    await sql.set("email.limit.global", "1000/60s")
    await sql.set("email.limit.recipient", "1000/60s")
    names = [f"{letter}@example.com" for letter in "abcdefgh"]
    batches = {}
    for number in range(4):
        session = await connect()
        worker = await session.worker()
        rounds = []
        for _ in range(8):
            await session.insert_many(names if number % 2 else names[::-1])
            rounds.append(await worker.claim())
        batches[worker] = rounds

    async def begin_all(worker: Worker, rounds: list[Any]) -> int:
        return sum([len(await worker.begin(*leases)) for leases in rounds])

    begun = await asyncio.wait_for(
        asyncio.gather(*[begin_all(w, rounds) for w, rounds in batches.items()]), 60
    )
    assert begun == [64] * 4
    assert await counter(sql, "email:global") == 256
    assert (
        await sql.fetchval("SELECT min(count) FROM rate_limit_counters WHERE key LIKE 'email:recipient:%'")
        == 32
    )


async def test_a_batch_for_crossed_recipients_takes_all_or_none_for_each_mail(sql: Session) -> None:
    """The sum over the recipients' books is the global book's."""
    await sql.set("email.limit.global", "7/60s")
    await sql.set("email.limit.recipient", "2/60s")
    await sql.insert_many([f"{letter}@example.com" for letter in "abcabcabcdd"])
    worker = await sql.worker()
    begun: list[UUID] = []
    while (claimed := await begun_and_waiting(worker))[0] or claimed[1]:
        begun += claimed[0]
    assert len(begun) == 7
    assert await counter(sql, "email:global") == 7
    booked = await sql.fetchval(
        "SELECT sum(count) FROM rate_limit_counters WHERE key LIKE 'email:recipient:%'"
    )
    assert booked == 7
    most = await sql.fetchval("SELECT max(count) FROM rate_limit_counters WHERE key LIKE 'email:recipient:%'")
    assert most == 2


async def test_a_higher_priority_passes_the_line_of_its_recipient(sql: Session) -> None:
    """An urgent mail takes the next slot although others have stood in line for it."""
    await sql.set("email.limit.recipient", "1/60s")
    await sql.insert_many(["ada@example.com"] * 3)
    worker = await sql.worker()
    _, waiting = await begun_and_waiting(worker)
    urgent = await sql.insert(to_email="ada@example.com", priority=1)
    plain = await sql.insert(to_email="ada@example.com")
    await age_books(sql, timedelta(seconds=61))
    assert await begun_and_waiting(worker) == ([urgent], [])
    assert (await sql.row(plain))["waits_for"] == f"limit:{ADA}"
    assert (await sql.row(plain))["due_at"] > (await sql.row(waiting[-1]))["due_at"] - timedelta(seconds=62)


async def test_a_newcomer_stands_behind_those_that_wait(sql: Session) -> None:
    """The slot that frees belongs to the mail that was told to come back for it."""
    await sql.set("email.limit.recipient", "1/60s")
    await sql.insert_many(["ada@example.com"] * 2)
    worker = await sql.worker()
    _, (ticket,) = await begun_and_waiting(worker)
    await age_books(sql, timedelta(seconds=61))
    newcomer = await sql.insert(to_email="ada@example.com")
    assert await begun_and_waiting(worker) == ([], [])
    assert (await sql.row(newcomer))["waits_for"] == f"limit:{ADA}"
    await sql.make_due(ticket)
    assert await begun_and_waiting(worker) == ([ticket], [])
