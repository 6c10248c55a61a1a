"""Servers that fail as they are told, a worker, a database: what the row says then, and what arrived."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.email.transports.servers import resend_api
from tests.email.transports.servers.certificates import Authority
from tests.email.transports.servers.resend_api import KEY, ResendApi, drop
from tests.email.transports.servers.resend_api import error as answer
from tests.email.transports.servers.scripted_smtp import (
    CLOSE,
    HANG,
    Action,
    CloseInContent,
    Say,
    ScriptedSmtp,
)
from tests.journey.house import House, house_of
from tests.support.postgres import PostgresServer
from tests.support.waiting import until

LANES = 3
"""Faults that are tried at the same time."""

NewDatabase = Callable[[], str]
Try = Callable[[str], Awaitable[None]]
"""Tries one fault; fails where it does not end as promised."""


@pytest.fixture
def new_database(postgres_server: PostgresServer, _migrated_template: str) -> Iterator[NewDatabase]:
    """Makes fresh migrated databases, as many as a test asks for."""
    names: list[str] = []

    def made() -> str:
        names.append(postgres_server.create_database(template=_migrated_template))
        return postgres_server.url_of(names[-1])

    yield made
    for name in names:
        postgres_server.drop_database(name)


@asynccontextmanager
async def scripted(**options: Any) -> AsyncIterator[ScriptedSmtp]:
    """An SMTP server that fails as it is told."""
    server = ScriptedSmtp(**options)
    await server.open()
    try:
        yield server
    finally:
        await server.close()


@asynccontextmanager
async def resend_server() -> AsyncIterator[ResendApi]:
    """A server that speaks Resend's API."""
    server = ResendApi()
    await server.open()
    try:
        yield server
    finally:
        await server.close()


@dataclass(frozen=True)
class End:
    """
    What a faulty attempt must come to.

    Attributes:
        handed_over: How often the server heard the whole mail.
    """

    status: str
    attempts: int
    errors: int
    last_error: str | None
    handed_over: int = 1


SENT = End("sent", 1, 0, None)


def repeated(last_error: str, *, handed_over: int = 1) -> End:
    """One attempt failed and the next one succeeded."""
    return End("sent", 2, 1, last_error, handed_over)


def dead(last_error: str, *, attempts: int = 1, handed_over: int = 0) -> End:
    return End("dead_letter", attempts, attempts, last_error, handed_over)


def uncounted(last_error: str) -> End:
    """The transport was down: no attempt was counted."""
    return End("sent", 1, 0, last_error)


LONG = ("word " * 180 + "\n") * 3_000
SMTP_FAULTS: dict[str, tuple[str, list[Action | str], End]] = {
    "4xx to the recipient": ("RCPT", ["450 4.2.0 mailbox busy"], repeated("450 4.2.0 mailbox busy")),
    "4xx to the content": ("CONTENT", ["451 4.3.0 later"], repeated("451 4.3.0 later", handed_over=2)),
    "greylisting": ("RCPT", ["451 4.7.1 greylisted"], repeated("451 4.7.1 greylisted")),
    "greylisting after the content": (
        "CONTENT",
        ["451 4.7.1 greylisted"],
        repeated("451 4.7.1 greylisted", handed_over=2),
    ),
    "4xx for ever": (
        "RCPT",
        ["450 4.2.0 mailbox busy"] * 6,
        dead("450 4.2.0 mailbox busy", attempts=6),
    ),
    "5xx to the recipient": ("RCPT", ["550 5.1.1 no such user"], dead("550 5.1.1 no such user")),
    "5xx to the content": ("CONTENT", ["554 5.7.1 spam"], dead("554 5.7.1 spam", handed_over=1)),
    "421 once": ("MAIL", [Say("421 4.3.2 going down", close=True)], SENT),
    "421 twice": ("MAIL", [Say("421 4.3.2 going down", close=True)] * 2, uncounted("421 4.3.2 going down")),
    "421 as a greeting": ("GREETING", [Say("421 4.3.2 busy", close=True)], uncounted("421 4.3.2 busy")),
    "wants authentication": ("MAIL", ["530 5.7.0 authenticate first"], uncounted("530 5.7.0")),
    "closes at MAIL FROM": ("MAIL", [CLOSE], repeated("")),
    "closes before the content": ("DATA", [CLOSE], repeated("")),
    "closes before the final dot": ("DATA", [CloseInContent(50_000)], repeated("")),
    "closes after the final dot": ("CONTENT", [CLOSE], repeated("uncertain: ", handed_over=2)),
    "closes as a greeting": ("GREETING", [CLOSE], uncounted("")),
    "hangs as a greeting": ("GREETING", [HANG], uncounted("")),
    "hangs at MAIL FROM": ("MAIL", [HANG], repeated("")),
    "hangs before the final dot": ("DATA", [HANG], repeated("")),
    "hangs after the final dot": ("CONTENT", [HANG], repeated("uncertain: ", handed_over=2)),
}


