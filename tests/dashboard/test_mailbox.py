"""The mailbox: with the maildir transport, what went out, as a mail catcher shows it."""

from __future__ import annotations

import os
import re
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest

from postroom import Room
from postroom.email.mailbox import list_mails
from tests.dashboard.conftest import Visitor
from tests.http.conftest import serving, settings_of


@pytest.fixture
async def sender(database_url: str, tmp_path: Path) -> AsyncIterator[Visitor]:
    """A visitor of a house whose e-mails go into a maildir."""
    async with (
        Room(**settings_of(database_url, tmp_path)) as room,
        serving(room, real_transport=True) as served,
        httpx.AsyncClient(base_url=served.url, timeout=30, trust_env=False) as client,
    ):
        visitor = Visitor(served, client)
        assert (await visitor.log_in()).status_code == 303
        yield visitor


async def _send(visitor: Visitor, **fields: str) -> UUID:
    answer = await visitor.served.send(**fields)
    assert answer.status_code == 200, answer.text
    return UUID(answer.json()["id"])


def _file(tmp_path: Path, content: bytes, at: int = 1_700_000_000, part: str = "new") -> str:
    folder = tmp_path / "mail" / part
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{at}.{uuid4().hex}.postroom"
    (folder / name).write_bytes(content)
    return name


async def test_a_mail_that_went_out_is_shown_as_it_looks_with_its_headers_and_its_row(
    sender: Visitor,
) -> None:
    """Found in the list by its subject, and linked to the queue's row."""
    mail_id = await _send(sender, subject="Grüße <b>", html="<p>Hello <script>alert(1)</script></p>")
    page = await sender.page("/mailbox")
    assert "Grüße &lt;b&gt;" in page
    assert "ada@example.com" in page
    link = re.search(r'href="/dashboard(/mailbox/[^"]+)"', page)
    assert link is not None
    page = await sender.page(link[1])
    assert f'href="/dashboard/emails/{mail_id}"' in page
    assert "<script>" not in page
    assert "Message-ID" in page
    assert 'sandbox=""' in page
    answer = await sender.client.get(f"/dashboard{link[1]}/html")
    assert "Hello" in answer.text
    assert answer.headers["content-security-policy"].startswith("sandbox; default-src 'none';")


async def test_an_empty_mailbox_says_how_to_fill_it(sender: Visitor) -> None:
    """And one that matches nothing, how to see all."""
    assert "Nothing here yet. Send one:" in await sender.page("/mailbox")
    await _send(sender)
    assert "matches “nobody”" in await sender.page("/mailbox?q=nobody")
    assert "Your order" in await sender.page("/mailbox?q=ADA@")


async def test_with_another_transport_the_page_says_that_there_is_no_mailbox(
    database_url: str, tmp_path: Path
) -> None:
    """And what would make one."""
    settings = settings_of(database_url, tmp_path, transport="smtp://127.0.0.1:1?starttls=never")
    async with (
        Room(**settings) as room,
        serving(room) as served,
        httpx.AsyncClient(base_url=served.url, timeout=30, trust_env=False) as client,
    ):
        visitor = Visitor(served, client)
        await visitor.log_in()
        assert "There is no mailbox here" in await visitor.page("/mailbox")
        await visitor.page("/mailbox/1.x", 404)


BROKEN = {
    "empty": b"",
    "no mail": b"\x00\xff" * 50,
    "no charset": b"From: a@b.example\nSubject: odd\nContent-Type: text/html; charset=x-none\n\n\xff<p>",
    "bad multipart": b"From: a@b.example\nContent-Type: multipart/mixed; boundary=x\n\n-",
    "bad address": b'From: <<>,;:"\nTo: @@@\nSubject: \xff\xfe\nDate: never\n\nx',
}


