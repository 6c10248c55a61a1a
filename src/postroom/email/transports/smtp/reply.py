"""SMTP replies: RFC 5321 (4.2) with enhanced codes (RFC 3463), read from a stream that may lie."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from postroom.email.transports.said import printable

LINE_BYTES_MAX = 4_096
"""RFC 5321 allows 512; servers with long texts exceed it."""

REPLY_BYTES_MAX = 32_768

_LINE = re.compile(rb"([2-5]\d\d)(?:([ -])(.*))?\Z", re.DOTALL)
_ENHANCED = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?: |\Z)")


class ReplyError(Exception):
    """What the server sent is no SMTP reply, or never ends."""


@dataclass(frozen=True, slots=True)
class Reply:
    """
    One whole reply.

    Attributes:
        code: The basic code, 200 to 599.
        enhanced: The enhanced code, such as `4.7.1`; empty where there is none.
        text: All lines as one, enhanced codes of further lines left out.
    """

    code: int
    enhanced: str
    text: str

    @property
    def ok(self) -> bool:
        """Whether the server did what it was asked."""
        return self.code < 300

    @property
    def go_on(self) -> bool:
        """Whether the server waits for the content."""
        return 300 <= self.code < 400

    def __str__(self) -> str:
        return " ".join(filter(None, (str(self.code), self.enhanced, self.text)))


class ReplyReader:
    """Cuts a stream of bytes into replies; holds no more than one reply of REPLY_BYTES_MAX."""

    def __init__(self) -> None:
        self._buffer = b""
        self._lines: list[bytes] = []
        self._bytes = 0

    @property
    def pending(self) -> bool:
        """Whether a part of a reply is here."""
        return bool(self._buffer or self._lines)

    def feed(self, data: bytes) -> list[Reply]:
        """
        Take what came from the server.

        Returns:
            The replies that it completed, in their order.

        Raises:
            ReplyError: It is no reply; nothing after it can be trusted.
        """
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        replies = [reply for line in lines if (reply := self._take(line.rstrip(b"\r"))) is not None]
        if len(self._buffer) > LINE_BYTES_MAX:
            raise ReplyError(f"a line of more than {LINE_BYTES_MAX} bytes")
        return replies

    def _take(self, line: bytes) -> Reply | None:
        if not self._lines and (reply := _reply_of_one_line(line)) is not None:
            return reply
        found = _LINE.match(line)
        if found is None or len(line) > LINE_BYTES_MAX:
            raise ReplyError(f"not an SMTP reply: {printable(line[:80].decode('utf-8', 'replace'))!r}")
        self._bytes += len(line)
        if self._bytes > REPLY_BYTES_MAX:
            raise ReplyError(f"a reply of more than {REPLY_BYTES_MAX} bytes")
        self._lines.append(found[3] or b"")
        if found[2] == b"-":
            return None
        lines, self._lines, self._bytes = self._lines, [], 0
        return make_reply(int(found[1]), b"\n".join(lines).decode("utf-8", "replace"))


@lru_cache(maxsize=256)  # a server says the same of each e-mail, but for its last reply
def _reply_of_one_line(line: bytes) -> Reply | None:
    """The reply that this line is; None where it is a part of one, or none."""
    found = _LINE.match(line) if len(line) <= LINE_BYTES_MAX else None
    if found is None or found[2] == b"-":
        return None
    return make_reply(int(found[1]), (found[3] or b"").decode("utf-8", "replace"))


def make_reply(code: int, text: str) -> Reply:
    """A reply from its code and the text of its lines, each of which may repeat the enhanced code."""
    lines = text.split("\n")
    found = _ENHANCED.match(lines[0])
    enhanced = found[1] if found else ""
    if enhanced:
        lines = [line.removeprefix(enhanced).strip() for line in lines]
    return Reply(code, enhanced, printable(" ".join(lines)))
