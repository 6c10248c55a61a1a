"""What every transport does, whichever it is: one suite for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from postroom import Attachment
from postroom.email.attachments import check_attachments
from postroom.email.mime import render
from postroom.errors import (
    NotStarted,
    PermanentFailure,
    SendError,
    TemporaryFailure,
    TransportDown,
    UncertainOutcome,
)
from tests.email.conftest import NewEmail
from tests.email.transports.houses import HOUSES, PASSWORD, House
from tests.email.transports.servers.certificates import Authority
from tests.email.transports.servers.resend_api import KEY
from tests.support.waiting import until

OUTCOMES: dict[str, type[SendError]] = {
    "temporary": TemporaryFailure,
    "permanent": PermanentFailure,
    "down": TransportDown,
    "uncertain": UncertainOutcome,
}
AWKWARD_TEXT = "\n".join(
    [
        ".",
        "..",
        ".leading",
        "",
        "  indented  ",
        "From here",
        "Grüße, Zoë 店",
        "x" * 3_000,
        "=3D",
        "--=_",
        "end",
    ]
)


async def started() -> None:
    """A start that is granted at once."""


# aiosmtpd sees no TLS where the stream brings it (smtps), and warns.
pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")


@pytest.fixture(params=list(HOUSES))
async def house(request: pytest.FixtureRequest, authority: Authority, folder: Path) -> AsyncIterator[House]:
    """Each transport in turn."""
    async with HOUSES[request.param](authority, folder) as opened:
        yield opened
        await opened.transport.close()


async def test_email_arrives_as_it_was_written(house: House, new_email: NewEmail) -> None:
    """Sender, recipient, subject, both parts, Message-ID and further headers come out unchanged."""
    email = new_email(
        subject="Grüße & mehr " * 20,
        text=AWKWARD_TEXT,
        html=f"<p>{AWKWARD_TEXT}</p>",
        reply_to="help@example.org",
        headers={"X-Campaign": "spring", "List-Unsubscribe": "<https://example.org/u?a=1&b=2>"},
    )
    reply = await house.transport.send(email, started)
    assert reply
    assert "\n" not in reply
    (arrived,) = house.arrived()
    assert (arrived.sender, arrived.to) == ("Shop <shop@example.org>", "ada@example.com")
    assert arrived.subject.rstrip() == email.subject.rstrip()
    assert arrived.text == AWKWARD_TEXT
    assert arrived.html == f"<p>{AWKWARD_TEXT}</p>"
    assert arrived.message_id == render(email).message_id
    assert arrived.headers == email.headers


async def test_files_arrive_byte_for_byte(house: House, new_email: NewEmail) -> None:
    """Beside the body, and shown in it; an e-mail that is sent twice is the same request both times."""
    given = [
        Attachment('Grüße, "2026".pdf', bytes(range(256)) * 2_000),
        Attachment("rows.csv", b".\r\n..\nLF\rCR"),
        Attachment("empty", b""),
        Attachment("logo.png", b"\x89PNG\r\n.\r\n", content_id="logo"),
    ]
    documents = [file.document for file in check_attachments(given)]
    email = new_email(html='<img src="cid:logo">', text="See", attachments=documents)
    await house.transport.send(email, started)
    (arrived,) = house.arrived()
    assert (arrived.text, arrived.html) == ("See", '<img src="cid:logo">')
    assert arrived.files == sorted(
        [
            (given[0].filename, "application/pdf", None, given[0].content),
            ("rows.csv", "text/csv", None, given[1].content),
            ("empty", "application/octet-stream", None, b""),
            ("logo.png", "image/png", "logo", given[3].content),
        ]
    )
    await house.transport.send(email, started)
    assert set(map(repr, house.arrived())) == {repr(arrived)}


async def test_large_email_arrives_whole(house: House, new_email: NewEmail) -> None:
    """A body larger than every buffer on the way comes out whole."""
    text = "\n".join(f".{number} {'x' * 60}" for number in range(40_000))
    await house.transport.send(new_email(text=text), started)
    (arrived,) = house.arrived()
    assert arrived.text == text


async def test_start_is_called_once_when_all_is_ready_and_nothing_was_said(
    house: House, new_email: NewEmail
) -> None:
    """The limit's slot is good for 250 ms: it is taken when the connection stands, not before."""
    seen: list[tuple[bool, int]] = []

    async def start() -> None:
        seen.append((house.ready(), house.begun()))

    await house.transport.send(new_email(), start)
    assert seen == [(True, 0)]


