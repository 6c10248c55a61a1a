"""POST /functions/v1/send-email: each answer that the contract names."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections import Counter
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from postroom import Room
from postroom.database.audit import Actor
from postroom.email.message import OutgoingEmail
from postroom.errors import (
    NotStarted,
    PermanentFailure,
    TemporaryFailure,
    TransportDown,
    UncertainOutcome,
)
from postroom.queue.pauses import pause, resume
from tests.http.conftest import MAIL, SEND, Served, serving, settings_of
from tests.support.waiting import until


async def test_a_queued_email_is_answered_with_its_id(served: Served) -> None:
    """With use_queue the row is there when the answer comes; nothing is sent yet."""
    answer = await served.send(
        use_queue=True,
        **{"from": "Shop <shop@example.org>"},
        replyTo="help@example.org",
        email_type="receipt",
        metadata={"order": 17},
        idempotency_key="order-17",
        text="Thank you",
        headers={"List-Unsubscribe": "<https://example.org/u>"},
    )
    (row,) = await served.rows()
    assert answer.status_code == 200
    assert answer.json() == {
        "queued": True,
        "queue_id": str(row["id"]),
        "message": "Email queued for sending",
    }
    assert (row["to_email"], row["subject"], row["html"], row["text"]) == (*MAIL.values(), "Thank you")
    assert (row["from_email"], row["reply_to"]) == ("Shop <shop@example.org>", "help@example.org")
    assert (row["email_type"], row["metadata"]) == ("receipt", '{"order": 17}')
    assert row["headers"] == '{"List-Unsubscribe": "<https://example.org/u>"}'
    assert (row["status"], row["max_attempts"], row["idempotency_key"]) == ("pending", 6, "order-17")
    assert served.recorder.handed_over == []


async def test_the_same_key_queues_one_email(served: Served) -> None:
    """Twenty requests at once with one key get one id."""
    answers = await asyncio.gather(*(served.send(use_queue=True, idempotency_key="k") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["queue_id"] for answer in answers}) == len(await served.rows()) == 1


async def test_emails_that_come_at_once_are_queued_together(served: Served) -> None:
    """What comes while a statement runs shares the next one; each has its own row and its own id."""
    answers = await asyncio.gather(
        *(served.send(use_queue=True, to=f"ada{n}@example.com") for n in range(40))
    )
    rows = {str(row["id"]): row for row in await served.rows()}
    assert [rows[answer.json()["queue_id"]]["to_email"] for answer in answers] == [
        f"ada{n}@example.com" for n in range(40)
    ]
    assert len({row["created_at"] for row in rows.values()}) < 40


async def test_an_email_that_the_database_refuses_stops_no_other(served: Served) -> None:
    """A trigger of the application's own: that one is 500 with what the database says."""
    await served.room.database.execute(
        """
        CREATE FUNCTION no_thirteen() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.to_email LIKE 'ada13@%' THEN RAISE EXCEPTION 'no thirteen'; END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER no_thirteen BEFORE INSERT ON email_queue FOR EACH ROW EXECUTE FUNCTION no_thirteen();
        """
    )
    answers = await asyncio.gather(
        *(served.send(use_queue=True, to=f"ada{n}@example.com") for n in range(40))
    )
    assert [n for n, answer in enumerate(answers) if answer.status_code != 200] == [13]
    assert (answers[13].status_code, "no thirteen" in answers[13].json()["error"]) == (500, True)
    assert len(await served.rows()) == 39


async def test_a_key_that_another_holds_keeps_nobody_waiting(served: Served) -> None:
    """Who names it waits for the transaction that holds it; the others are queued meanwhile."""
    async with served.room.database.transaction() as connection:
        held = await connection.fetchval(
            "SELECT enqueue_email('ada@example.com', 's', 'h', idempotency_key => 'held')"
        )
        waiting = asyncio.create_task(served.send(use_queue=True, idempotency_key="held"))
        assert (await served.send(use_queue=True)).status_code == 200
        assert not waiting.done()
    assert (await waiting).json()["queue_id"] == str(held)


