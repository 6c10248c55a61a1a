"""Large e-mails: what a worker holds of them, and renders at once."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from postroom.email import burden as module
from postroom.email.burden import HELD_CHARACTERS_MAX, LARGE_CHARACTERS, Burden, is_large
from postroom.email.message import OutgoingEmail
from postroom.queue.claim import Claim
from tests.email.conftest import NewEmail
from tests.support.waiting import until

QUARTER = "x" * (HELD_CHARACTERS_MAX // 4 - 10)  # with their text of 10


def claimed(email: OutgoingEmail, lease_s: float = 60.0) -> Claim[OutgoingEmail]:
    return Claim(email.id, email, 1, lease_s, monotonic() + lease_s)


async def test_small_mails_are_claimed_as_many_as_asked_for(new_email: NewEmail) -> None:
    """A claim of ordinary mails is never cut, once the first one has shown how large they are."""
    burden = Burden()
    assert await burden.room(400) == 16
    burden.take([claimed(new_email()) for _ in range(16)])
    assert await burden.room(400) == 400


async def test_claim_after_large_mails_is_as_small_as_they_are_large(new_email: NewEmail) -> None:
    """What is held and what is asked for stay within the bound, if the next ones are like the last ones."""
    burden = Burden()
    claims = [claimed(new_email(html=QUARTER)) for _ in range(2)]
    burden.take(claims)
    assert await burden.room(400) == 2
    await burden.put(claim.id for claim in claims)
    assert await burden.room(400) == 4


async def test_claims_wait_until_large_mails_are_settled(
    new_email: NewEmail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that brings room lets the next claim go on; nothing comes where none does."""
    burden = Burden()
    claims = [claimed(new_email(html=QUARTER)) for _ in range(4)]
    burden.take(claims)
    waiting = asyncio.create_task(burden.room(400))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    await burden.put([claims[0].id])
    assert await waiting == 1
    burden.take([claimed(new_email(html=QUARTER))])
    monkeypatch.setattr(module, "WAIT_S_MAX", 0.01)
    assert await burden.room(400) == 0


async def test_lost_lease_holds_nothing(new_email: NewEmail) -> None:
    """Nobody settles it: another worker has the e-mail."""
    burden = Burden()
    burden.take([claimed(new_email(html=QUARTER), lease_s=0.0) for _ in range(4)])
    assert await burden.room(400) == 4


async def test_large_mails_go_side_by_side_as_far_as_they_fit(new_email: NewEmail) -> None:
    """Four quarters at once, the fifth when one has ended; one that is larger than all goes alone."""
    burden, at_once, most, release = Burden(), 0, 0, asyncio.Event()

    async def attempt(email: OutgoingEmail) -> None:
        nonlocal at_once, most
        async with burden.in_flight(email):
            at_once += 1
            most = max(most, at_once)
            await release.wait()
            at_once -= 1

    attempts = [asyncio.create_task(attempt(new_email(html=QUARTER))) for _ in range(6)]
    attempts.append(asyncio.create_task(attempt(new_email(html=QUARTER * 5))))
    await until(lambda: at_once == 4)
    release.set()
    await asyncio.gather(*attempts)
    assert (most, at_once) == (4, 0)


@pytest.mark.parametrize(("characters", "large"), [(LARGE_CHARACTERS, False), (LARGE_CHARACTERS + 1, True)])
def test_plain_part_counts_too(new_email: NewEmail, characters: int, large: bool) -> None:
    """html and text together."""
    assert is_large(new_email(html="x" * 10, text="x" * (characters - 10))) is large