async def test_each_fault_of_an_smtp_server_ends_as_promised(new_database: NewDatabase) -> None:
    """The row says what happened; the next mail goes out; each copy has the same bytes."""

    @asynccontextmanager
    async def lane() -> AsyncIterator[Try]:
        async with scripted() as smtp:
            url = f"smtp://127.0.0.1:{smtp.port}"
            async with house_of(new_database(), url) as house, house.working():
                yield partial(_smtp_fault, smtp, house)

    await _each(SMTP_FAULTS, lane)


async def _smtp_fault(smtp: ScriptedSmtp, house: House, fault: str) -> None:
    verb, actions, end = SMTP_FAULTS[fault]
    smtp.drop_connections()
    smtp.on(verb, *actions)
    is_cut_off = any(isinstance(action, CloseInContent) for action in actions)
    faulty = await house.settled(await house.queue(fault, LONG if is_cut_off else "<p>Hi</p>"))
    following = await house.settled(await house.queue("following"))
    check(faulty, end)
    check(following, SENT)
    copies = [mail for mail in smtp.contents if str(faulty["id"]).encode() in mail]
    assert len(copies) == end.handed_over
    assert len(set(copies)) <= 1, "a repetition is another mail"
    for row in (faulty, following):
        assert sum(str(row["id"]).encode() in mail for mail in smtp.mails) == (row["status"] == "sent")


async def test_a_mail_that_may_be_out_is_parked_where_the_policy_says_so(database_url: str) -> None:
    """email.on_uncertain = park: handed over once, a dead letter, and not again."""
    async with scripted() as smtp:
        smtp.on("CONTENT", CLOSE)
        url = f"smtp://127.0.0.1:{smtp.port}"
        async with house_of(database_url, url, **{"email.on_uncertain": "park"}) as house, house.working():
            check(await house.settled(await house.queue("faulty")), dead("uncertain: ", handed_over=1))
        assert len(smtp.contents) == 1


async def test_a_server_that_is_down_for_a_while_costs_no_mail_an_attempt(database_url: str) -> None:
    """Twenty mails wait for it; one says why; then each goes out once."""
    async with scripted() as smtp:
        await smtp.close()
        async with house_of(database_url, f"smtp://127.0.0.1:{smtp.port}") as house:
            ids = [await house.queue(f"mail {number}") for number in range(20)]

            async def one_was_refused() -> bool:
                return any([(await house.row(each))["last_error"] for each in ids])

            async with house.working():
                await until(one_was_refused)
                waiting = [await house.row(each) for each in ids]
                assert {(row["status"], row["attempts"]) for row in waiting} <= {
                    ("pending", 0),
                    ("processing", 0),
                }
                assert any("refused" in (row["last_error"] or "") for row in waiting)
                await smtp.open()
                rows = [await house.settled(each) for each in ids]
        assert {(row["status"], row["attempts"], row["error_count"]) for row in rows} == {("sent", 1, 0)}
        assert len(smtp.mails) == 20


SET_UP_FAULTS: dict[str, tuple[Callable[[ScriptedSmtp, Authority], object], str]] = {
    "an expired certificate": (lambda smtp, authority: _expire(smtp, authority), "certificate"),
    "454": (lambda smtp, _: smtp.always("STARTTLS", "454 4.7.0 TLS not available"), "454"),
    "no TLS behind STARTTLS": (
        lambda smtp, _: smtp.always("STARTTLS", Say("220 go\r\nthis is no TLS", close=True)),
        "",
    ),
    "a wrong password": (lambda smtp, _: smtp.always("AUTH", "535 5.7.8 no"), "535"),
}


