"""Strangers at the door of `postroom serve`: each gets an answer, and the server neither fails nor grows."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import orjson
import psutil
import pytest

from tests.journey.odd_requests import PUBLIC_URL, OddRequest, OddRequests
from tests.journey.programs import Programs

CONNECTIONS = 16
ANSWER_S_MAX = 30
GROWTH_MIB_MAX = 12
"""Two bodies that are kept are more; and so are 9 KiB for each of the small requests of two rounds."""


@pytest.mark.timeout(300)
async def test_odd_requests_fail_nothing_and_leave_nothing(programs: Programs) -> None:
    """Thousands that are refused, broken, cut off, huge, or signed and strange: no 5xx, no more memory."""
    await besiege(programs, random.randrange(2**32), rounds=4, small=700, large=16)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
async def test_odd_requests_for_minutes_fail_nothing_and_leave_nothing(programs: Programs) -> None:
    """The same with a hundred thousand."""
    await besiege(programs, random.randrange(2**32), rounds=10, small=10_000, large=100)


async def besiege(programs: Programs, seed: int, *, rounds: int, small: int, large: int) -> None:
    """Send rounds of requests, and compare what the server holds after the first ones and the last ones."""
    odd = OddRequests(seed)
    odd.write_settings(programs.folder)
    programs.settings |= {"POSTROOM_PUBLIC_URL": PUBLIC_URL, "POSTROOM_LOG_LEVEL": "warning"}
    with programs.running("serve") as serve:
        stranger = Stranger(await asyncio.to_thread(serve.ready))
        process = psutil.Process(serve.process.pid)

        async def held_mib(make: Callable[[], OddRequest], count: int) -> list[float]:
            """After each round."""
            held = []
            for _ in range(rounds):
                await stranger.send(make, count)
                held.append(process.memory_info().rss / 2**20)
            return held

        await stranger.send(odd.small, small)  # what is read and made at the first requests stays
        await stranger.send(odd.large, large)
        after_large = await held_mib(odd.large, large)
        after_small = await held_mib(odd.small, small)
        log = serve.log
    print(f"\nseed {seed}: {dict(stranger.answers)}; MiB after large {after_large}, small {after_small}")
    assert max(stranger.answers) < 500
    assert stranger.answers[200] > small / 10
    said = {event["event"] for event in map(orjson.loads, log.splitlines())}
    assert said == {"webhook.refused", "library.said"}  # uvicorn says of what is no HTTP
    assert "Traceback" not in log
    for held in (after_large, after_small):
        assert min(held[rounds // 2 :]) <= max(held[: rounds // 2]) + GROWTH_MIB_MAX


class Stranger:
    """Sends odd requests over a few connections and counts what is answered."""

    def __init__(self, address: str) -> None:
        self._port = urlsplit(address).port
        self.answers: Counter[int] = Counter()

    async def send(self, make: Callable[[], OddRequest], count: int) -> None:
        """So many requests."""
        requests = (make() for _ in range(count))
        await asyncio.gather(*(self._send_some(requests) for _ in range(CONNECTIONS)))

    async def _send_some(self, requests: Iterator[OddRequest]) -> None:
        connection = None
        for request in requests:
            connection = connection or await asyncio.open_connection("127.0.0.1", self._port)
            async with asyncio.timeout(ANSWER_S_MAX):
                usable = await self._exchange(*connection, request)
            if not usable:
                connection[1].close()
                connection = None
        if connection is not None:
            connection[1].close()

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: OddRequest
    ) -> bool:
        """Whether the connection can be used again."""
        try:
            writer.write(request.data)
            await writer.drain()
        except ConnectionError:
            pass  # it was refused before it was sent as a whole: the answer is there
        try:
            async with asyncio.timeout(request.patience_s):
                head = await reader.readuntil(b"\r\n\r\n")
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            assert request.last, request  # a reset may overtake the answer, where not all was read
            return False
        self.answers[int(head.split(b" ", 2)[1])] += 1
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        if request.method != "HEAD":
            await reader.readexactly(int(fields.get(b"content-length", 0)))
        return not request.last and fields.get(b"connection") != b"close"