async def test_a_direct_email_is_sent_when_the_answer_comes(served: Served) -> None:
    """Without use_queue: one attempt, recorded as a row of its own."""
    answer = await served.send(email_type="receipt")
    (row,) = await served.rows()
    assert (answer.status_code, answer.json()) == (200, {"id": str(row["id"])})
    assert served.recorder.handed_over == [row["id"]]
    assert (row["status"], row["attempts"], row["max_attempts"]) == ("sent", 1, 1)
    assert (row["error_count"], row["from_email"]) == (0, "shop@example.com")
    assert row["sent_at"] is not None


async def test_emails_have_ids_in_the_order_in_which_they_came(served: Served) -> None:
    """Queued or sent at once: UUIDs of version 7, so that they stand side by side in the primary key."""
    ids = []
    for use_queue in (True, False, True, False):
        answer = (await served.send(use_queue=use_queue)).json()
        ids.append(UUID(answer["queue_id"] if use_queue else answer["id"]))
    assert ids == sorted(ids)
    assert [one.version for one in ids] == [7] * 4


async def test_a_direct_email_lies_in_a_real_maildir(database_url: str, tmp_path: Path) -> None:
    """Through the transport that the settings name, with the sender of the settings."""
    async with (
        Room(**settings_of(database_url, tmp_path)) as room,
        serving(room, real_transport=True) as served,
    ):
        answer = await served.send(replyTo="help@example.org")
    assert answer.status_code == 200
    (mail,) = (tmp_path / "mail" / "new").iterdir()
    written = mail.read_text()
    assert answer.json()["id"] in written
    assert "From: shop@example.com" in written
    assert "Reply-To: help@example.org" in written


FILE = {"filename": "a.pdf", "content": "JVBERg==", "content_type": "application/pdf", "content_id": "a"}


async def test_a_queued_email_has_its_files(served: Served) -> None:
    """In Resend's shape, alone or beside others in one statement; nothing else of them is kept."""
    files = [FILE, {"filename": "b.txt", "content": "QUJD\r\n", "content_type": None}]
    answers = await asyncio.gather(*(served.send(use_queue=True, attachments=files) for _ in range(3)))
    answers.append(await served.send(use_queue=True, attachments=files, idempotency_key="k"))
    assert {answer.status_code for answer in answers} == {200}
    for row in await served.rows():
        assert json.loads(row["attachments"]) == [FILE, {"filename": "b.txt", "content": "QUJD"}]


async def test_a_direct_email_goes_out_with_its_files(database_url: str, tmp_path: Path) -> None:
    """At once, through the transport of the settings; its row has them too."""
    async with (
        Room(**settings_of(database_url, tmp_path)) as room,
        serving(room, real_transport=True) as served,
    ):
        content = bytes(range(256)) * 10_000
        answer = await served.send(
            attachments=[{"filename": "x.bin", "content": b64encode(content).decode()}]
        )
        (row,) = await served.rows()
    assert (answer.status_code, row["status"]) == (200, "sent")
    assert len(json.loads(row["attachments"])) == 1
    (mail,) = (tmp_path / "mail" / "new").iterdir()
    (part,) = message_from_bytes(mail.read_bytes(), policy=policy.default).iter_attachments()
    assert (part.get_filename(), part.get_content()) == ("x.bin", content)


@pytest.mark.parametrize("use_queue", [True, False])
@pytest.mark.parametrize(
    ("attachments", "error"),
    [
        ("a.pdf", "attachments: must be a list of filename and content, not a text"),
        ([FILE, {"filename": "a"}], "attachments[1].content: is missing"),
        ([{"filename": "a", "content": "?"}], "attachments[0].content: is no base64"),
        (
            [{"filename": "a", "path": "https://example.com/a"}],
            "attachments[0].path: nothing is fetched; give the file itself as content, in base64",
        ),
    ],
)
async def test_what_cannot_be_attached_is_400_with_its_field(
    served: Served, use_queue: bool, attachments: object, error: str
) -> None:
    """Nothing is queued and nothing sent."""
    answer = await served.send(use_queue=use_queue, attachments=attachments)
    assert (answer.status_code, answer.json()) == (400, {"error": error})
    assert await served.rows() == []