async def test_a_set_up_that_fails_costs_no_attempt_and_lets_no_mail_out_in_plain(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    """The mail waits and says why; when the server is mended it goes out, once."""
    authority = Authority(tmp_path)
    good = authority.server_context()

    @asynccontextmanager
    async def lane() -> AsyncIterator[Try]:
        async with scripted(tls=good) as smtp:
            smtp.extensions.append("AUTH PLAIN LOGIN")
            url = f"smtp://courier:s3cret@127.0.0.1:{smtp.port}?ca={authority.ca_file}"
            async with house_of(new_database(), url) as house, house.working():
                yield partial(_set_up_fault, smtp, house, authority)

    await _each(SET_UP_FAULTS, lane)


async def _set_up_fault(smtp: ScriptedSmtp, house: House, authority: Authority, fault: str) -> None:
    spoil, said = SET_UP_FAULTS[fault]
    good, mails_before = smtp.tls, len(smtp.mails)
    smtp.drop_connections()
    smtp.sessions.clear()
    spoil(smtp, authority)
    email_id = await house.queue(fault)

    async def was_refused() -> bool:
        return (await house.row(email_id))["last_error"] is not None

    await until(was_refused)
    row = await house.row(email_id)
    assert (row["attempts"], row["error_count"], row["waits_for"]) == (0, 0, "transport")
    assert said in row["last_error"]
    assert "s3cret" not in row["last_error"]
    assert "MAIL" not in smtp.commands
    smtp.tls = good
    smtp._always.clear()
    check(await house.settled(email_id), uncounted(said))
    assert len(smtp.mails) == mails_before + 1


def _expire(server: ScriptedSmtp, authority: Authority) -> None:
    server.tls = authority.server_context(days=-1)


RESEND_FAULTS: dict[str, tuple[list[resend_api.Fault], End]] = {
    "429 with Retry-After": (
        [answer(429, "rate_limit_exceeded", **{"Retry-After": "1"})],
        uncounted("429 rate_limit_exceeded"),
    ),
    "the day's quota is used up": (
        [answer(429, "daily_quota_exceeded", **{"Retry-After": "1"})],
        uncounted("429 daily_quota_exceeded"),
    ),
    "409, the first request is still in work": (
        [answer(409, "concurrent_idempotent_requests")],
        repeated("409 concurrent_idempotent_requests"),
    ),
    "409, the key came with another body": (
        [answer(409, "invalid_idempotent_request")],
        dead("409 invalid_idempotent_request"),
    ),
    "401": ([answer(401, "missing_api_key")], uncounted("401 missing_api_key")),
    "403": ([answer(403, "invalid_api_key")], uncounted("403 invalid_api_key")),
    "422": ([answer(422, "missing_required_field")], dead("422 missing_required_field")),
    "500": ([answer(500, "internal_server_error")], repeated("500 internal_server_error")),
    "503 with Retry-After": (
        [answer(503, "service_unavailable", **{"Retry-After": "1"})],
        repeated("503 service_unavailable"),
    ),
    "500 for ever": (
        [answer(500, "internal_server_error")] * 6,
        dead("500 internal_server_error", attempts=6),
    ),
    "closes without an answer": ([drop, drop], repeated("uncertain: ")),
}


async def test_each_fault_of_a_provider_ends_as_promised(new_database: NewDatabase) -> None:
    """The provider's key is the row's id at every attempt, so nothing is taken twice."""

    @asynccontextmanager
    async def lane() -> AsyncIterator[Try]:
        async with resend_server() as resend:
            url = f"resend+http://{KEY}@127.0.0.1:{resend.port}"
            async with house_of(new_database(), url) as house, house.working():
                yield partial(_resend_fault, resend, house)

    await _each(RESEND_FAULTS, lane)


async def _resend_fault(resend: ResendApi, house: House, fault: str) -> None:
    faults, end = RESEND_FAULTS[fault]
    resend.faults.extend(faults)
    faulty = await house.settled(await house.queue(fault))
    following = await house.settled(await house.queue("following"))
    check(faulty, end)
    check(following, SENT)
    for row in (faulty, following):
        taken = [body for body in resend.sent if str(row["id"]) in body["headers"]["Message-ID"]]
        assert len(taken) == (row["status"] == "sent")
    keys = {heads["Idempotency-Key"] for heads, body in resend.requests if body["subject"] == fault}
    assert keys == {str(faulty["id"])}


async def _each(faults: Iterable[str], open_lane: Callable[[], AbstractAsyncContextManager[Try]]) -> None:
    """
    Try each fault of a table.

    Most of the time they wait for a pause to end, so there are several lanes, each with a server, a
    database and a worker of its own.
    """
    left = iter(faults)
    failed: dict[str, Exception] = {}

    async def work() -> None:
        async with open_lane() as ends_well:
            for fault in left:
                try:
                    await ends_well(fault)
                except Exception as error:
                    failed[fault] = error

    await asyncio.gather(*(work() for _ in range(LANES)))
    if failed:
        raise ExceptionGroup(f"did not end as promised: {', '.join(failed)}", list(failed.values()))


async def test_an_answer_of_a_provider_that_is_lost_does_not_send_the_mail_twice(database_url: str) -> None:
    """It had taken the mail; the same key with the same body gets the first answer again."""
    async with resend_server() as resend:

        async def take_and_drop(request: web.Request) -> web.StreamResponse:
            taken = await resend._emails(request)
            assert taken.status == 200
            return await drop(request)

        resend.faults.append(take_and_drop)
        url = f"resend+http://{KEY}@127.0.0.1:{resend.port}"
        async with house_of(database_url, url) as house, house.working():
            check(await house.settled(await house.queue("faulty")), repeated("uncertain: "))
        assert len(resend.sent) == 1


def check(row: Any, end: End) -> None:
    """Compare a row with what it must have come to."""
    assert (row["status"], row["attempts"], row["error_count"]) == (end.status, end.attempts, end.errors), row
    if end.last_error is None:
        assert row["last_error"] is None
    else:
        assert row["last_error"] is not None
        assert end.last_error in row["last_error"]
    assert (row["sent_at"] is not None) == (end.status == "sent")
    assert (row["failed_at"] is not None) == (end.status == "dead_letter")
