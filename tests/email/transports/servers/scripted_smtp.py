"""An SMTP server that fails as it is told: once for each thing it is told, and well otherwise."""

from __future__ import annotations

import asyncio
import ssl
from collections import defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Say:
    """Answer this, so late; then close, where `close` is set. `raw` sends bytes as they are."""

    text: str = ""
    close: bool = False
    raw: bytes = b""
    delay_s: float = 0.0


@dataclass(frozen=True)
class Hang:
    """Answer nothing, ever."""


@dataclass(frozen=True)
class Flood:
    """Send this over and over until the client goes, with or without a pause after each."""

    raw: bytes
    pause_s: float = 0.0


@dataclass(frozen=True)
class CloseInContent:
    """Take DATA or BDAT, read so many bytes of the content, and close."""

    after_bytes: int


Action = Say | Hang | Flood | CloseInContent
HANG = Hang()
CLOSE = Say(close=True)

_GOOD = {
    "GREETING": "220 scripted.test ESMTP",
    "HELO": "250 scripted.test",
    "MAIL": "250 2.1.0 sender ok",
    "RCPT": "250 2.1.5 recipient ok",
    "DATA": "354 go on",
    "CONTENT": "250 2.0.0 taken",
    "RSET": "250 2.0.0 reset",
    "NOOP": "250 2.0.0 ok",
    "QUIT": "221 2.0.0 bye",
    "STARTTLS": "220 2.0.0 begin TLS",
    "AUTH": "235 2.7.0 welcome",
}


@dataclass
class ScriptedSmtp:
    """
    A server on 127.0.0.1.

    Attributes:
        extensions: What EHLO offers.
        tls: For STARTTLS, or from the first byte with `implicit_tls`.
        sessions: The commands of each connection, in their order; contents are left out.
        mails: The contents that it took, with dots taken out.
        contents: All contents that came whole, also those that it did not take.
        naive: Whether it takes RCPT after a refused MAIL, and DATA or BDAT after a refused RCPT.
    """

    extensions: list[str] = field(
        default_factory=lambda: ["PIPELINING", "8BITMIME", "SMTPUTF8", "SIZE 10000000"]
    )
    tls: ssl.SSLContext | None = None
    implicit_tls: bool = False
    naive: bool = False
    sessions: list[list[str]] = field(default_factory=list)
    mails: list[bytes] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    open_now: int = 0
    port: int = 0
    _scripts: dict[str, deque[Action]] = field(default_factory=lambda: defaultdict(deque))
    _always: dict[str, Action] = field(default_factory=dict)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _server: asyncio.Server | None = None

    def on(self, verb: str, *actions: Action | str) -> None:
        """Do these, one each time that the verb comes, before behaving well again."""
        self._scripts[verb].extend(Say(each) if isinstance(each, str) else each for each in actions)

    def always(self, verb: str, action: Action | str) -> None:
        """Do this whenever the verb comes and nothing else was asked for."""
        self._always[verb] = Say(action) if isinstance(action, str) else action

    @property
    def commands(self) -> list[str]:
        """The commands of all connections, the verb alone."""
        return [command.partition(" ")[0] for session in self.sessions for command in session]

    async def open(self) -> None:
        context = self.tls if self.implicit_tls else None
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, ssl=context, limit=2**22
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.drop_connections()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def drop_connections(self) -> None:
        """Close all connections without a word, as a server that restarts."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        session: list[str] = []
        self.sessions.append(session)
        self._writers.add(writer)
        self.open_now += 1
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError, EOFError):
                await self._converse(reader, writer, session)
        finally:
            self.open_now -= 1
            self._writers.discard(writer)
            writer.transport.abort()

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, session: list[str]
    ) -> None:
        if not await self._do("GREETING", reader, writer):
            return
        before = {"RCPT": "MAIL", "DATA": "RCPT", "BDAT": "RCPT"}
        good: set[str] = set()
        while line := await reader.readline():
            command = line.decode().strip()
            verb = command.partition(" ")[0].upper()
            session.append(command)
            chunk = b""
            if verb == "BDAT":
                if isinstance(action := self._next("BDAT"), CloseInContent):
                    self._scripts["BDAT"].popleft()
                    await reader.readexactly(action.after_bytes)
                    return
                chunk = await reader.readexactly(int(command.split()[1]))  # also where it is refused
            if verb in before and not self.naive and before[verb] not in good:
                writer.write(b"503 5.5.1 bad sequence of commands\r\n")
                continue
            taken = self._would_take(verb)
            good = good | {verb} if taken and verb != "MAIL" else {verb} if taken else set()
            if verb == "BDAT":
                good = set()
                if not await self._take(chunk, reader, writer):
                    return
            elif not await self._do(verb, reader, writer):
                return
            if verb == "STARTTLS" and self.tls is not None:
                await writer.start_tls(self.tls)

    async def _do(self, verb: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        action = self._action(verb)
        match action:
            case Hang():
                while await reader.read(65536):
                    pass
                return False
            case Flood(raw, pause_s):
                while not writer.is_closing():
                    writer.write(raw)
                    await writer.drain()
                    await asyncio.sleep(pause_s)
                return False
            case CloseInContent(after_bytes):
                writer.write(b"354 go on\r\n")
                await reader.readexactly(after_bytes)
                return False
            case Say(text, close, raw, delay_s):
                await asyncio.sleep(delay_s)
                writer.write(raw or ((text + "\r\n").encode() if text else b""))
                await writer.drain()
                if close:
                    writer.close()  # what was said arrives first
                    await writer.wait_closed()
                    return False
                if verb == "DATA" and text.startswith("354"):
                    return await self._take_content(reader, writer)
        return verb != "QUIT"

    def _action(self, verb: str) -> Action:
        if self._scripts[verb]:
            return self._scripts[verb].popleft()
        if verb in self._always:
            return self._always[verb]
        if verb == "EHLO":
            extensions = [*self.extensions, *(["STARTTLS"] if self.tls and not self.implicit_tls else [])]
            lines = ["scripted.test", *extensions]
            return Say("\r\n".join(f"250{' ' if line is lines[-1] else '-'}{line}" for line in lines))
        return Say(_GOOD.get(verb, "502 5.5.1 what?"))

    def _next(self, verb: str) -> Action | None:
        return self._scripts[verb][0] if self._scripts[verb] else self._always.get(verb)

    def _would_take(self, verb: str) -> bool:
        told = self._next(verb)
        good = "354" if verb == "DATA" else "2"
        return told is None or (isinstance(told, Say) and told.text.startswith(good))

    async def _take_content(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        lines: list[bytes] = []
        while (line := await reader.readline()) != b".\r\n":
            if not line:
                return False
            lines.append(line.removeprefix(b"."))
        return await self._take(b"".join(lines), reader, writer)

    async def _take(self, content: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        self.contents.append(content)
        if content and self._would_take("CONTENT"):
            self.mails.append(content)
        return await self._do("CONTENT", reader, writer)