async def test_a_broken_file_breaks_neither_the_list_nor_its_own_page(
    sender: Visitor, tmp_path: Path
) -> None:
    """Whatever is in it; a folder and a link in its place are no mails."""
    await _send(sender)
    names = [_file(tmp_path, content) for content in BROKEN.values()]
    (tmp_path / "mail" / "new" / "a-folder").mkdir()
    (tmp_path / "mail" / "new" / "a-link").symlink_to("/etc/passwd")
    page = await sender.page("/mailbox")
    assert "Your order" in page
    assert "it is no e-mail" in page
    for name in names:
        assert name in page
        await sender.page(f"/mailbox/{name}")
        await sender.page(f"/mailbox/{name}/html")
    for name in ("a-folder", "a-link", "..%2F..%2Fpostroom.toml", "x" * 300):
        assert (await sender.client.get(f"/dashboard/mailbox/{name}")).status_code == 404


async def test_attachments_and_mails_that_somebody_has_read_are_shown(
    sender: Visitor, tmp_path: Path
) -> None:
    """A mail program moves what was read to cur/ and adds its flags."""
    name = _file(
        tmp_path,
        b"From: a@b.example\nTo: c@d.example\nSubject: bill\nMIME-Version: 1.0\n"
        b"Content-Type: multipart/mixed; boundary=x\n\n--x\nContent-Type: text/plain\n\nHere it is\n"
        b"--x\nContent-Type: application/pdf\n"
        b'Content-Disposition: attachment; filename="bill.pdf"\n\n%PDF\n--x--\n',
        part="cur",
    )
    folder = tmp_path / "mail" / "cur"
    (folder / name).rename(folder / f"{name}:2,S")
    assert "bill" in await sender.page("/mailbox")
    page = await sender.page(f"/mailbox/{name}")
    assert "application/pdf, 4 bytes" in page
    assert "Here it is" in page
    address = re.search(r'href="/dashboard(/mailbox/[^"]+/attachments/0)"[^>]*>bill.pdf<', page)
    assert address is not None
    answer = await sender.client.get(f"/dashboard{address[1]}")
    assert answer.content == b"%PDF"
    assert "bill.pdf" in answer.headers["content-disposition"]
    await sender.page(address[1].replace("/0", "/1"), 404)
    await sender.page(address[1].replace("/0", "/%C2%B2"), 404)


async def test_images_and_messages_within_a_mail_are_attachments_too(sender: Visitor) -> None:
    """What the HTML shows by its Content-ID, and a mail that goes with a mail: all that is no body."""
    old = b"From: a@b.example\r\nSubject: old\r\n\r\nHello\r\n"
    files = [
        {"filename": "logo.png", "content": b64encode(b"png").decode(), "content_id": "logo"},
        {"filename": "old.eml", "content": b64encode(old).decode()},
    ]
    await _send(sender, html='<p>Hi <img src="cid:logo"></p>', attachments=files)  # type: ignore[arg-type]
    (name,) = re.findall(r'href="/dashboard/mailbox/([^"?/]+)"', await sender.page("/mailbox"))
    page = await sender.page(f"/mailbox/{name}")
    assert "image/png, 3 bytes" in page
    assert "message/rfc822" in page
    shown = await sender.page(f"/mailbox/{name}/html")
    assert '<img src="data:image/png;base64,cG5n">' in shown
    for number, content in enumerate((b"png", old)):
        answer = await sender.client.get(f"/dashboard/mailbox/{name}/attachments/{number}")
        assert answer.content.replace(b"\r\n", b"\n") == content.replace(b"\r\n", b"\n")


async def test_an_attachment_is_saved_and_never_shown_whatever_it_says_it_is(
    sender: Visitor, tmp_path: Path
) -> None:
    """No type of its own, a name without ways or line breaks, a policy under which nothing runs."""
    name = _file(
        tmp_path,
        b"From: a@b.example\nTo: c@d.example\nSubject: bill\nMIME-Version: 1.0\n"
        b"Content-Type: multipart/mixed; boundary=x\n\n--x\nContent-Type: text/plain\n\nHere it is\n"
        b"--x\nContent-Type: text/html\n"
        b"Content-Disposition: attachment; filename*=utf-8''..%2F..%2Fb%C3%BC%22ll%0D%0Aset-cookie%3Aa.html\n"
        b"\n<script>alert(1)</script>\n--x--\n",
    )
    answer = await sender.client.get(f"/dashboard/mailbox/{name}/attachments/0")
    assert answer.content.startswith(b"<script>")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
    offered = answer.headers["content-disposition"]
    assert offered.startswith('attachment; filename="_.._b__ll')
    assert "set-cookie" not in answer.headers
    assert "/" not in offered.replace("UTF-8''", "")