async def test_files_count_in_the_limit_of_a_body(served: Served) -> None:
    """10 MiB in all, the base64 of files too."""
    content = "A" * (10 * 1024 * 1024)
    answer = await served.send(use_queue=True, attachments=[{"filename": "a", "content": content}])
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("error", "reason", "uncertain"),
    [
        (PermanentFailure("550 5.1.1 no such user", code=550), "permanent", False),
        (TemporaryFailure("450 4.2.1 try later", code=450), "exhausted", False),
        (TransportDown("connection refused"), "transport", False),
        (UncertainOutcome("closed after the final dot"), "exhausted", True),
        (RuntimeError("a mistake after the start"), "exhausted", True),
    ],
)
async def test_a_direct_email_that_fails_is_a_dead_letter(
    served: Served, error: Exception, reason: str, uncertain: bool
) -> None:
    """500 with the row's id; where it may have gone out all the same the answer says so."""

    async def fail(_: OutgoingEmail) -> str:
        raise error

    served.recorder.behave = fail
    answer = await served.send()
    (row,) = await served.rows()
    assert answer.status_code == 500
    said = answer.json()
    assert said.pop("error").endswith(str(error))
    assert said == {"queue_id": str(row["id"])} | ({"uncertain": True} if uncertain else {})
    assert (row["status"], row["dead_reason"]) == ("dead_letter", reason)
    assert row["failed_at"] is not None


async def test_a_transport_that_is_down_makes_a_direct_email_a_dead_letter(
    database_url: str, tmp_path: Path
) -> None:
    """Nobody listens at the SMTP server's port: the attempt never began, and counts in nothing."""
    down = settings_of(database_url, tmp_path, transport="smtp://127.0.0.1:1")
    async with Room(**down) as room, serving(room, real_transport=True) as served:
        for _ in range(2):  # the second finds it paused
            answer = await served.send()
            assert answer.status_code == 500
            assert set(answer.json()) == {"error", "queue_id"}
        rows = await served.rows()
    assert {(row["status"], row["attempts"], row["error_count"]) for row in rows} == {("dead_letter", 0, 0)}


async def test_a_paused_queue_does_not_stop_a_direct_email_and_a_paused_transport_does(
    served: Served,
) -> None:
    """It is not in the queue; and it is refused as by a transport that is down, with who and why."""
    database, ada = served.room.database, Actor("ada@house", "cli")
    await pause(database, "queue", "email", by=ada, reason=None, for_s=None)
    assert (await served.send()).status_code == 200
    await pause(database, "transport", "recorder", by=ada, reason="the disk is full", for_s=None)
    await served.room.pauses.look(older_than_s=0)  # as if a second had passed
    answer = await served.send()
    assert answer.status_code == 500
    assert answer.json()["error"] == "recorder is paused by ada@house because: the disk is full"
    await resume(database, "transport", "recorder", by=ada)
    await served.room.pauses.look(older_than_s=0)
    assert (await served.send()).status_code == 200
    states = Counter((row["status"], row["attempts"], row["error_count"]) for row in await served.rows())
    assert states == {("sent", 1, 0): 2, ("dead_letter", 0, 0): 1}


