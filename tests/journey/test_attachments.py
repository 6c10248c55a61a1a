"""Files that go with an e-mail, from the program that gives them to the server that receives them."""

from __future__ import annotations

import asyncio
from email.message import EmailMessage

import psycopg

from postroom import Attachment, Email, Room
from tests.journey.ledger import running_ledger
from tests.journey.programs import Programs

FILES = [
    Attachment("Rechnung – März 2026.pdf", b"%PDF-1.7\r\n" + bytes(range(256)) * 300),
    Attachment('the "final", really.txt', b".\r\n..\r\n.leading\nLF\rCR\r\n"),
    Attachment("../../etc/passwd", b""),
    Attachment("old.eml", b"From: a@example.com\r\nSubject: old\r\n\r\n.\r\n..\r\nHello"),
    Attachment("photo.jpg", b"\xff\xd8\xff\xe0" * 50_000, content_id="photo@shop"),
]


def test_every_door_s_files_reach_the_receiver_byte_by_byte(programs: Programs, database_url: str) -> None:
    """By Python, one and many, by enqueue_emails and by a plain INSERT: one mail each, all alike."""
    html = '<p>See <img src="cid:photo@shop"></p>'

    async def queue() -> None:
        async with Room(database_url=database_url) as room:
            await room.send(to="one@example.com", subject="s", html=html, attachments=FILES)
            await room.send_many(
                [
                    Email(to="many@example.com", subject="s", html=html, attachments=FILES),
                    {"to": "dict@example.com", "subject": "s", "html": html, "attachments": FILES},
                ]
            )
            await room.database.execute(
                """
                INSERT INTO email_queue (to_email, subject, html, attachments)
                SELECT 'sql@example.com', 's', one.html, one.attachments FROM email_queue AS one
                WHERE one.to_email = 'one@example.com'
                """
            )

    asyncio.run(queue())
    with psycopg.connect(database_url, autocommit=True) as db:
        # As people write it in SQL, which gives lines of 76.
        db.execute(
            """
            INSERT INTO email_queue (to_email, subject, html, attachments)
            VALUES ('lines@example.com', 's', 'h', jsonb_build_array(
                jsonb_build_object('filename', 'a.bin', 'content', encode(%s, 'base64'))
            ))
            """,
            [FILES[0].content],
        )
        with running_ledger() as ledger:
            programs.settings["POSTROOM_TRANSPORT"] = f"smtp://127.0.0.1:{ledger.port}"
            assert programs.run("worker", "--drain").returncode == 0
        assert db.execute("SELECT count(*) FROM email_queue WHERE status = 'sent'").fetchone() == (5,)
    found = {mail.recipient: mail for mail in ledger.delivered}
    assert len(found) == len(ledger.delivered) == 5
    for name in ("one", "many", "dict", "sql"):
        mail = found[f"{name}@example.com"]
        files = [part for part in mail.message.walk() if part.get_content_disposition() is not None]
        named = {part.get_filename(): part for part in files}
        assert list(named) == [FILES[4].filename, *(file.filename for file in FILES[:4])]
        for file in FILES[:3] + FILES[4:]:
            assert named[file.filename].get_payload(decode=True) == file.content
        assert named["photo.jpg"]["Content-ID"] == "<photo@shop>"
        assert isinstance(named["old.eml"].get_payload(0), EmailMessage)
        assert b"\r\n\r\n" + FILES[3].content + b"\r\n--" in mail.content
    (part,) = found["lines@example.com"].message.iter_attachments()
    assert part.get_payload(decode=True) == FILES[0].content


def test_a_mail_that_is_too_large_for_the_server_is_a_dead_letter_that_says_so(
    programs: Programs, database_url: str
) -> None:
    """By what it has announced (SIZE), before anything is sent; the others go on."""

    async def queue() -> None:
        async with Room(database_url=database_url) as room:
            large = [Attachment("a.bin", bytes(200_000))]
            await room.send(to="large@example.com", subject="s", html="h", attachments=large)
            await room.send(
                to="small@example.com", subject="s", html="h", attachments=[Attachment("b", b"b")]
            )

    asyncio.run(queue())
    with running_ledger(size_bytes_max=100_000) as ledger:
        programs.settings["POSTROOM_TRANSPORT"] = f"smtp://127.0.0.1:{ledger.port}"
        programs.run("worker", "--drain")
    assert [mail.recipient for mail in ledger.delivered] == ["small@example.com"]
    with psycopg.connect(database_url) as db:
        row = db.execute(
            "SELECT status, last_error FROM email_queue WHERE to_email = 'large@example.com'"
        ).fetchone()
    assert row is not None
    assert row[0] == "dead_letter"
    assert row[1].startswith("the e-mail has 27")
    assert row[1].endswith("and the server takes at most 100,000")
