"""
An SMTP server that takes every mail and keeps none: what the benchmarks send to.

It runs in a process of its own and must never be what limits a benchmark, so it is one
asyncio.Protocol on uvloop that answers all that came in one packet with one write. It speaks what a
real server makes a client speak (PIPELINING, CHUNKING, the order of the commands, the dot), and notes
each mail's subject and the time of its 250. With arguments it offers those extensions alone: `sink.py
PIPELINING`, and `sink.py -` none. Three verbs of its own serve the benchmarks:

    XREPORT     250 with a JSON object: see Report
    XARRIVALS   250 with a JSON object: subject to time in nanoseconds since 1970
    XRESET      forgets all of it

Run alone, it prints its port and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from typing import TypedDict, cast

import uvloop

SIZE_BYTES_MAX = 50 * 1024 * 1024
LINE_BYTES_MAX = 4096

EXTENSIONS = (
    "PIPELINING",
    "CHUNKING",
    "8BITMIME",
    "SMTPUTF8",
    "ENHANCEDSTATUSCODES",
    f"SIZE {SIZE_BYTES_MAX}",
)
_END = b"\r\n.\r\n"


class Report(TypedDict):
    """
    What has arrived since the start or the last XRESET.

    Attributes:
        mails: How many were answered 250.
        subjects: How many different subjects they had: fewer than mails where one came twice.
        bytes: Their content, dots as they came.
        sessions: Connections that were opened.
        first_ns, last_ns: When the first and the last 250 was said, in ns since 1970; 0 before.
    """

    mails: int
    subjects: int
    bytes: int
    sessions: int
    first_ns: int
    last_ns: int


class Arrivals:
    """What has arrived, of all sessions."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all of it."""
        self.mails = 0
        self.bytes = 0
        self.sessions = 0
        self.at_ns: dict[str, int] = {}
        self.first_ns = 0
        self.last_ns = 0

    def add(self, content: bytes) -> None:
        """Note a mail that is answered 250 now."""
        self.last_ns = time.time_ns()
        self.first_ns = self.first_ns or self.last_ns
        self.mails += 1
        self.bytes += len(content)
        self.at_ns.setdefault(_subject(content), self.last_ns)

    def report(self) -> Report:
        """Sum it up."""
        return Report(
            mails=self.mails,
            subjects=len(self.at_ns),
            bytes=self.bytes,
            sessions=self.sessions,
            first_ns=self.first_ns,
            last_ns=self.last_ns,
        )


