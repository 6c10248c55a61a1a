"""The other side of the demo: a mail server in thirty lines that refuses, greylists and dawdles as told."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class TinySmtp:
    """
    A mail server on 127.0.0.1.

    Attributes:
        replies: What it answers to RCPT TO of an address, one after the other; then 250.
        slow: Addresses whose mail it takes, and says so only after a while.
        letters: The Message-IDs that arrived at each address.
        unanswered: Mails that it has taken and not yet said so: if the sender dies now, it cannot know.
    """

    port: int = 0
    replies: dict[str, deque[str]] = field(default_factory=lambda: defaultdict(deque))
    slow: set[str] = field(default_factory=set)
    slow_s: float = 0.4
    letters: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    unanswered: int = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[TinySmtp]:
        """The server, while the block runs."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._converse(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the worker was killed
        finally:
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = ""
        writer.write(b"220 tiny.example ESMTP\r\n")
        while line := await reader.readline():
            command = line.decode().strip()
            answer = "250 2.0.0 Ok"
            match command.upper().partition(" ")[0]:
                case "RCPT":
                    address = command.partition("<")[2].partition(">")[0]
                    answer = self.replies[address].popleft() if self.replies[address] else answer
                case "DATA":
                    writer.write(b"354 go on\r\n")
                    await self._take(address, await reader.readuntil(b"\r\n.\r\n"))
                case "QUIT":
                    return
            writer.write(f"{answer}\r\n".encode())

    async def _take(self, address: str, content: bytes) -> None:
        message_id = content.partition(b"Message-ID:")[2].partition(b"\r\n")[0]
        self.letters[address].append(message_id.decode().strip())
        self.unanswered += 1
        try:
            await asyncio.sleep(self.slow_s if address in self.slow else 0)
        finally:
            self.unanswered -= 1
