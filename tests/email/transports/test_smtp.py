"""SMTP: what each fault of a server is, and what keeps a connection honest."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest

from postroom.email.transports.smtp import SmtpServer, SmtpTransport, connection, pool
from postroom.email.transports.smtp.connection import AT_ONCE_BYTES_MAX
from postroom.errors import PermanentFailure, SendError, TemporaryFailure, TransportDown, UncertainOutcome
from postroom.settings import SmtpTimeouts
from tests.email.conftest import NewEmail
from tests.email.transports.servers.certificates import Authority
from tests.email.transports.servers.scripted_smtp import (
    CLOSE,
    HANG,
    Action,
    CloseInContent,
    Flood,
    Say,
    ScriptedSmtp,
)
from tests.support.waiting import until

SHORT = SmtpTimeouts(
    connect_timeout_s=5,
    greeting_timeout_s=0.3,
    ehlo_timeout_s=0.3,
    mail_timeout_s=0.3,
    rcpt_timeout_s=0.3,
    data_timeout_s=0.3,
    block_timeout_s=0.3,
    final_timeout_s=0.3,
)
SECRET = "s3cret pass"
AT_ONCE = ["PIPELINING", "CHUNKING"]


async def started() -> None:
    """A start that is granted at once."""


@dataclass
class Opener:
    """Opens transports to the test's server, and closes them when it ends."""

    server: ScriptedSmtp
    stack: AsyncExitStack

    def __call__(self, *, connections: int = 4, **changes: Any) -> SmtpTransport:
        where = replace(SmtpServer("127.0.0.1", self.server.port), **changes)
        transport = SmtpTransport(where, connections=connections)
        self.stack.push_async_callback(transport.close)
        return transport


@pytest.fixture
async def open_transport(smtp: ScriptedSmtp) -> AsyncIterator[Opener]:
    """Make a transport to the scripted server."""
    async with AsyncExitStack() as stack:
        yield Opener(smtp, stack)


REFUSALS = [
    ("MAIL", "451 4.7.1 greylisted, come back later", TemporaryFailure),
    ("RCPT", "450 4.2.0 mailbox busy", TemporaryFailure),
    ("RCPT", "451 local error", TemporaryFailure),
    ("RCPT", "452 4.5.3 too many recipients", TemporaryFailure),
    ("DATA", "451 4.3.0 later", TemporaryFailure),
    ("CONTENT", "451 4.3.0 later", TemporaryFailure),
    ("CONTENT", "452 4.3.1 no room", TemporaryFailure),
    ("MAIL", "553 5.1.8 sender has no domain", PermanentFailure),
    ("MAIL", "552 5.3.4 too big", PermanentFailure),
    ("RCPT", "550 5.1.1 no such user", PermanentFailure),
    ("RCPT", "550 no such user", PermanentFailure),
    ("RCPT", "554 5.7.1 relay access denied", PermanentFailure),
    ("DATA", "554 5.5.1 no valid recipients", PermanentFailure),
    ("CONTENT", "554 5.7.1 spam", PermanentFailure),
    ("CONTENT", "500 could not process it", PermanentFailure),
    # Enhanced codes win over basic ones.
    ("RCPT", "550 4.2.1 mailbox is full, try later", TemporaryFailure),
    ("RCPT", "450 5.1.1 no such user", PermanentFailure),
    ("CONTENT", "554-4.7.0 try\r\n554-4.7.0 again\r\n554 4.7.0 later", TemporaryFailure),
    ("RCPT", "550 2.1.5 whatever", PermanentFailure),
    # What speaks of the server.
    ("MAIL", "530 5.7.0 authentication required", TransportDown),
    ("MAIL", "530 must issue STARTTLS first", TransportDown),
    ("RCPT", "530 5.7.57 client not authenticated", TransportDown),
    ("MAIL", "535 5.7.8 bad credentials", TransportDown),
    ("MAIL", "550 5.7.11 encryption required", TransportDown),
    ("MAIL", "452 4.3.1 insufficient system storage", TransportDown),
    ("MAIL", "451 4.3.2 not accepting mail", TransportDown),
    ("CONTENT", "454 throttling: daily quota exceeded", TransportDown),
    ("CONTENT", "550 5.4.5 daily sending limit exceeded", TransportDown),
    # A confused dialogue.
    ("RCPT", "503 5.5.1 bad sequence of commands", TemporaryFailure),
    ("MAIL", "354 what?", TemporaryFailure),
    ("DATA", "250 what?", TemporaryFailure),
]


