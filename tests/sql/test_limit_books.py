"""A book against the plain definition: no window holds more than N, and nobody waits who need not."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Database = psycopg.Connection[tuple[object, ...]]
AHEAD_S = 0.5
"""A slot is good for 250 ms, and the network may take as long: the mail is seen so much later at most."""

steps = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.001, 0.02, 0.1, 0.4, 0.9, 1.4, 3.0]),  # windows that pass before it
        st.integers(1, 12),  # slots that are asked for
        st.booleans(),  # by the engine, or by an old caller
        st.sampled_from([0.0, 0.25, AHEAD_S - 0.001]),  # how late the mails are seen
    ),
    min_size=5,
    max_size=40,
)


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    """One database for all examples."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("SELECT postroom.set_setting('email.limit.recipient', 'off')")
        yield connection


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps, amount=st.integers(1, 15), window_s=st.sampled_from([1, 7, 60]))
def test_a_book_is_the_times_of_the_last_n(
    db: Database, steps: list[tuple[float, int, bool, float]], amount: int, window_s: int
) -> None:
    """
    Time passes and slots are asked for, in any order.

    Whatever the mails' delays are, no window of the setting's length holds more than N of them; and a refusal
    is right: the slots of the book's window (500 ms and a grain longer) would not have been enough.
    """
    db.execute("DELETE FROM rate_limit_counters")
    db.execute("SELECT postroom.set_setting('email.limit.global', %s)", (f"{amount}/{window_s}s",))
    granted: list[tuple[float, int]] = []
    seen: list[float] = []
    passed_s = 0.0
    for windows, slots, by_engine, delay_s in steps:
        if windows:
            _age(db, windows * window_s)
            passed_s += windows * window_s
        before, taken, after = _take(db, slots, amount, window_s, by_engine=by_engine)
        if taken:
            granted.append((after + passed_s, slots))
            seen += [min(max(after, before + delay_s), before + AHEAD_S) + passed_s] * slots
        else:
            since = before + passed_s - (window_s + AHEAD_S + window_s / 200)
            used = sum(number for at, number in granted if at > since)
            assert used + slots > amount
    seen.sort()
    assert all(late - early >= window_s for early, late in zip(seen, seen[amount:], strict=False))


@pytest.mark.parametrize(("limit", "window_s"), [("100000/1s", 1), ("1000/60s", 60), ("7/31d", 31 * 86_400)])
def test_a_books_list_is_bounded_whatever_the_limit_is(db: Database, limit: str, window_s: int) -> None:
    """However often slots are taken: an entry for each 200th of the window, as long as it counts."""
    db.execute("DELETE FROM rate_limit_counters")
    db.execute("SELECT postroom.set_setting('email.limit.global', %s)", (limit,))
    most = 0
    for _ in range(300):
        _age(db, window_s / 200)  # whole grains, so that they stay where they are
        for by_engine in (True, False):
            _take(db, 1, 100_000, window_s, by_engine=by_engine)
        row = db.execute("SELECT taken_at, taken, count FROM rate_limit_counters").fetchone()
        assert row is not None
        taken_at, taken, count = row
        assert isinstance(taken_at, list)
        assert isinstance(taken, list)
        assert sum(taken) == count
        assert all(early <= late for early, late in pairwise(taken_at))
        most = max(most, len(taken_at))
    # A few more, where two slots of a step lie on both sides of a grain's end.
    assert most <= 1.1 * (200 * (window_s + AHEAD_S) / window_s + 2)


def _age(db: Database, by_s: float) -> None:
    db.execute(
        """
        UPDATE rate_limit_counters SET
            taken_at = ARRAY(
                SELECT entry - make_interval(secs => %(by)s)
                FROM unnest(taken_at) WITH ORDINALITY AS e (entry, n) ORDER BY n
            ),
            window_start = window_start - make_interval(secs => %(by)s),
            window_end = window_end - make_interval(secs => %(by)s)
        """,
        {"by": by_s},
    )


def _take(
    db: Database, slots: int, amount: int, window_s: int, *, by_engine: bool
) -> tuple[float, bool, float]:
    """Ask for slots: the database's clock before, whether they were given, and the clock after."""
    taken = (
        "postroom.take_slots_at_once(ARRAY['email:global'], ARRAY[%(slots)s::int], ARRAY[%(amount)s::int], "
        "ARRAY[make_interval(secs => %(window)s)])"
        if by_engine
        else "(SELECT count <= %(amount)s FROM increment_rate_limit('email:global', %(slots)s, %(amount)s))"
    )
    row = db.execute(
        f"""
        SELECT extract(EPOCH FROM statement_timestamp())::float8, {taken},
            extract(EPOCH FROM clock_timestamp())::float8
        """,
        {"slots": slots, "amount": amount, "window": window_s},
    ).fetchone()
    assert row is not None
    before, given_, after = row
    assert isinstance(before, float)
    assert isinstance(after, float)
    return before, bool(given_), after
