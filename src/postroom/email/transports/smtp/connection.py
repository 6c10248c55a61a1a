"""
One SMTP connection: transactions over a stream that aiosmtplib has opened.

aiosmtplib connects, says EHLO, makes it TLS and authenticates; it then waits for each reply before
the next command. The transactions are ours, with as few waits as the server allows:

- PIPELINING and CHUNKING (RFC 2920, RFC 3030): MAIL FROM, RCPT TO, BDAT and the content are one
  write, and the e-mail waits for the server once.
- PIPELINING: MAIL FROM, RCPT TO and DATA are one write, the content is another: it waits twice.
- neither: it waits four times.

What is written in one go may have been taken although no answer came, so that is done only where the
connection has just shown that it works, and not for large e-mails, whose content would be in vain
where the recipient is refused. docs/decisions/0018 has the measurements.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NoReturn

from postroom.email.mime import RenderedEmail
from postroom.email.transports.base import Held
from postroom.email.transports.smtp.reply import Reply, ReplyError, ReplyReader
from postroom.email.transports.smtp.verdict import Stage
from postroom.failpoints import reach
from postroom.settings import SmtpTimeouts

AT_ONCE_BYTES_MAX = 64 * 1024
"""Larger e-mails wait until sender and recipient are taken before their content is sent."""

ALIVE_S = 1.0
"""A connection on which the server answered so recently is taken to work."""

_BLOCK_BYTES = 64 * 1024
_RSET_S_MAX = 10.0


class Refused(Exception):
    """The server's reply ends the transaction; nothing was handed over."""

    def __init__(self, stage: Stage, reply: Reply) -> None:
        super().__init__(str(reply))
        self.stage = stage
        self.reply = reply


class Broken(Exception):
    """
    The connection cannot be used any more.

    Attributes:
        handed_over: Whether the content's last byte was written: then the server may have the e-mail.
        answered: Whether the server has answered anything in this transaction.
    """

    def __init__(self, reason: str, *, handed_over: bool = False, answered: bool = False) -> None:
        super().__init__(reason)
        self.handed_over = handed_over
        self.answered = answered


