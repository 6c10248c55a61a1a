"""
The receiver: an SMTP server in a process of its own, which notes each mail down before it answers.

`python -m tests.chaos.sink LEDGER PORT CONTROL_PORT`. The ledger is a file of JSON lines: {"begun", "to"}
where a mail's transaction began, a Copy where its final dot came, {"late"} where this process was late.
Times are time.time() of this process, which does nothing else.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import orjson

from tests.chaos.files import received_digest
from tests.support.postgres import free_port
from tests.support.waiting import until_now

MODES = ("normal", "refuse", "drop", "421", "451", "550", "slow")
"""
How it behaves: as it should; no connection; every second mail is taken and the connection cut before the
answer; 421 to each command; 451 to each mail; 550 to every fourth recipient; seconds late with each answer.
"""

REPLY_S = 0.005
SLOW_S = (0.5, 2.0)
TICK_S, LATE_S_MIN = 0.02, 0.05


@dataclass(frozen=True)
class Copy:
    """One delivery of one mail, as the receiver saw it."""

    token: str
    message_id: str
    digest: str
    begun: float
    taken: float
    answered: bool
    to: str
    file: str


@dataclass
class Received:
    """
    What the ledger says: when each mail's transaction began, by recipient, and what was delivered.

    Attributes:
        late_s: How late the receiver itself was where it was: what it saw then may have come earlier.
    """

    begun: list[tuple[float, str]] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)

    @classmethod
    def read(cls, ledger: Path) -> Received:
        """Read the ledger; a line that is being written is left out."""
        received = cls()
        for line in ledger.read_bytes().splitlines():
            with suppress(orjson.JSONDecodeError):
                said = orjson.loads(line)
                if "token" in said:
                    received.copies.append(Copy(**said))
                elif "late" in said:
                    received.late_s.append(said["late"])
                else:
                    received.begun.append((said["begun"], said["to"]))
        return received


class Sink:
    """The receiver's process, as the rig holds it."""

    def __init__(self, folder: Path) -> None:
        self.ledger = folder / "ledger.jsonl"
        self.ledger.touch()
        self.port, self._control_port = free_port(), free_port()
        self._log = folder / "sink.log"
        self._process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def running(self) -> Iterator[Sink]:
        """Run it while the block does."""
        arguments = [str(self.ledger), str(self.port), str(self._control_port)]
        with self._log.open("wb") as log:
            process = subprocess.Popen([sys.executable, "-m", "tests.chaos.sink", *arguments], stderr=log)
        try:
            until_now(lambda: self._answers() or process.poll() is not None)
            assert process.poll() is None, self._log.read_text()
            yield self
        finally:
            process.kill()
            process.wait(30)

    def behave(self, mode: str) -> None:
        """Take one of MODES."""
        with socket.create_connection(("127.0.0.1", self._control_port), timeout=30) as control:
            control.sendall(mode.encode() + b"\n")
            assert control.recv(16) == b"ok"

    def _answers(self) -> bool:
        try:
            self.behave("normal")
        except OSError:
            return False
        return True