async def test_the_source_of_a_mail_is_the_file(sender: Visitor, tmp_path: Path) -> None:
    """To the byte, whatever it holds."""
    content = b"From: a@b.example\r\nSubject: \xff\x00\r\n\r\n<script>\r\n"
    name = _file(tmp_path, content)
    answer = await sender.client.get(f"/dashboard/mailbox/{name}/source")
    assert answer.content == content
    assert answer.headers["content-type"] == "application/octet-stream"


async def test_one_mail_or_all_are_deleted_with_an_entry_in_the_audit_trail(sender: Visitor) -> None:
    """By a form with the session's token; the queue's rows stay."""
    for number in range(3):
        await _send(sender, subject=f"Order {number}")
    folder = Path(sender.served.room.settings.transport_urls[0].partition(":")[2])
    name = os.listdir(folder / "new")[0]
    refused = await sender.client.post("/dashboard/mailbox/delete", data={"all": "yes"})
    assert refused.status_code == 403
    answer = await sender.submit("/mailbox/delete", name=name)
    assert "1 mail deleted." in (await sender.client.get(answer.headers["location"])).text
    assert len(os.listdir(folder / "new")) == 2
    assert (await sender.submit("/mailbox/delete")).status_code == 400
    await sender.submit("/mailbox/delete", all="yes")
    assert os.listdir(folder / "new") == []
    entries = await sender.served.room.database.fetch(
        """
        SELECT (about ->> 'count')::integer AS count
        FROM postroom.audit
        WHERE action = 'mailbox.delete'
        ORDER BY id
        """
    )
    assert [entry["count"] for entry in entries] == [1, 2]
    assert len(await sender.served.rows()) == 3


def test_ten_thousand_mails_are_paged_newest_first_and_only_a_page_of_them_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is newer stands in the names: each mail is on exactly one page."""
    new = tmp_path / "new"
    new.mkdir()
    for number in range(10_000):
        (new / f"{1_700_000_000 + number % 5_000}.{number:032x}.postroom").touch()
    read: list[str] = []
    real = os.open

    def opened(path: object, *arguments: int) -> int:
        read.append(str(path))
        return real(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", opened)
    first = list_mails(tmp_path)
    assert (len(first.heads), first.count, len(read)) == (50, 10_000, 50)
    second = list_mails(tmp_path, after=first.next)
    times = [head.at for head in [*first.heads, *second.heads]]
    assert times == sorted(times, reverse=True)
    assert len({head.name for head in [*first.heads, *second.heads]}) == 100
    assert list_mails(tmp_path, after=f"1700000000.{0:032x}.postroom").next is None


async def test_the_source_of_an_email_is_what_went_out_to_the_byte(sender: Visitor) -> None:
    """On its page, with its headers decoded, and as a file: the same as in the maildir."""
    email_id = await _send(sender, subject="Grüße", html="<p>Hello</p>")
    link = re.search(r'href="/dashboard(/mailbox/[^"]+)"', await sender.page("/mailbox"))
    assert link is not None
    filed = (await sender.client.get(f"/dashboard{link[1]}/source")).content
    answer = await sender.client.get(f"/dashboard/emails/{email_id}/source")
    assert filed.replace(b"\r\n", b"\n").endswith(answer.content.replace(b"\r\n", b"\n"))
    assert answer.content.startswith(b"From: ")
    assert answer.headers["content-disposition"].startswith(f'attachment; filename="{email_id}.eml"')
    page = await sender.page(f"/emails/{email_id}")
    assert "Subject: =?utf-8?" in page
    assert "<dt>Subject</dt><dd>Grüße</dd>" in page
    assert f"{len(answer.content):,} bytes" in page

    await sender.served.room.database.execute("UPDATE email_queue SET html = '', text = NULL")
    page = await sender.page(f"/emails/{email_id}")
    assert "Its body is gone" in page
    assert "Download" not in page