class Session(asyncio.Protocol):
    """One connection."""

    def __init__(self, arrivals: Arrivals, ehlo: bytes) -> None:
        self._arrivals = arrivals
        self._ehlo = ehlo
        self._waiting = bytearray()
        self._chunk_bytes: int | None = None
        self._chunk_is_last = False
        self._chunks = b""
        self._in_data = False
        self._searched = 0
        self._has_sender = False
        self._recipients = 0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._arrivals.sessions += 1
        self._transport.write(b"220 sink ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        self._waiting += data
        replies: list[bytes] = []
        while not self._transport.is_closing():
            if self._chunk_bytes is not None:
                reply = self._chunk(self._chunk_bytes)
            else:
                reply = self._content() if self._in_data else self._command()
            if reply is None:
                break
            replies.append(reply)
            if reply.startswith(b"221"):
                self._transport.write(b"".join(replies))
                self._transport.close()
                return
        if replies:
            self._transport.write(b"".join(replies))

    def _content(self) -> bytes | None:
        """Take a mail's content if its end has come; the line break before it counts as DATA's own."""
        end = self._waiting.find(_END, self._searched)
        if end < 0:
            if len(self._waiting) > SIZE_BYTES_MAX:
                self._transport.abort()
            # The end may come in two packets.
            self._searched = max(len(self._waiting) - len(_END) + 1, 0)
            return None
        self._arrivals.add(bytes(self._waiting[2 : end + 2]))
        del self._waiting[: end + len(_END)]
        self._begin_mail()
        return b"250 2.0.0 Ok: taken\r\n"

    def _chunk(self, size: int) -> bytes | None:
        if len(self._waiting) < size:
            return None
        self._chunks += self._waiting[:size]
        del self._waiting[:size]
        self._chunk_bytes = None
        if not self._recipients:
            self._begin_mail()
            return b"503 5.5.1 not now\r\n"
        if self._chunk_is_last:
            self._arrivals.add(self._chunks)
            self._begin_mail()
        return b"250 2.0.0 Ok: taken\r\n"

    def _command(self) -> bytes | None:
        end = self._waiting.find(b"\n")
        if end < 0:
            if len(self._waiting) > LINE_BYTES_MAX:
                self._transport.abort()
            return None
        line = bytes(self._waiting[: end + 1]).strip()
        verb = line[:4].upper()
        if verb == b"DATA" and self._recipients:
            # The last two bytes, CRLF, stay: the end of an empty mail is found like any other.
            del self._waiting[: end - 1]
            self._waiting[:2] = b"\r\n"
            self._in_data = True
            self._searched = 0
            return b"354 go on\r\n"
        del self._waiting[: end + 1]
        if verb == b"BDAT":
            _, size, *last = line.split()
            self._chunk_bytes, self._chunk_is_last = int(size), bool(last)
            return self._chunk(self._chunk_bytes)
        return self._answer(verb, line)

    def _answer(self, verb: bytes, line: bytes) -> bytes:
        if verb == b"MAIL" and not self._has_sender:
            self._has_sender = True
            return b"250 2.1.0 Ok\r\n"
        if verb == b"RCPT" and self._has_sender:
            self._recipients += 1
            return b"250 2.1.5 Ok\r\n"
        if verb in (b"MAIL", b"RCPT", b"DATA"):
            return b"503 5.5.1 not now\r\n"
        if verb in (b"EHLO", b"HELO"):
            self._begin_mail()
            return self._ehlo if verb == b"EHLO" else b"250 sink\r\n"
        if verb == b"RSET":
            self._begin_mail()
            return b"250 2.0.0 Ok\r\n"
        if verb == b"NOOP":
            return b"250 2.0.0 Ok\r\n"
        if verb == b"QUIT":
            return b"221 2.0.0 bye\r\n"
        return self._own_verb(line.upper())

    def _own_verb(self, line: bytes) -> bytes:
        if line == b"XREPORT":
            return b"250 %b\r\n" % json.dumps(self._arrivals.report()).encode()
        if line == b"XARRIVALS":
            return b"250 %b\r\n" % json.dumps(self._arrivals.at_ns).encode()
        if line == b"XRESET":
            self._arrivals.reset()
            return b"250 2.0.0 Ok\r\n"
        return b"502 5.5.2 no such verb\r\n"

    def _begin_mail(self) -> None:
        self._in_data = False
        self._has_sender = False
        self._recipients = 0
        self._chunks = b""


def _subject(content: bytes) -> str:
    start = content.find(b"\r\nSubject: ")
    return (
        content[start + 11 : content.find(b"\r\n", start + 11)].decode("utf-8", "replace")
        if start >= 0
        else ""
    )


async def serve() -> None:
    """Print the port and serve until standard input ends."""
    arrivals = Arrivals()
    offered = [each for each in sys.argv[1:] if each != "-"] if sys.argv[1:] else EXTENSIONS
    lines = ["sink", *offered]
    ehlo = b"".join(
        b"250%b%b\r\n" % (b" " if n == len(lines) else b"-", line.encode()) for n, line in enumerate(lines, 1)
    )
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Session(arrivals, ehlo), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()
    server.close()


if __name__ == "__main__":
    gc.freeze()
    gc.disable()  # nothing here makes cycles, and a pause would be somebody's latency
    uvloop.run(serve())