@pytest.mark.parametrize("extensions", [["PIPELINING"], []], ids=["pipelined", "step by step"])
@pytest.mark.parametrize(("verb", "reply", "outcome"), REFUSALS)
async def test_refusal_has_the_outcome_of_what_it_speaks_of(
    smtp: ScriptedSmtp,
    open_transport: Opener,
    new_email: NewEmail,
    verb: str,
    reply: str,
    outcome: type[SendError],
    extensions: list[str],
) -> None:
    """A failed transaction is followed by RSET, and the same connection takes the next e-mail."""
    smtp.extensions = extensions
    await _refused(smtp, open_transport(), new_email, verb, reply, outcome)
    if verb == "DATA" and reply.startswith("250"):
        return  # the content was never asked for, and the server is out of step: any end is good
    assert len(smtp.sessions) == 1
    assert "RSET" in smtp.commands


@pytest.mark.parametrize(
    ("verb", "reply", "outcome"),
    [refusal for refusal in REFUSALS if refusal[0] != "DATA" and not refusal[1].startswith("500")],
)
async def test_refusal_of_what_was_handed_over_at_once_has_the_same_outcome(
    smtp: ScriptedSmtp,
    open_transport: Opener,
    new_email: NewEmail,
    verb: str,
    reply: str,
    outcome: type[SendError],
) -> None:
    """The content is with the server already, which throws it away; RSET, and the next e-mail goes."""
    smtp.extensions = AT_ONCE
    await _refused(smtp, open_transport(), new_email, verb, reply, outcome)
    assert len(smtp.sessions) == 1
    assert "DATA" not in smtp.commands
    assert "RSET" in smtp.commands


async def _refused(
    smtp: ScriptedSmtp,
    transport: SmtpTransport,
    new_email: NewEmail,
    verb: str,
    reply: str,
    outcome: type[SendError],
) -> None:
    """Send one e-mail that is refused, and one that is not."""
    smtp.on(verb, reply)
    with pytest.raises(outcome) as failed:
        await transport.send(new_email(), started)
    assert type(failed.value) is outcome
    assert failed.value.code == int(reply[:3])
    assert reply.split()[-1] in failed.value.text
    await transport.send(new_email(), started)
    assert len(smtp.mails) == 1