async def test_a_reached_limit_is_429_and_leaves_no_row(served: Served) -> None:
    """Retry-After says when a slot is free; nothing was sent."""
    await served.set("email.limit.recipient", "2/60s")
    answers = [await served.send(to="Ada@Example.com") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert set(answers[2].json()) == {"error"}
    assert 1 <= int(answers[2].headers["retry-after"]) <= 62
    assert len(await served.rows()) == len(served.recorder.handed_over) == 2
    assert (await served.send(to="bob@example.com")).status_code == 200


@pytest.mark.parametrize(
    "key",
    ["global", "recipient", "domain.example.com", "type.receipt", "sender.a@b.example", "transport.smtp"],
)
async def test_many_direct_emails_at_once_keep_the_limit(served: Served, key: str) -> None:
    """20 at once against a limit of 10: ten go out, ten are told to come again, no other row stays."""
    served.recorder.name = "smtp://mail.example:587"
    await served.set("email.limit.recipient", "off")
    await served.set(f"email.limit.{key}", "10/60s")
    mail = {"from": "A <a@b.example>", "email_type": "receipt"}
    answers = await asyncio.gather(*(served.send(**mail) for _ in range(20)))
    assert Counter(answer.status_code for answer in answers) == {200: 10, 429: 10}
    assert all(1 <= int(each.headers["retry-after"]) <= 62 for each in answers if each.status_code == 429)
    said = {answer.json()["error"].split(" is ")[0] for answer in answers if answer.status_code == 429}
    assert all(each.startswith(f"the limit email:{key.split('.')[0]}") for each in said)
    assert len(served.recorder.handed_over) == 10
    assert Counter(row["status"] for row in await served.rows()) == {"sent": 10}


async def test_a_slow_connection_costs_no_second_slot(served: Served) -> None:
    """A slot is taken when the transport is ready: ten slow connections use ten slots."""
    await served.set("email.limit.global", "10/60s")
    begin = served.recorder.send

    async def connect_slowly(email: OutgoingEmail, start: Any) -> str:
        await asyncio.sleep(0.5)
        return await begin(email, start)

    served.recorder.send = connect_slowly  # type: ignore[method-assign]
    answers = await asyncio.gather(*(served.send() for _ in range(12)))
    assert Counter(answer.status_code for answer in answers) == {200: 10, 429: 2}


async def test_a_worker_does_not_send_what_a_limit_refused(served: Served) -> None:
    """What was answered with 429 is gone: a worker that runs beside finds nothing."""
    await served.set("email.limit.recipient", "3/1s")
    stop = asyncio.Event()
    worker = asyncio.create_task(served.room.email_engine().run(stop))
    answers = [await served.send() for _ in range(6)]
    done = sum(answer.status_code == 200 for answer in answers)
    await asyncio.sleep(1.6)  # a window and more
    stop.set()
    await worker
    assert 3 <= done < 6
    assert len(served.recorder.handed_over) == done == len(await served.rows())


async def test_the_same_key_sends_one_direct_email(served: Served) -> None:
    """Five requests at once with one key: the others wait for the first one's end, and get its id."""

    async def take_a_moment(_: OutgoingEmail) -> str:
        await asyncio.sleep(0.3)
        return "250 ok"

    served.recorder.behave = take_a_moment
    answers = await asyncio.gather(*(served.send(idempotency_key="k") for _ in range(5)))
    answers.append(await served.send(idempotency_key="k"))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(served.recorder.handed_over) == 1


async def test_the_same_key_repeats_the_failure(served: Served) -> None:
    """A dead letter stays one: the second request is told the same, and nothing is attempted again."""

    async def lose_the_answer(_: OutgoingEmail) -> str:
        raise UncertainOutcome("closed after the final dot")

    served.recorder.behave = lose_the_answer
    first = await served.send(idempotency_key="k")
    second = await served.send(idempotency_key="k")
    assert first.status_code == second.status_code == 500
    assert first.json() == second.json()
    assert first.json()["uncertain"] is True
    assert len(served.recorder.handed_over) == 1


async def test_a_key_that_was_queued_is_not_sent_directly(served: Served) -> None:
    """The row that has the key will go out: its id is the answer."""
    queued = await served.send(idempotency_key="k", use_queue=True)
    direct = await served.send(idempotency_key="k")
    assert (direct.status_code, direct.json()) == (200, {"id": queued.json()["queue_id"]})
    assert served.recorder.handed_over == []
    assert len(await served.rows()) == 1


async def test_a_key_is_looked_up_before_the_limit(served: Served) -> None:
    """Who repeats a request gets its answer, whatever the limit is by then."""
    await served.set("email.limit.global", "1/60s")
    first = await served.send(idempotency_key="k")
    again = await served.send(idempotency_key="k")
    assert again.status_code == 200
    assert again.json() == first.json()


async def test_an_attempt_goes_on_when_its_caller_goes_away(served: Served) -> None:
    """A client that hangs up during the attempt does not cut it off: the row says how it ended."""
    let_go = asyncio.Event()

    async def wait(_: OutgoingEmail) -> str:
        await let_go.wait()
        return "250 ok"

    served.recorder.behave = wait
    asking = asyncio.create_task(served.send())
    await until(lambda: len(served.recorder.handed_over) == 1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    let_go.set()

    async def is_sent() -> bool:
        return [row["status"] for row in await served.rows()] == ["sent"]

    await until(is_sent)


async def test_a_server_that_ends_finishes_its_direct_emails(database_url: str, tmp_path: Path) -> None:
    """Stopping: the attempt in flight is finished, settled and answered."""
    let_go = asyncio.Event()

    async def wait(_: OutgoingEmail) -> str:
        await let_go.wait()
        return "250 ok"

    async with Room(**settings_of(database_url, tmp_path)) as room:
        async with serving(room) as served:
            served.recorder.behave = wait
            asking = asyncio.create_task(served.send())
            await until(lambda: len(served.recorder.handed_over) == 1)
            served.stop.set()
            await asyncio.sleep(0.3)
            assert not asking.done()
            let_go.set()
            assert (await asking).status_code == 200
        assert [row["status"] for row in await served.rows()] == ["sent"]
        assert await room.database.fetchval("SELECT count(*) FROM postroom.workers") == 0


async def test_a_direct_email_needs_a_sender(database_url: str, tmp_path: Path) -> None:
    """Without POSTROOM_FROM and `from` it can never be sent: 400, and no row."""
    settings = settings_of(database_url, tmp_path, sender=None, transport="smtp://127.0.0.1:2525")
    async with Room(**settings) as room, serving(room) as served:
        refused = await served.send()
        sent = await served.send(**{"from": "shop@example.org"})
        assert refused.status_code == 400
        assert refused.json()["error"].startswith("from: ")
        assert sent.status_code == 200
        assert len(await served.rows()) == 1


async def test_a_start_that_is_not_recorded_is_no_attempt(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is about to end, or the database away, when it comes to begin: a dead letter, not sent."""

    async def refuse(email: OutgoingEmail, start: Any) -> str:
        raise NotStarted("the database is away", held=True)

    monkeypatch.setattr(served.recorder, "send", refuse)
    answer = await served.send()
    (row,) = await served.rows()
    assert answer.status_code == 500
    assert answer.json() == {"error": "the database is away", "queue_id": str(row["id"])}
    assert (row["status"], row["attempts"]) == ("dead_letter", 0)


async def test_a_row_that_the_database_refuses_is_500(served: Served) -> None:
    """The application's own trigger raises: the answer is its first line."""
    await served.room.database.execute(
        """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'no mail today'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON email_queue FOR EACH ROW EXECUTE FUNCTION refuse()
        """
    )
    for answer in (await served.send(use_queue=True), await served.send()):
        assert answer.status_code == 500
        assert answer.json() == {"error": "the database refused it: no mail today"}


async def test_send_email_is_a_post(served: Served) -> None:
    """Another method is 405, another path 404; both in JSON."""
    answer = await served.client.get(SEND)
    assert answer.status_code == 405
    assert set(answer.json()) == {"error"}
    assert "POST" in answer.headers["allow"]
    answer = await served.client.post("/functions/v1/nothing", json={})
    assert answer.status_code == 404
    assert set(answer.json()) == {"error"}
