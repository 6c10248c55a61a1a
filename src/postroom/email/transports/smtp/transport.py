"""The transport that hands e-mail to an SMTP server."""

from __future__ import annotations

from postroom.email.message import OutgoingEmail
from postroom.email.mime import RenderedEmail, rendered
from postroom.email.transports.base import Start
from postroom.email.transports.smtp.connection import Broken, Refused, SmtpConnection
from postroom.email.transports.smtp.handshake import SmtpServer
from postroom.email.transports.smtp.pool import ConnectionPool
from postroom.email.transports.smtp.reply import Reply
from postroom.email.transports.smtp.verdict import knows_no_chunks, refusal
from postroom.errors import PermanentFailure, SendError, TemporaryFailure, UncertainOutcome
from postroom.failpoints import reach


class SmtpTransport:
    """
    SMTP over connections that are kept.

    Args:
        server: Where to, and how.
        connections: How many connections may stand at once.
    """

    def __init__(self, server: SmtpServer, *, connections: int = 50) -> None:
        self.name = server.name
        self._pool = ConnectionPool(server, connections_max=connections)

    async def send(self, email: OutgoingEmail, start: Start) -> str:
        """
        Hand one e-mail over; see postroom.email.transports.base.Transport.

        A connection that proves to be dead, is closed by 421, is one too many for the server, or takes no
        chunks though the server has offered it, is replaced once; the e-mail loses nothing by it.
        """
        mail = await rendered(email)
        try:
            return str(await self._deliver(mail, start, fresh=False))
        except _Replace as error:
            fresh = error.fresh
        try:
            return str(await self._deliver(mail, start, fresh=fresh))
        except _Replace as error:
            raise error.outcome from None

    async def close(self) -> None:
        """Say goodbye on idle connections and cut the others."""
        await self._pool.close()

    async def _deliver(self, mail: RenderedEmail, start: Start, *, fresh: bool) -> Reply:
        connection, used_before = await self._pool.take(fresh=fresh)
        try:
            _check_fits(connection, mail)
            reach("smtp.connected")
            held = await start()
            reach("smtp.envelope.before")
            if not connection.usable:
                raise _Replace(TemporaryFailure("the server closed the connection before MAIL FROM"))
            return await connection.deliver(mail, held)
        except Refused as error:
            outcome = refusal(error.stage, error.reply)
            if error.reply.code == 432:  # Exchange: more connections at once than it allows
                self._pool.shrink()
                raise _Replace(outcome, fresh=False) from None
            if knows_no_chunks(error.stage, error.reply):  # though it has offered them
                self._pool.stop_chunking()
                raise _Replace(outcome) from None
            if error.reply.code == 421:
                raise _Replace(outcome) from None
            raise outcome from None
        except Broken as error:
            if error.handed_over:
                raise UncertainOutcome(f"{error} after the e-mail was handed over") from None
            outcome = TemporaryFailure(f"{error} before the e-mail was handed over")
            if used_before and not error.answered:
                raise _Replace(outcome) from None
            raise outcome from None
        finally:
            self._pool.put(connection)


class _Replace(Exception):
    """
    Try once more, on a new connection where `fresh`; `outcome` is the end where that was the second try.
    """

    def __init__(self, outcome: SendError, *, fresh: bool = True) -> None:
        super().__init__(outcome.text)
        self.outcome = outcome
        self.fresh = fresh


def _check_fits(connection: SmtpConnection, mail: RenderedEmail) -> None:
    limit = connection.content_bytes_max
    if limit and len(mail.content) > limit:
        size = f"has {len(mail.content):,} bytes"
        raise PermanentFailure(f"the e-mail {size}, and the server takes at most {limit:,}", code=552)
    if mail.needs_smtputf8 and not connection.has_smtputf8:
        raise PermanentFailure(
            "an address has letters before its @ that are not ASCII, and the server takes none (no SMTPUTF8)"
        )
