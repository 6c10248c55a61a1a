"""How much of large e-mails a worker holds in its memory, and how much it may."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

from postroom.email.message import OutgoingEmail
from postroom.queue.claim import Claim

LARGE_CHARACTERS = 256 * 1024
"""Smaller e-mails are not counted: a full buffer of them is what a worker is made for."""

HELD_CHARACTERS_MAX = 64 * 1024 * 1024
"""Of large e-mails, so much is claimed and not settled, and so much is rendered and sent at once; or one."""

MEAN_AT_FIRST = 4.0 * 1024 * 1024
"""The first claim is made as though all e-mails were so large: 16 at most."""

WAIT_S_MAX = 1.0


class Burden:
    """
    Counts the bodies of large e-mails: claims wait while there are too many, attempts for each other.

    A worker's buffer is measured in rows. 40 of them with 10 MB each, rendered at once, took 1.4 GB.
    Attachments are no part of a claim: they are read within in_flight(), which counts them.
    """

    def __init__(self) -> None:
        self._held: dict[UUID, Claim[OutgoingEmail]] = {}
        self._in_flight = 0
        self._mean = MEAN_AT_FIRST
        self._freed = asyncio.Condition()

    async def room(self, limit: int) -> int:
        """How many of `limit` e-mails may be claimed, if they are like the last ones; 0 without room."""
        held = self._held_characters()
        if held >= HELD_CHARACTERS_MAX:
            try:
                async with asyncio.timeout(WAIT_S_MAX), self._freed:
                    await self._freed.wait_for(lambda: self._held_characters() < HELD_CHARACTERS_MAX)
            except TimeoutError:
                return 0
            held = self._held_characters()
        if self._mean * limit <= HELD_CHARACTERS_MAX - held:
            return limit
        return max(1, int((HELD_CHARACTERS_MAX - held) / self._mean))

    def take(self, claims: Sequence[Claim[OutgoingEmail]]) -> None:
        """Count what was claimed."""
        if claims:
            self._mean = sum(_characters(claim.item) for claim in claims) / len(claims)
        for claim in claims:
            if is_large(claim.item):
                self._held[claim.id] = claim

    async def put(self, ids: Iterable[UUID]) -> None:
        """Count no longer what is settled, or given back."""
        if self._held and [self._held.pop(each) for each in ids if each in self._held]:
            async with self._freed:
                self._freed.notify_all()

    @asynccontextmanager
    async def in_flight(self, email: OutgoingEmail) -> AsyncIterator[None]:
        """Wait until this large one may be rendered and sent beside the others that are."""
        characters = email.size
        async with self._freed:
            await self._freed.wait_for(
                lambda: not self._in_flight or self._in_flight + characters <= HELD_CHARACTERS_MAX
            )
            self._in_flight += characters
        try:
            yield
        finally:
            self._in_flight -= characters
            async with self._freed:
                self._freed.notify_all()

    def _held_characters(self) -> int:
        if not self._held:
            return 0
        # One whose lease was lost is settled by nobody.
        self._held = {each: claim for each, claim in self._held.items() if claim.lease_left_s() > 0}
        return sum(_characters(claim.item) for claim in self._held.values())


def is_large(email: OutgoingEmail) -> bool:
    """Whether an e-mail is counted."""
    return email.size > LARGE_CHARACTERS


def _characters(email: OutgoingEmail) -> int:
    return len(email.html) + len(email.text or "")