@pytest.mark.parametrize("refusal", [NotStarted("limit"), OSError("disk"), TimeoutError(), ValueError("x")])
async def test_refused_start_passes_through_and_leaves_the_transport_usable(
    house: House, new_email: NewEmail, refusal: Exception
) -> None:
    """What start raises comes out as it is; nothing was handed over, and the next e-mail goes."""

    async def start() -> None:
        raise refusal

    for _ in range(3):
        with pytest.raises(type(refusal)) as raised:
            await house.transport.send(new_email(), start)
        assert raised.value is refusal
    assert house.begun() == 0
    await house.transport.send(new_email(), started)
    assert len(house.arrived()) == 1


async def test_many_at_once_arrive_once_each(house: House, new_email: NewEmail) -> None:
    """More than there are connections; each waits for its turn."""
    emails = [new_email(subject=f"number {number}") for number in range(40)]
    await asyncio.gather(*(house.transport.send(email, started) for email in emails))
    assert sorted(arrived.subject for arrived in house.arrived()) == sorted(email.subject for email in emails)


@pytest.mark.parametrize("outcome", OUTCOMES)
async def test_failure_has_its_outcome_and_leaves_the_transport_usable(
    house: House, new_email: NewEmail, outcome: str
) -> None:
    """One refused e-mail says how it failed in one line, and the next ones go."""
    await house.transport.send(new_email(), started)
    if outcome not in house.faults:
        return  # no other side can make this transport end like that
    house.faults[outcome]()
    with pytest.raises(OUTCOMES[outcome]) as failed:
        await house.transport.send(new_email(), started)
    assert failed.value.text
    assert "\n" not in failed.value.text
    assert "Thank you" not in failed.value.text
    if house.transport.name.startswith("maildir"):
        Path(house.transport.name.partition(":")[2], "tmp").unlink()
    for _ in range(3):
        await house.transport.send(new_email(), started)
    assert len(house.arrived()) == 4


async def test_row_that_can_never_be_sent_is_permanent_before_anything_else(
    house: House, new_email: NewEmail
) -> None:
    """It takes no slot of a limit and no word to the other side."""
    calls = 0

    async def start() -> None:
        nonlocal calls
        calls += 1

    with pytest.raises(PermanentFailure, match="to_email"):
        await house.transport.send(new_email(to_email="nobody"), start)
    assert (calls, house.begun() if house.ready() else 0) == (0, 0)


async def test_cancellation_while_start_waits_leaves_the_transport_usable(
    house: House, new_email: NewEmail
) -> None:
    """A deadline that passes before the start has handed nothing over."""
    waiting = asyncio.Event()

    async def start() -> None:
        waiting.set()
        await asyncio.Event().wait()

    tasks = [asyncio.create_task(house.transport.send(new_email(), start)) for _ in range(8)]
    await waiting.wait()
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ends] == [asyncio.CancelledError] * 8
    assert house.begun() == 0
    await house.transport.send(new_email(), started)
    assert len(house.arrived()) == 1


async def test_cancellation_in_the_middle_leaves_the_transport_usable(
    house: House, new_email: NewEmail
) -> None:
    """The answer to a cancelled e-mail is never taken for the answer to the next one."""
    if house.hold is None:
        return  # a disk does not wait
    await house.transport.send(new_email(), started)
    house.hold()
    task = asyncio.create_task(house.transport.send(new_email(), started))
    await until(lambda: house.begun() == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.gather(*(house.transport.send(new_email(), started) for _ in range(5)))
    assert len(house.arrived()) in (6, 7)  # the cancelled one may have been taken


async def test_close_may_be_called_twice_and_before_any_email(house: House, new_email: NewEmail) -> None:
    """Whatever state the transport is in."""
    await house.transport.send(new_email(), started)
    await house.transport.close()
    await house.transport.close()


async def test_close_of_an_unused_transport(house: House) -> None:
    """Nothing was opened, nothing is closed."""
    await house.transport.close()


async def test_name_and_repr_show_no_secret(house: House) -> None:
    """They get into logs, rows and screens."""
    for text in (house.transport.name, repr(house.transport)):
        assert PASSWORD not in text
        assert KEY not in text