async def test_email_goes_in_one_write_where_the_server_takes_chunks(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """MAIL, RCPT, BDAT and the content wait for one answer; dots stay as they are."""
    smtp.extensions = AT_ONCE
    transport = open_transport()
    for subject in ("one", "two"):
        await transport.send(new_email(subject=subject, text=".\n..\nend"), started)
    (session,) = smtp.sessions
    verbs = [command.partition(" ")[0] for command in session]
    assert verbs == ["EHLO", "MAIL", "RCPT", "BDAT", "MAIL", "RCPT", "BDAT"]
    assert [f"BDAT {len(mail)} LAST" for mail in smtp.mails] == [c for c in session if c[:4] == "BDAT"]
    assert all(b"\r\n.\r\n..\r\nend\r\n" in mail for mail in smtp.mails)


async def test_chunking_can_be_switched_off(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """For a server, or a firewall before it, that offers what it does not know."""
    smtp.extensions = AT_ONCE
    await open_transport(chunking=False).send(new_email(), started)
    assert "DATA" in smtp.commands


@pytest.mark.parametrize("code", [500, 502, 504])
async def test_server_that_offers_chunks_and_knows_none_gets_its_emails_the_other_way(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail, code: int
) -> None:
    """Such as behind a firewall: the first one goes by DATA on a new connection, and loses nothing."""
    smtp.extensions = AT_ONCE
    smtp.on("CONTENT", f"{code} 5.5.1 command not recognized")
    transport = open_transport()
    for _ in range(2):
        await transport.send(new_email(), started)
    assert len(smtp.mails) == 2
    verbs = [[command.partition(" ")[0] for command in session] for session in smtp.sessions]
    assert verbs[0][:4] == ["EHLO", "MAIL", "RCPT", "BDAT"]
    assert verbs[1] == ["EHLO", "MAIL", "RCPT", "DATA", "MAIL", "RCPT", "DATA"]


async def test_large_email_asks_for_its_recipient_first(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """Its content would be in vain where the recipient is refused."""
    smtp.extensions = AT_ONCE
    smtp.on("RCPT", "550 5.1.1 no such user")
    transport, large = open_transport(), "x" * (AT_ONCE_BYTES_MAX + 1)
    with pytest.raises(PermanentFailure):
        await transport.send(new_email(text=large), started)
    await transport.send(new_email(text=large), started)
    assert (len(smtp.mails), len(smtp.contents), smtp.commands.count("DATA")) == (1, 1, 2)


async def test_connection_that_rested_shows_that_it_works_before_it_gets_an_email(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that died meanwhile costs nothing then; written at once, nobody would know what became of it."""
    smtp.extensions = AT_ONCE
    transport = open_transport()
    await transport.send(new_email(), started)
    monkeypatch.setattr(connection, "ALIVE_S", 0.0)
    smtp.on("MAIL", CLOSE)
    await transport.send(new_email(), started)
    assert (len(smtp.mails), len(smtp.sessions)) == (2, 2)
    assert "BDAT" not in [session[-1].partition(" ")[0] for session in smtp.sessions]


async def test_email_that_was_taken_in_spite_of_its_sender_is_sent(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """It has arrived: to send it again would double it."""
    smtp.extensions, smtp.naive = AT_ONCE, True
    smtp.on("MAIL", "451 4.7.1 later")
    assert await open_transport().send(new_email(), started) == "250 2.0.0 taken"
    assert len(smtp.mails) == 1


async def test_chunk_that_was_taken_for_nobody_is_refused(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """What counts is the recipient's refusal, whatever is said to the content."""
    smtp.extensions, smtp.naive = AT_ONCE, True
    smtp.on("RCPT", "550 5.1.1 no such user")
    with pytest.raises(PermanentFailure, match=r"5\.1\.1"):
        await open_transport().send(new_email(), started)


async def test_data_that_was_taken_for_nobody_is_ended(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """With PIPELINING a server may answer 354 although it refused the recipient (RFC 2920, 3.1)."""
    smtp.naive = True
    smtp.on("RCPT", "550 5.1.1 no such user")
    smtp.on("CONTENT", "554 5.5.1 no valid recipients")
    transport = open_transport()
    with pytest.raises(PermanentFailure, match=r"5\.1\.1"):
        await transport.send(new_email(), started)
    assert smtp.mails == []
    await transport.send(new_email(subject="next"), started)
    assert len(smtp.sessions) == 1
    assert b"Subject: next" in smtp.mails[0]


async def test_data_that_was_taken_without_a_sender_ends_the_connection(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """An empty e-mail would reach the recipient."""
    smtp.naive = True
    smtp.on("MAIL", "451 4.7.1 later")
    transport = open_transport()
    with pytest.raises(TemporaryFailure, match=r"4\.7\.1"):
        await transport.send(new_email(), started)
    await transport.send(new_email(subject="next"), started)
    assert len(smtp.sessions) == 2
    assert len(smtp.mails) == 1


async def test_greylisted_email_is_taken_when_it_comes_again(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """The repetition is the same e-mail, byte for byte."""
    smtp.on("RCPT", "451 4.7.1 greylisted")
    transport, email = open_transport(), new_email()
    with pytest.raises(TemporaryFailure):
        await transport.send(email, started)
    await transport.send(email, started)
    assert f"<{email.id}@example.org>".encode() in smtp.mails[0]


@pytest.mark.parametrize(
    ("verb", "extensions"),
    [
        *product(["MAIL", "RCPT", "DATA", "CONTENT"], [["PIPELINING"], []]),
        *product(["MAIL", "RCPT", "CONTENT"], [AT_ONCE]),
    ],
)
async def test_421_costs_the_email_nothing_but_a_new_connection(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail, verb: str, extensions: list[str]
) -> None:
    """421 speaks of the connection: one new one is opened at once, and the start is taken anew."""
    smtp.extensions = extensions
    smtp.on(verb, Say("421 4.3.2 going down", close=True))
    transport, starts = open_transport(), 0

    async def start() -> None:
        nonlocal starts
        starts += 1

    await transport.send(new_email(), start)
    assert (len(smtp.mails), len(smtp.sessions), starts) == (1, 2, 2)


@pytest.mark.parametrize("extensions", [AT_ONCE, ["PIPELINING"]], ids=["at once", "pipelined"])
async def test_what_is_no_longer_ours_is_not_handed_over(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail, extensions: list[str]
) -> None:
    """The lease runs out between MAIL FROM and the last byte: another worker sends it, small or large."""
    smtp.extensions = extensions
    transport = open_transport()
    for text in ("small", "x" * 500_000):

        async def start() -> Callable[[], bool]:
            return lambda: False

        with pytest.raises(TemporaryFailure, match="the lease ran out"):
            await transport.send(new_email(text=text), start)
    assert smtp.contents == []
    assert smtp.commands.count("DATA") == (1 if extensions == AT_ONCE else 2)
    await transport.send(new_email(), started)
    assert len(smtp.mails) == 1


async def test_421_again_pauses_the_transport(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """A server that takes nothing now is down, whatever the e-mail is."""
    smtp.always("MAIL", Say("421 4.7.0 too many messages", close=True))
    transport = open_transport()
    with pytest.raises(TransportDown, match="too many messages") as failed:
        await transport.send(new_email(), started)
    assert failed.value.code == 421
    assert len(smtp.sessions) == 2


@pytest.mark.parametrize(
    ("verb", "action", "outcome"),
    [
        ("MAIL", CLOSE, TemporaryFailure),
        ("RCPT", CLOSE, TemporaryFailure),
        ("DATA", CLOSE, TemporaryFailure),
        ("DATA", Say("354 go on", close=True), TemporaryFailure),
        ("DATA", CloseInContent(100_000), TemporaryFailure),
        ("CONTENT", CLOSE, UncertainOutcome),
        ("MAIL", HANG, TemporaryFailure),
        ("DATA", HANG, TemporaryFailure),
        ("CONTENT", HANG, UncertainOutcome),
        ("MAIL", Say("garbage"), TemporaryFailure),
        ("MAIL", Say(raw=b"\x00\xff\xfe\r\n"), TemporaryFailure),
        ("MAIL", Say("999 no such code"), TemporaryFailure),
        ("CONTENT", Say("garbage"), UncertainOutcome),
        ("MAIL", Flood(b"250-and more\r\n" * 1_000), TemporaryFailure),
        ("MAIL", Flood(b"x" * 10_000), TemporaryFailure),
        ("CONTENT", Flood(b"250-and more\r\n" * 1_000), UncertainOutcome),
        ("MAIL", Flood(b"2", pause_s=0.02), TemporaryFailure),
        ("CONTENT", Flood(b"250-drip\r\n", pause_s=0.02), UncertainOutcome),
    ],
)
async def test_lost_or_mad_connection_is_temporary_before_the_final_dot_and_uncertain_after(
    smtp: ScriptedSmtp,
    open_transport: Opener,
    new_email: NewEmail,
    verb: str,
    action: Action,
    outcome: type[SendError],
) -> None:
    """Each wait has its limit for the whole reply, each reply its length, and the next e-mail goes."""
    smtp.on(verb, action)
    transport = open_transport(timeouts=SHORT)
    text = "line\n" * 1_000_000 if isinstance(action, CloseInContent) else "short"
    with pytest.raises(outcome) as failed:
        await transport.send(new_email(text=text), started)
    assert type(failed.value) is outcome
    await transport.send(new_email(), started)
    assert len(smtp.mails) == 1


@pytest.mark.parametrize(
    ("verb", "action", "outcome"),
    [
        ("MAIL", CLOSE, UncertainOutcome),
        ("RCPT", CLOSE, UncertainOutcome),
        ("BDAT", CloseInContent(100), UncertainOutcome),
        ("CONTENT", CLOSE, UncertainOutcome),
        ("MAIL", HANG, UncertainOutcome),
        ("CONTENT", HANG, UncertainOutcome),
        ("RCPT", Say("garbage"), UncertainOutcome),
        ("CONTENT", Flood(b"250-and more\r\n" * 1_000), UncertainOutcome),
        # A refusal that came before the end of the connection stands: nothing was taken.
        ("MAIL", Say("550 5.7.1 go away", close=True), PermanentFailure),
        ("RCPT", Say("450 4.2.1 later", close=True), TemporaryFailure),
        ("CONTENT", Say("554 5.7.1 spam", close=True), PermanentFailure),
    ],
)
async def test_connection_that_is_lost_with_all_handed_over_is_uncertain(
    smtp: ScriptedSmtp,
    open_transport: Opener,
    new_email: NewEmail,
    verb: str,
    action: Action,
    outcome: type[SendError],
) -> None:
    """In one write the last byte goes with the first one: from then on the server may have the e-mail."""
    smtp.extensions = AT_ONCE
    smtp.on(verb, action)
    transport = open_transport(timeouts=SHORT)
    with pytest.raises(outcome) as failed:
        await transport.send(new_email(), started)
    assert type(failed.value) is outcome
    await transport.send(new_email(), started)
    assert len(smtp.mails) == 1


@pytest.mark.parametrize("mails_before", [1, 5])
async def test_kept_connections_that_the_server_closed_cost_nothing(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail, mails_before: int
) -> None:
    """A server that restarted is met on new connections at once."""
    transport = open_transport()
    await asyncio.gather(*(transport.send(new_email(), started) for _ in range(mails_before)))
    smtp.drop_connections()
    await asyncio.gather(*(transport.send(new_email(), started) for _ in range(5)))
    assert len(smtp.mails) == mails_before + 5


async def test_kept_connection_that_dies_at_the_next_command_is_replaced_once(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """A proxy may only notice that the server has gone when something is said."""
    transport = open_transport()
    await transport.send(new_email(), started)
    smtp.on("MAIL", CLOSE)
    await transport.send(new_email(), started)
    assert (len(smtp.mails), len(smtp.sessions)) == (2, 2)
    smtp.on("MAIL", CLOSE, CLOSE)
    with pytest.raises(TemporaryFailure):
        await transport.send(new_email(), started)


async def test_connection_that_closes_while_the_start_is_taken_is_replaced(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """Nothing was said yet on the new connection either."""
    transport, starts = open_transport(), 0

    async def start() -> None:
        nonlocal starts
        starts += 1
        if starts == 1:
            smtp.drop_connections()
            await until(lambda: smtp.open_now == 0)

    await transport.send(new_email(), start)
    assert (len(smtp.mails), starts) == (1, 2)


async def test_reply_that_nobody_waits_for_ends_the_connection(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """It would be taken for the answer to the next e-mail."""
    smtp.on("CONTENT", Say("250 2.0.0 taken\r\n250 2.0.0 and another one"))
    transport = open_transport()
    assert await transport.send(new_email(), started) == "250 2.0.0 taken"
    smtp.on("RCPT", "550 5.1.1 no such user")
    with pytest.raises(PermanentFailure):
        await transport.send(new_email(), started)
    assert len(smtp.sessions) == 2


async def test_connection_has_an_end_after_500_mails(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """Servers limit the mails of one connection; ours says QUIT before that."""
    transport = open_transport(connections=1)
    for _ in range(501):
        await transport.send(new_email(), started)
    assert [session.count("DATA") for session in smtp.sessions] == [500, 1]
    await until(lambda: smtp.sessions[0][-1] == "QUIT")


async def test_idle_connection_says_goodbye(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """Before the server would close it in the middle of the next e-mail."""
    transport = open_transport(timeouts=SmtpTimeouts(idle_timeout_s=0.05))
    await asyncio.gather(*(transport.send(new_email(), started) for _ in range(3)))
    await until(lambda: smtp.open_now == 0)
    assert smtp.commands.count("QUIT") == len(smtp.sessions)


async def test_no_more_connections_than_allowed_stand_at_once(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """The others' mail waits its turn, first come, first served."""
    transport = open_transport(connections=3)
    most = 0

    async def start() -> None:
        nonlocal most
        most = max(most, smtp.open_now)

    await asyncio.gather(*(transport.send(new_email(), start) for _ in range(30)))
    assert most <= 3
    assert len(smtp.mails) == 30


async def test_server_that_takes_few_connections_is_asked_for_no_more(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """421 to the third connection does not pause a transport whose other two work."""
    transport = open_transport(connections=8)
    release = asyncio.Event()

    async def start() -> None:
        await release.wait()

    first = [asyncio.create_task(transport.send(new_email(), start)) for _ in range(2)]
    await until(lambda: smtp.commands.count("EHLO") == 2)
    smtp.always("GREETING", Say("421 4.7.0 too many connections", close=True))
    more = [asyncio.create_task(transport.send(new_email(), started)) for _ in range(20)]
    await until(lambda: len(smtp.sessions) > 2)
    release.set()
    await asyncio.gather(*first, *more)
    assert len(smtp.mails) == 22


async def test_connections_grow_while_mails_wait(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """Ten at first, and one more for each e-mail that the server has taken."""
    transport = open_transport(connections=15)
    held: list[asyncio.Future[None]] = []

    async def start() -> None:
        held.append(asyncio.get_running_loop().create_future())
        await held[-1]

    sends = [asyncio.create_task(transport.send(new_email(), start)) for _ in range(40)]
    for wave in (10, 15, 15):
        await until(lambda: len(held) == wave)  # noqa: B023
        assert smtp.open_now == wave
        for future in held:
            future.set_result(None)
        held.clear()
    await asyncio.gather(*sends)
    assert len(smtp.mails) == 40


async def test_connection_that_is_too_many_costs_the_email_nothing(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """Exchange says so only when it has the content: half are closed, and the e-mail goes by another."""
    transport = open_transport(connections=8)
    arrived = asyncio.Event()
    starts = 0

    async def start() -> None:
        nonlocal starts
        starts += 1
        if starts == 8:
            arrived.set()
        await arrived.wait()

    smtp.on("CONTENT", "432 4.3.2 Concurrent connections limit exceeded")
    await asyncio.gather(*(transport.send(new_email(), start) for _ in range(8)))
    await until(lambda: smtp.open_now <= 4)
    assert (len(smtp.mails), len(smtp.sessions)) == (8, 8)


async def test_server_that_refused_a_connection_is_asked_for_one_more_later(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before its time, and for one at a time, however many mails wait."""
    transport = open_transport(connections=8)
    await transport.send(new_email(), started)
    smtp.on("GREETING", *[Say("421 4.7.0 too many connections", close=True)] * 7)
    await asyncio.gather(*(transport.send(new_email(), started) for _ in range(20)))
    refused = len(smtp.sessions)
    await asyncio.gather(*(transport.send(new_email(), started) for _ in range(20)))
    assert len(smtp.sessions) == refused
    monkeypatch.setattr(pool, "GROW_AGAIN_S", 0.0)
    await asyncio.gather(*(transport.send(new_email(), started) for _ in range(20)))
    assert refused < len(smtp.sessions) <= refused + 7


async def test_many_that_are_too_many_at_once_halve_the_connections_once(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """All of those in flight are told so: that is one answer, not eight."""
    transport = open_transport(connections=8)
    arrived = asyncio.Event()
    starts = 0

    async def start() -> None:
        nonlocal starts
        starts += 1
        if starts == 8:
            arrived.set()
        await arrived.wait()

    smtp.on("CONTENT", *["432 4.3.2 Concurrent connections limit exceeded"] * 6)
    await asyncio.gather(*(transport.send(new_email(), start) for _ in range(8)))
    await until(lambda: smtp.open_now == 4)
    assert len(smtp.mails) == 8


@pytest.mark.parametrize("verb", ["GREETING", "EHLO"])
async def test_421_in_the_handshake_pauses_nothing_where_others_work(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail, verb: str
) -> None:
    """The server takes one connection: the others' mail waits for it."""
    transport = open_transport(connections=8)
    await transport.send(new_email(), started)
    smtp.always(verb, Say("421 4.7.0 too many connections", close=True))
    await asyncio.gather(*(transport.send(new_email(), started) for _ in range(8)))
    assert len(smtp.mails) == 9


@pytest.mark.parametrize(
    ("verb", "action"),
    [
        ("GREETING", Say("421 4.3.2 no service", close=True)),
        ("GREETING", Say("554 5.7.1 go away", close=True)),
        ("GREETING", CLOSE),
        ("GREETING", HANG),
        ("GREETING", Say("HTTP/1.1 400 Bad Request")),
        ("GREETING", Flood(b"220-hello\r\n" * 1_000)),
        ("EHLO", CLOSE),
        ("EHLO", HANG),
        ("EHLO", Say("421 4.3.2 busy", close=True)),
        ("EHLO", Flood(b"250-X\r\n" * 1_000)),
        ("EHLO", Flood(b"2", pause_s=0.02)),
    ],
)
async def test_server_that_cannot_be_greeted_is_down(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail, verb: str, action: Action
) -> None:
    """No e-mail was spoken of: the start is not taken, and no attempt is counted."""
    smtp.on(verb, action)
    transport = open_transport(timeouts=SHORT)

    async def start() -> None:
        pytest.fail("the attempt was started")

    with pytest.raises(TransportDown) as failed:
        await transport.send(new_email(), start)
    assert failed.value.text.startswith(f"smtp://127.0.0.1:{smtp.port}: ")
    await transport.send(new_email(), started)


async def test_many_mails_meet_a_server_that_is_down_with_one_connection(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """A refused password is not tried ten times at once: servers lock accounts for that."""
    smtp.always("GREETING", Say("554 5.7.1 go away", close=True))
    transport = open_transport(connections=10)
    ends = await asyncio.gather(
        *(transport.send(new_email(), started) for _ in range(10)), return_exceptions=True
    )
    assert {type(end) for end in ends} == {TransportDown}
    assert len(smtp.sessions) == 1


async def test_old_server_without_ehlo_is_greeted_by_helo(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """RFC 5321 asks clients to fall back."""
    smtp.on("EHLO", "502 5.5.1 what?")
    await open_transport().send(new_email(), started)
    assert len(smtp.mails) == 1


@pytest.mark.parametrize(
    ("option", "said"), [(None, "EHLO ["), ("mail.example.org", "EHLO mail.example.org")]
)
async def test_helo_name(
    smtp: ScriptedSmtp,
    open_transport: Opener,
    new_email: NewEmail,
    monkeypatch: pytest.MonkeyPatch,
    option: str | None,
    said: str,
) -> None:
    """A host without a whole name says its address, as RFC 5321 has it, and asks no DNS."""
    monkeypatch.setattr(socket, "gethostname", lambda: "box")
    await open_transport(helo=option).send(new_email(), started)
    assert smtp.sessions[0][0].startswith(said)


@pytest.mark.parametrize(
    ("host", "port", "says"),
    [("127.0.0.1", 1, "refused"), ("no-such-host.invalid", 25, "not found"), ("127.0.0.1", 0, "")],
)
async def test_server_that_is_not_there_is_down(new_email: NewEmail, host: str, port: int, says: str) -> None:
    """Refused connections and unknown names say so."""
    transport = SmtpTransport(SmtpServer(host, port))
    with pytest.raises(TransportDown) as failed:
        await transport.send(new_email(), started)
    assert says in failed.value.text.lower()
    await transport.close()


async def test_email_larger_than_the_server_takes_is_permanent(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """SIZE says so before anything is sent, and the connection takes the next one."""
    smtp.extensions = ["SIZE 1000"]
    transport = open_transport()
    with pytest.raises(PermanentFailure, match="1,000"):
        await transport.send(new_email(text="x" * 2_000), started)
    assert "MAIL" not in smtp.commands
    await transport.send(new_email(), started)
    assert f" SIZE={len(smtp.mails[0])}" in next(c for c in smtp.sessions[0] if c.startswith("MAIL"))


@pytest.mark.parametrize("size", ["SIZE", "SIZE 0", "SIZE nonsense", f"SIZE {'9' * 400}"])
async def test_size_without_a_limit_is_none(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail, size: str
) -> None:
    """RFC 1870: no number, or zero, is no limit."""
    smtp.extensions = [size]
    await open_transport().send(new_email(), started)
    assert len(smtp.mails) == 1


async def test_international_address_needs_a_server_that_takes_it(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """SMTPUTF8 is asked for where an address has no ASCII form, and only there."""
    email = new_email(to_email="zoë@bücher.example")
    await open_transport().send(email, started)
    await open_transport().send(new_email(to_email="zoe@bücher.example"), started)
    mail, plain = ([c for c in session if c.startswith(("MAIL", "RCPT"))] for session in smtp.sessions)
    assert mail[0].endswith("BODY=8BITMIME SMTPUTF8")
    assert mail[1] == "RCPT TO:<zoë@xn--bcher-kva.example>"
    assert "UTF8" not in plain[0]
    smtp.extensions = ["8BITMIME"]
    with pytest.raises(PermanentFailure, match="SMTPUTF8"):
        await open_transport().send(email, started)


async def test_content_that_no_server_takes_is_given_up_block_by_block(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """A server that stops reading holds up nobody for ever, and it has not the final dot."""
    stopped = asyncio.Event()

    async def stop_reading(*_: object) -> bool:
        await stopped.wait()
        return False

    smtp._take_content = stop_reading  # type: ignore[method-assign, assignment]
    smtp.extensions = ["PIPELINING"]
    transport = open_transport(timeouts=SHORT)
    with pytest.raises(TemporaryFailure, match="took no content"):
        await transport.send(new_email(text="line\n" * 4_000_000), started)
    stopped.set()


async def test_closed_transport_is_down(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """What waits for its turn when it is closed is told so."""
    transport = open_transport(connections=1)
    held = asyncio.Event()

    async def start() -> None:
        held.set()
        await asyncio.Event().wait()

    first = asyncio.create_task(transport.send(new_email(), start))
    await held.wait()
    second = asyncio.create_task(transport.send(new_email(), started))
    await asyncio.sleep(0)
    await transport.close()
    with pytest.raises(TransportDown, match="closed"):
        await second
    first.cancel()
    with pytest.raises(TransportDown, match="closed"):
        await transport.send(new_email(), started)
    assert smtp.mails == []


# TLS and AUTH


@pytest.fixture
async def open_secured(authority: Authority) -> AsyncIterator[Callable[..., Any]]:
    """Open a scripted server that can TLS, and a transport to it."""
    async with AsyncExitStack() as stack:

        async def opened(
            *, host: str = "127.0.0.1", days: int = 30, implicit: bool = False, **changes: Any
        ) -> tuple[ScriptedSmtp, SmtpTransport]:
            server = ScriptedSmtp(tls=authority.server_context(host, days=days), implicit_tls=implicit)
            server.extensions.append("AUTH PLAIN LOGIN")
            await server.open()
            stack.push_async_callback(server.close)
            where = replace(SmtpServer("127.0.0.1", server.port, tls=implicit, timeouts=SHORT_TLS), **changes)
            transport = SmtpTransport(where)
            stack.push_async_callback(transport.close)
            return server, transport

        yield opened


SHORT_TLS = SHORT.model_copy(update={"greeting_timeout_s": 5, "ehlo_timeout_s": 5})


async def test_starttls_is_taken_where_it_is_offered(open_secured: Any, new_email: NewEmail) -> None:
    """Without AUTH a certificate that nobody knows is good enough: better than none."""
    server, transport = await open_secured()
    await transport.send(new_email(), started)
    verbs = [command.partition(" ")[0] for command in server.sessions[0]]
    assert verbs[:3] == ["EHLO", "STARTTLS", "EHLO"]


async def test_starttls_never(open_secured: Any, new_email: NewEmail) -> None:
    """For a relay whose TLS is broken."""
    server, transport = await open_secured(starttls="never")
    await transport.send(new_email(), started)
    assert "STARTTLS" not in server.commands


async def test_password_is_sent_over_tls_only(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """A server, or somebody in between, that hides STARTTLS gets neither password nor e-mail."""
    smtp.extensions.append("AUTH PLAIN LOGIN")
    transport = open_transport(starttls="required", username="courier", password=SECRET)
    with pytest.raises(TransportDown, match="offers no STARTTLS"):
        await transport.send(new_email(), started)
    assert "AUTH" not in smtp.commands
    assert "MAIL" not in smtp.commands


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(
    ("host", "days", "trusted"),
    [("127.0.0.1", 30, False), ("127.0.0.1", -1, True), ("mail.example.org", 30, True)],
    ids=["unknown authority", "expired", "another host"],
)
async def test_certificate_that_proves_nothing_is_refused(
    open_secured: Any,
    authority: Authority,
    new_email: NewEmail,
    implicit: bool,
    host: str,
    days: int,
    trusted: bool,
) -> None:
    """Where TLS is required the certificate must be good, unless verify=no says otherwise."""
    ca_file = str(authority.ca_file) if trusted else None
    asked: dict[str, Any] = {"host": host, "days": days, "implicit": implicit, "starttls": "required"}
    login: dict[str, Any] = {"username": "courier", "password": SECRET, "ca_file": ca_file}
    server, transport = await open_secured(**asked, **login)
    with pytest.raises(TransportDown, match="certificate is not trusted") as failed:
        await transport.send(new_email(), started)
    assert ("?ca=FILE" in str(failed.value)) is not trusted
    assert "AUTH" not in server.commands
    server, transport = await open_secured(**asked, **login, verify=False)
    await transport.send(new_email(), started)
    assert len(server.mails) == 1


async def test_smtps_where_a_server_begins_in_plain_says_what_to_write(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """As on port 587: OpenSSL's own words tell nobody so."""
    transport = open_transport(tls=True)
    with pytest.raises(TransportDown, match="it does not begin with TLS; write smtp://"):
        await transport.send(new_email(), started)


async def test_plain_replies_behind_starttls_are_never_read(
    open_secured: Any, authority: Authority, new_email: NewEmail
) -> None:
    """What somebody slips in before TLS begins (CVE-2011-0411) is no answer to what is said in TLS."""
    server, transport = await open_secured(starttls="required", ca_file=str(authority.ca_file))
    server.on("STARTTLS", Say("220 go\r\n250-evil.test\r\n250 SIZE 1\r\n250 2.1.0 injected"))
    await transport.send(new_email(), started)
    assert len(server.mails) == 1


@pytest.mark.parametrize(
    "action",
    [Say("454 4.7.0 TLS not available"), Say("220 go\r\nthis is no TLS", close=True), CLOSE, HANG],
    ids=["454", "garbage", "close", "hang"],
)
async def test_tls_that_fails_is_down(open_secured: Any, new_email: NewEmail, action: Action) -> None:
    """Not even where TLS is optional is the e-mail sent in plain: what was offered must work."""
    server, transport = await open_secured(timeouts=SHORT)
    server.tls = None if isinstance(action, Say) and action.text.startswith("220") else server.tls
    server.extensions.append("STARTTLS")
    server.on("STARTTLS", action)
    with pytest.raises(TransportDown):
        await transport.send(new_email(), started)
    assert server.mails == []


@pytest.mark.parametrize(
    "reply", ["535 5.7.8 no", "454 4.7.0 later", f"535 5.7.8 wrong password: {SECRET}", "535 Y291cmllcg=="]
)
async def test_refused_password_is_down_and_shown_nowhere(
    open_secured: Any, authority: Authority, new_email: NewEmail, reply: str
) -> None:
    """The transport pauses with a text that says what to check, even where the server repeats it."""
    server, transport = await open_secured(
        starttls="required", username="courier", password=SECRET, ca_file=str(authority.ca_file)
    )
    server.always("AUTH", reply)
    with pytest.raises(TransportDown, match="check user and password") as failed:
        await transport.send(new_email(), started)
    assert SECRET not in str(failed.value)
    assert SECRET not in repr(transport) + repr(SmtpServer("h", 1, username="u", password=SECRET))
    assert server.mails == []


async def test_what_to_check_is_said_to_who_is_called_user(
    open_secured: Any, authority: Authority, new_email: NewEmail
) -> None:
    """What a server repeats is blotted out, not the same words in our own advice."""
    server, transport = await open_secured(
        starttls="required", username="user", password="password", ca_file=str(authority.ca_file)
    )
    server.always("AUTH", "535 5.7.8 no such user")
    with pytest.raises(TransportDown, match=r"no such \*\*\*; check user and password in POSTROOM_TRANSPORT"):
        await transport.send(new_email(), started)


async def test_server_without_auth_is_down_for_who_has_a_password(
    smtp: ScriptedSmtp, open_transport: Opener, new_email: NewEmail
) -> None:
    """starttls=never sends it in plain on purpose; a server that takes none is a wrong set-up."""
    transport = open_transport(starttls="never", username="courier", password=SECRET)
    with pytest.raises(TransportDown, match="AUTH"):
        await transport.send(new_email(), started)
