"""A connection that listens, made anew as often as it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from postroom.database.connection import Connection
from postroom.errors import PostroomError

Connect = Callable[[float], Awaitable[Connection | None]]

_ANSWER_S = 5.0
_PING_S = 30.0
_AGAIN_S_MIN = 0.5
_AGAIN_S_MAX = 30.0


class Listener:
    """
    Listens until it is closed.

    Args:
        channels: What to LISTEN to.
        callback: Called at each notification with its channel and payload.
        connect: Makes a connection within that many seconds; None says that there can be none.
    """

    def __init__(
        self, channels: tuple[str, ...], callback: Callable[[str, str], None], connect: Connect
    ) -> None:
        self._channels = channels
        self._callback = callback
        self._connect = connect
        self._connection: Connection | None = None
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def hears(self) -> bool:
        """Whether a connection listens at the moment, as far as is known."""
        return self._connection is not None and not self._connection.is_closed()

    async def close(self) -> None:
        """Stop listening."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        again_s = _AGAIN_S_MIN
        while True:
            try:
                connection = await self._connect(_ANSWER_S)
                if connection is None:
                    return
                again_s = _AGAIN_S_MIN
                await self._listen(connection)
            except PostroomError as error:
                # Correctness rests on polling, this only wakes: no error, but slower.
                _warn(error, again_s)
            await asyncio.sleep(again_s)
            again_s = min(again_s * 2, _AGAIN_S_MAX)

    async def _listen(self, connection: Connection) -> None:
        try:
            ended = asyncio.Event()
            connection.add_termination_listener(lambda _connection: ended.set())
            for channel in self._channels:
                await connection.add_listener(channel, self._heard)
            self._connection = connection
            for channel in self._channels:
                self._callback(channel, "")
            while not await _is_set_within(ended, _PING_S):
                await connection.execute("SELECT 1", timeout=_ANSWER_S)
        finally:
            self._connection = None
            connection.terminate()

    def _heard(self, _connection: Any, _pid: int, channel: str, payload: object) -> None:
        self._callback(channel, str(payload))


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _warn(error: PostroomError, again_s: float) -> None:
    from postroom import log  # a tenth of a second, which every short command would pay

    _log = log.get_logger()
    _log.warning("listener.lost", error=str(error), again_s=again_s)