class SmtpConnection(asyncio.Protocol):
    """
    A connection after its handshake.

    Args:
        transport: The stream; its protocol is replaced by this object.
        extensions: Keyword in lower case to parameters, from EHLO.

    Attributes:
        mails: How many transactions it has had.
        idle_since: When it was last used, by the loop's clock.
    """

    def __init__(
        self, transport: asyncio.Transport, extensions: dict[str, str], timeouts: SmtpTimeouts
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._timeouts = timeouts
        self._reader = ReplyReader()
        self._replies: deque[Reply] = deque()
        self._expected = 0
        self._answered = False
        self._broken: str | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self.closed = self._loop.create_future()
        self._pipelining = "pipelining" in extensions
        self._chunking = self._pipelining and "chunking" in extensions
        self._has_size = "size" in extensions
        self.has_smtputf8 = "smtputf8" in extensions
        size = extensions.get("size", "").strip()
        self.content_bytes_max = int(size) if size.isdecimal() and len(size) < 20 else 0
        self.mails = 0
        self.idle_since = self._answered_at = self._loop.time()
        transport.set_protocol(self)
        if transport.is_closing():
            self._break("the server closed the connection")

    @property
    def usable(self) -> bool:
        """Whether a transaction may begin: the stream stands and the server is silent."""
        return self._broken is None and not self._expected and not self._transport.is_closing()

    async def deliver(self, mail: RenderedEmail, held: Held | None = None) -> Reply:
        """
        Run one transaction.

        Args:
            held: See postroom.email.transports.base: where it says no, the e-mail is not handed over.

        Returns:
            The reply to the content.

        Raises:
            Refused: The server said no; the connection was reset and may be used again, if usable.
            Broken: The connection is lost, silent or speaks nonsense; it is closed.
        """
        self.mails += 1
        self._answered = False
        try:
            at_once = (
                self._chunking
                and len(mail.content) <= AT_ONCE_BYTES_MAX
                and self._loop.time() - self._answered_at < ALIVE_S
            )
            if not at_once:
                await self._hand_envelope(mail)
            reach("smtp.content.before")
            if at_once:
                self._write_at_once(mail, held)
            else:
                await self._write_content(mail.content.replace(b"\r\n.", b"\r\n..") + b".\r\n", held)
                self._expected += 1
            reach("smtp.content.after")
            if at_once:
                reply = await self._reply_to_all()
            else:
                reply = await self._reply(self._timeouts.final_timeout_s, handed_over=True)
            reach("smtp.answered")
            if not reply.ok:
                await self._refuse(Stage.CONTENT, reply)
            return reply
        except Refused:
            raise
        except BaseException:
            # Cancelled in the middle too: what the server would still say belongs to nobody.
            self.abort()
            raise

    def quit(self) -> None:
        """Say goodbye and close; does not wait for the answer."""
        if self.usable:
            self._transport.write(b"QUIT\r\n")
        self._break("we closed the connection")
        self._transport.close()

    def abort(self) -> None:
        """Close at once, whatever is under way."""
        self._break("we closed the connection")
        self._transport.abort()

    def _write_at_once(self, mail: RenderedEmail, held: Held | None) -> None:
        """No dots are stuffed: the content's length is told."""
        self._check_held(held)
        command = f"BDAT {len(mail.content)} LAST\r\n".encode()
        data = b"".join((self._mail_command(mail), self._rcpt_command(mail), command, mail.content))
        self._write(data, replies=3)

    async def _reply_to_all(self) -> Reply:
        """The reply to BDAT, where the server took the e-mail; a refusal else, or an unknown end."""
        await self._wait_for_replies(self._timeouts.final_timeout_s)
        replies = dict(zip((Stage.MAIL, Stage.RCPT, Stage.BDAT), self._replies, strict=False))
        self._replies.clear()
        has_recipient = Stage.RCPT in replies and replies[Stage.RCPT].ok
        if has_recipient and Stage.BDAT in replies and replies[Stage.BDAT].ok:
            return replies[Stage.BDAT]  # it was taken, whatever was said about the sender
        refusal = _first_refusal(replies)
        if refusal is not None and (Stage.BDAT in replies or not has_recipient):
            await self._refuse(*refusal)
        raise Broken(self._broken or "lost", handed_over=True)

    async def _hand_envelope(self, mail: RenderedEmail) -> None:
        steps = (
            (Stage.MAIL, self._mail_command(mail), self._timeouts.mail_timeout_s),
            (Stage.RCPT, self._rcpt_command(mail), self._timeouts.rcpt_timeout_s),
            (Stage.DATA, b"DATA\r\n", self._timeouts.data_timeout_s),
        )
        if not self._pipelining:
            for stage, command, wait_s in steps:
                self._write(command, replies=1)
                reply = await self._reply(wait_s)
                if not (reply.go_on if stage is Stage.DATA else reply.ok):
                    await self._refuse(stage, reply)
            return
        self._write(b"".join(command for _, command, _ in steps), replies=3)
        replies: dict[Stage, Reply] = {}
        try:
            for stage, _, wait_s in steps:
                replies[stage] = await self._reply(wait_s)
                if replies[stage].code == 421:
                    break
        except Broken:
            # A refusal that came before the end of the connection stands.
            if (refusal := _first_refusal(replies)) is None:
                raise
            await self._refuse(*refusal)
        if (refusal := _first_refusal(replies)) is not None:
            await self._end_data_of_nobody(replies)
            await self._refuse(*refusal)

    async def _end_data_of_nobody(self, replies: dict[Stage, Reply]) -> None:
        """DATA was taken although the sender or the recipient was not: RFC 2920, 3.1."""
        if Stage.DATA not in replies or not replies[Stage.DATA].go_on:
            return
        if replies[Stage.RCPT].ok:
            self.abort()  # it wants the content for somebody: only closing is safe
        else:
            self._write(b".\r\n", replies=1)

    def _mail_command(self, mail: RenderedEmail) -> bytes:
        command = f"MAIL FROM:<{mail.sender}>"
        if self._has_size:
            command += f" SIZE={len(mail.content)}"
        if mail.needs_smtputf8:
            command += " BODY=8BITMIME SMTPUTF8"
        return f"{command}\r\n".encode()

    @staticmethod
    def _rcpt_command(mail: RenderedEmail) -> bytes:
        return f"RCPT TO:<{mail.recipient}>\r\n".encode()

    async def _refuse(self, stage: Stage, reply: Reply) -> NoReturn:
        """End a refused transaction with RSET, and raise the refusal whatever becomes of that."""
        try:
            if reply.code == 421:
                self.abort()
            else:
                self._write(b"RSET\r\n", replies=1)
                answer = reply
                while self._expected or self._replies:
                    answer = await self._reply(min(self._timeouts.mail_timeout_s, _RSET_S_MAX))
                if not answer.ok:
                    self.abort()
        except Broken:
            self.abort()
        raise Refused(stage, reply)

    async def _write_content(self, data: bytes, held: Held | None) -> None:
        # One turn of the event loop: a server that closed right behind its 354 is seen to have done
        # so, and nothing is handed over, instead of an outcome that nobody knows.
        await asyncio.sleep(0)
        view = memoryview(data)
        while len(view) > _BLOCK_BYTES:
            self._check_open()
            self._transport.write(bytes(view[:_BLOCK_BYTES]))
            view = view[_BLOCK_BYTES:]
            await self._drain()
        self._check_open()
        self._check_held(held)
        self._transport.write(bytes(view))

    @staticmethod
    def _check_held(held: Held | None) -> None:
        if held is not None and not held():
            raise Broken("the lease ran out", answered=True)

    def _write(self, data: bytes, *, replies: int) -> None:
        self._check_open()
        self._expected += replies
        self._transport.write(data)

    def _check_open(self) -> None:
        if self._broken is not None:
            raise Broken(self._broken, answered=self._answered)

    async def _drain(self) -> None:
        if self._writable is None or self._broken is not None:
            return
        try:
            async with asyncio.timeout(self._timeouts.block_timeout_s):
                await asyncio.shield(self._writable)
        except TimeoutError:
            raise Broken(
                f"the server took no content for {self._timeouts.block_timeout_s:g} s", answered=True
            ) from None

    async def _reply(self, wait_s: float, *, handed_over: bool = False) -> Reply:
        if not self._replies:
            await self._wait(wait_s)
        if not self._replies:
            raise Broken(self._broken or "lost", handed_over=handed_over, answered=self._answered)
        self._answered = True
        return self._replies.popleft()

    async def _wait_for_replies(self, wait_s: float) -> None:
        """Return when all that was asked is answered, one answer is 421, or the connection is lost."""
        seen = -1
        while self._expected and len(self._replies) > seen and not any(r.code == 421 for r in self._replies):
            seen = len(self._replies)
            await self._wait(wait_s)

    async def _wait(self, wait_s: float) -> None:
        """Return when something was answered, or the connection is lost or silent for so long."""
        if self._broken is not None:
            return
        self._waiter = self._loop.create_future()
        timer = self._loop.call_later(wait_s, self._break, f"no reply from the server for {wait_s:g} s")
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _break(self, reason: str) -> None:
        if self._broken is None:
            self._broken = reason
        for future in (self._waiter, self._writable):
            if future is not None and not future.done():
                future.set_result(None)

    # What asyncio calls

    def data_received(self, data: bytes) -> None:
        """Cut into replies; one that nobody waits for means that the connection is no longer in step."""
        if self._broken is not None:
            return
        try:
            replies = self._reader.feed(data)
        except ReplyError as error:
            self._break(f"the server sent {error}")
            return
        self._replies.extend(replies)
        self._expected -= len(replies)
        self._answered_at = self._loop.time()
        if self._expected < 0 or (not self._expected and self._reader.pending):
            while self._expected < 0:
                self._replies.pop()
                self._expected += 1
            self._break("the server spoke out of turn")
        if replies and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def eof_received(self) -> None:
        """The server closed its side: ours is closed by asyncio."""
        self._break("the server closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        """The stream is gone."""
        self._break(f"the connection was lost: {exc}" if exc else "the server closed the connection")
        if not self.closed.done():
            self.closed.set_result(None)

    def pause_writing(self) -> None:
        """The server takes the content slower than we write it."""
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        """The server has taken what was written."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None


def _first_refusal(replies: dict[Stage, Reply]) -> tuple[Stage, Reply] | None:
    for stage, reply in replies.items():
        if not (reply.go_on if stage is Stage.DATA else reply.ok):
            return stage, reply
    return None
