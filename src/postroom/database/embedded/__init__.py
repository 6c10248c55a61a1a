"""
The PostgreSQL that postroom brings along, for when POSTROOM_DATABASE_URL names none.

All processes that use one data folder share one server. The first starts it, the last stops it,
and neither needs to end well: who uses the folder is known by locks, which the kernel takes back
from a process however it dies. A small process of its own, the watch, is the server's parent: it
starts the server again when it crashes and stops it when the last user is gone; and when the
watch itself is killed the kernel stops the server, and a user that is left starts both again
(docs/decisions/0008).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from postroom.database.embedded.cluster import Cluster
from postroom.database.embedded.programs import wheel_folder
from postroom.errors import PostroomError

_LOOK_S = 1.0


@contextlib.asynccontextmanager
async def running(data_dir: Path) -> AsyncIterator[str]:
    """
    Start or join the server of a data folder, and leave it at the end of the block.

    Args:
        data_dir: POSTROOM_DATA_DIR; made where it is missing.

    Yields:
        The address of its database `postroom`, as its owner.

    Raises:
        ConfigError: The folder, the account or PostgreSQL's programs cannot be used.
        DatabaseUnavailable: The server does not start; the text has its own last words.
    """
    cluster = await asyncio.to_thread(Cluster.join, data_dir)
    keeper = asyncio.create_task(_keep_running(cluster))
    try:
        yield cluster.url
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        await asyncio.shield(asyncio.to_thread(cluster.leave))


@contextlib.contextmanager
def joined(data_dir: Path) -> Iterator[str]:
    """The same without an event loop, for a short use: nobody looks after the watch."""
    cluster = Cluster.join(data_dir)
    try:
        yield cluster.url
    finally:
        cluster.leave()


def psql() -> str | None:
    """The psql that came along, where it did."""
    folder = wheel_folder()
    return None if folder is None else str(folder / "psql")


async def _keep_running(cluster: Cluster) -> None:
    while True:
        await asyncio.sleep(_LOOK_S)
        if not cluster.is_watched():
            from postroom import log  # a tenth of a second, which every short command would pay

            _log = log.get_logger()
            try:
                await asyncio.to_thread(cluster.start)
                _log.warning("embedded.restarted")
            except PostroomError as error:
                # Such as on a full disk: the next look tries again.
                _log.error("embedded.not_restarted", error=str(error))