class _Server:
    def __init__(self, ledger: IO[bytes], port: int) -> None:
        self._ledger = ledger
        self._port = port
        self._mode = "normal"
        self._server: asyncio.Server | None = None
        self._sessions: set[asyncio.StreamWriter] = set()
        self._mails = 0

    async def behave(self, mode: str) -> None:
        assert mode in MODES
        self._mode = mode
        if mode != "refuse":
            if self._server is None:
                self._server = await asyncio.start_server(self._session, "127.0.0.1", self._port, limit=2**22)
        elif self._server is not None:
            self._server.close()
            self._server = None
            for session in list(self._sessions):
                session.transport.abort()

    async def control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await self.behave((await reader.readline()).decode().strip())
            writer.write(b"ok")
            await writer.drain()
        writer.close()

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._sessions.add(writer)
        try:
            await self._converse(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self._sessions.discard(writer)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def say(line: str) -> None:
            writer.write(line.encode() + b"\r\n")

        say("220 sink ESMTP")
        begun, to, refused = 0.0, "", False
        while line := await reader.readline():
            command = line.decode("utf-8", "replace").strip()
            verb = command.upper()
            if self._mode == "421" and not verb.startswith("QUIT"):
                say("421 4.3.2 shutting down")
                await writer.drain()
                return
            if verb.startswith("EHLO"):
                offered = ["sink", "PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"]
                if random.random() < 0.5:  # so that every fault meets both ways to hand an e-mail over
                    offered.insert(1, "CHUNKING")
                for extension in offered[:-1]:
                    say(f"250-{extension}")
                say(f"250 {offered[-1]}")
            elif verb.startswith("MAIL FROM"):
                begun, refused = time.time(), False
                say("250 2.1.0 Ok")
            elif verb.startswith("RCPT TO"):
                to = command.split("<", 1)[1].split(">", 1)[0]
                self._note({"begun": begun, "to": to})
                self._mails += 1
                refused = self._mode == "451" or (self._mode == "550" and self._mails % 4 == 0)
                code = "451 4.7.1 later" if self._mode == "451" else "550 5.1.1 no such user"
                say(code if refused else "250 2.1.5 Ok")
            elif verb == "DATA" and not refused:
                say("354 go on")
                await writer.drain()
                content = (await reader.readuntil(b"\r\n.\r\n"))[:-3].replace(b"\r\n..", b"\r\n.")
                if not await self._take(content, begun, to, writer):
                    return
            elif verb.startswith("BDAT"):
                content = await reader.readexactly(int(verb.split()[1]))
                if refused:
                    say("503 5.5.1 no recipient")
                elif not await self._take(content, begun, to, writer):
                    return
            elif verb == "DATA":
                say("503 5.5.1 no recipient")
            elif verb == "QUIT":
                say("221 2.0.0 Bye")
                return
            else:
                say("250 2.0.0 Ok")

    async def _take(self, content: bytes, begun: float, to: str, writer: asyncio.StreamWriter) -> bool:
        """Note a mail down and answer, or cut the connection before the answer."""
        drops = self._mode == "drop" and random.random() < 0.5
        self._note_copy(content, begun, to, answered=not drops)
        if drops:
            writer.transport.abort()
            return False
        await asyncio.sleep(random.uniform(*SLOW_S) if self._mode == "slow" else REPLY_S)
        writer.write(b"250 2.0.0 Ok: queued\r\n")
        return True

    async def watch_itself(self) -> None:
        """Note where this process did not get on: under load, its clock is late."""
        while True:
            asked_at = time.monotonic()
            await asyncio.sleep(TICK_S)
            if (late_s := time.monotonic() - asked_at - TICK_S) > LATE_S_MIN:
                self._note({"late": late_s})

    def _note_copy(self, content: bytes, begun: float, to: str, *, answered: bool) -> None:
        self._note(
            {
                "token": found[0].decode() if (found := re.search(rb"m\d{7}", content)) else "",
                "message_id": content.split(b"Message-ID:", 1)[1].split(b"\r\n", 1)[0].strip().decode(),
                "digest": hashlib.sha256(content).hexdigest(),
                "begun": begun,
                "taken": time.time(),
                "answered": answered,
                "to": to,
                "file": received_digest(content),
            }
        )

    def _note(self, facts: dict[str, object]) -> None:
        self._ledger.write(orjson.dumps(facts) + b"\n")
        self._ledger.flush()


async def _main(ledger: Path, port: int, control_port: int) -> None:
    with suppress(PermissionError):
        os.nice(-5)  # its clock is the measure: it must not wait behind those that it measures
    with ledger.open("ab") as file:
        server = _Server(file, port)
        await server.behave("normal")
        watch = asyncio.create_task(server.watch_itself())
        async with await asyncio.start_server(server.control, "127.0.0.1", control_port) as control:
            await asyncio.gather(watch, control.serve_forever())


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
