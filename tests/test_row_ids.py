"""Ids of rows that Python makes."""

from __future__ import annotations

from itertools import pairwise
from uuid import UUID

import pytest

from postroom import row_ids
from postroom.row_ids import new_row_id

AT_NS = 1_795_600_000_123_456_789


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """This machine's clock, in ns: what is in the list, one after the other."""
    times: list[int] = []
    monkeypatch.setattr(row_ids, "time_ns", lambda: times.pop(0))
    return times


def test_an_id_has_version_variant_and_time(clock: list[int]) -> None:
    """The fields of RFC 9562, 5.7: ms in 48 bits, version 7, the rest of the time in 12, the variant."""
    clock += [AT_NS]
    made = new_row_id()
    assert (made.version, made.variant) == (7, UUID(int=0x8 << 60).variant)
    assert made.int >> 80 == AT_NS // 1_000_000
    assert made.int >> 64 & 0xFFF == 456_789 * 4096 // 1_000_000


def test_ids_are_in_the_order_of_their_times(clock: list[int]) -> None:
    """As their bytes and as their text, from one quarter of a microsecond to the next."""
    clock += range(AT_NS, AT_NS + 5_000_000, 250)
    made = [new_row_id() for _ in range(20_000)]
    assert all(one < other for one, other in pairwise(made))
    assert [str(one) for one in made] == sorted(str(one) for one in made)


@pytest.mark.parametrize("at_ns", [0, -1, AT_NS, 2**63 - 1], ids=["1970", "before", "now", "in 2262"])
def test_a_clock_that_stands_still_or_is_wrong_makes_no_id_twice(clock: list[int], at_ns: int) -> None:
    """What keeps two ids apart is their 62 random bits; whatever the time, each is of version 7."""
    clock += [at_ns] * 10_000
    made = {new_row_id() for _ in range(10_000)}
    assert len(made) == 10_000
    assert {one.version for one in made} == {7}
    assert all(all(one.int >> bit & 1 for one in made) is False for bit in range(62))
    assert all(any(one.int >> bit & 1 for one in made) for bit in range(62))


def test_a_clock_that_is_set_back_makes_ids_all_the_same(clock: list[int]) -> None:
    """They go before those that were made already, and are others."""
    clock += [AT_NS, AT_NS - 3_600_000_000_000, AT_NS]
    first, back, again = new_row_id(), new_row_id(), new_row_id()
    assert back < min(first, again)
    assert first != again
