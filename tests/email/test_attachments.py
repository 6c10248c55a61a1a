"""Attachments: what is taken, and the bytes that they leave as."""

from __future__ import annotations

import json
import re
from base64 import b64encode, encodebytes
from collections.abc import Callable, Iterable
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postroom import Attachment, InvalidEmail, PermanentFailure
from postroom.email.attachments import (
    ATTACHMENTS_BYTES_MAX,
    IMAGES_CHARACTERS_MAX,
    check_attachments,
    read_attachments,
    with_images,
    without_contents,
)
from postroom.email.message import OutgoingEmail
from postroom.email.mime import render, rendered
from postroom.email.transports.said import without_body
from tests.email.conftest import NewEmail
from tests.email.test_mime import assert_can_travel, parse, part

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
MESSAGE = b"From: a@example.com\r\nSubject: old\r\n\r\n.\r\nHello\r\n"


def documents(*attachments: Attachment) -> list[dict[str, str]]:
    """As a row has them."""
    return [file.document for file in check_attachments(attachments)]


def files_of(message: EmailMessage) -> Iterable[EmailMessage]:
    """The parts that are files, wherever they stand."""
    for each in message.walk():
        assert isinstance(each, EmailMessage)
        if each.get_content_disposition() is not None:
            yield each


def content_of(file: EmailMessage) -> bytes:
    content = file.get_payload(decode=True)
    assert isinstance(content, bytes)
    return content


def test_files_stand_beside_the_body_and_are_the_same_bytes(new_email: NewEmail) -> None:
    """multipart/mixed: the body as it is without them, then each file under its name and type."""
    given = [
        Attachment("Invoice 7.pdf", b"%PDF-1.7 \x00\xff"),
        Attachment("rows.csv", b"a,b\r\n1,2\n"),
        Attachment("empty.bin", b""),
        Attachment("no ending", PNG, "application/x-shop"),
    ]
    mail = render(new_email(attachments=documents(*given)))
    assert_can_travel(mail.content)
    message = parse(mail)
    assert not message.defects
    assert message.get_content_type() == "multipart/mixed"
    assert next(message.iter_parts()).get_content_type() == "multipart/alternative"
    assert part(message, "plain") == "Thank you.\n"
    assert part(message, "html") == "<p>Thank you.</p>\n"
    found = list(files_of(message))
    assert [file.get_filename() for file in found] == [each.filename for each in given]
    assert [content_of(file) for file in found] == [each.content for each in given]
    assert [file.get_content_type() for file in found] == [
        "application/pdf",
        "text/csv",
        "application/octet-stream",
        "application/x-shop",
    ]
    assert {file.get_content_disposition() for file in found} == {"attachment"}
    assert max(map(len, mail.content.split(b"\r\n"))) <= 100


def test_same_row_with_files_gives_same_bytes(new_email: NewEmail) -> None:
    """Types come from a table of ours, boundaries from the id: no attempt differs, wherever it is made."""
    row: dict[str, Any] = {"id": UUID(int=7), "attachments": documents(Attachment("a.docx", PNG))}
    assert render(new_email(**row)).content == render(new_email(**row | {"attempts": 4})).content


def test_an_image_that_the_html_shows_stands_with_it(new_email: NewEmail) -> None:
    """multipart/related by its Content-ID; a file with one that nothing shows is an attachment."""
    html = "<p><img src=\"cid:logo@shop\"> and <img src='cid:a%25b'></p>"
    message = parse(
        render(
            new_email(
                html=html,
                attachments=documents(
                    Attachment("logo.png", PNG, content_id="<logo@shop>"),
                    Attachment("b.png", PNG, content_id="a%b"),
                    Attachment("unseen.png", PNG, content_id="unseen"),
                    Attachment("terms.pdf", b"%PDF"),
                ),
            )
        )
    )
    body, *beside = message.iter_parts()
    plain, related = body.iter_parts()
    assert [each.get_content_type() for each in (message, body, plain, related)] == [
        *("multipart/mixed", "multipart/alternative", "text/plain", "multipart/related")
    ]
    page, *shown = related.iter_parts()
    assert page.get_content_type() == related.get_param("type") == "text/html"
    assert [each["Content-ID"] for each in shown] == ["<logo@shop>", "<a%b>"]
    assert {each.get_content_disposition() for each in shown} == {"inline"}
    assert [each.get_filename() for each in beside] == ["unseen.png", "terms.pdf"]


@pytest.mark.parametrize("html", ["cid:logo2", "cid:logo@shop", "cid:logo.png", "cid:LOGO", "logo"])
def test_a_name_that_only_begins_so_shows_nothing(new_email: NewEmail, html: str) -> None:
    """The file stands beside the body then, and is not hidden in it."""
    given = documents(Attachment("logo.png", PNG, content_id="logo"))
    message = parse(render(new_email(html=f'<img src="{html}">', attachments=given)))
    assert [each.get_filename() for each in message.iter_attachments()] == ["logo.png"]


@pytest.mark.parametrize("name", ["terms.txt", "terms.html", "terms.eml"])
def test_a_text_that_the_html_leads_to_is_an_attachment(new_email: NewEmail, name: str) -> None:
    """Inline, readers show it as more of the body, or drop it (mailparser): its link finds it beside, too."""
    given = documents(Attachment(name, b"Terms: none\r\n", content_id="terms"))
    message = parse(render(new_email(html='<a href="cid:terms">Terms</a>', attachments=given)))
    (file,) = message.iter_attachments()
    assert (file.get_filename(), file["Content-ID"]) == (name, "<terms>")
    assert file.get_content_disposition() == "attachment"


def test_an_image_without_a_page_that_could_show_it_is_an_attachment(new_email: NewEmail) -> None:
    """Text alone shows nothing, whatever it says."""
    given = documents(Attachment("logo.png", PNG, content_id="logo"))
    message = parse(render(new_email(html="", text="cid:logo", attachments=given)))
    assert [each.get_content_type() for each in message.iter_parts()] == ["text/plain", "image/png"]


def test_text_says_its_charset_where_it_is_utf_8(new_email: NewEmail) -> None:
    """ASCII and what is no UTF-8 say none; a charset that was given stays."""
    given = documents(
        Attachment("a.csv", "Köln;1".encode()),
        Attachment("b.csv", b"plain"),
        Attachment("c.csv", b"K\xf6ln"),
        Attachment("d.ics", b"K\xf6ln", "text/calendar; method=REQUEST; charset=latin-1"),
    )
    found = list(files_of(parse(render(new_email(attachments=given)))))
    assert [each.get_content_charset() for each in found] == ["utf-8", None, None, "latin-1"]
    assert found[3].get_param("method") == "REQUEST"


@pytest.mark.parametrize(
    ("content", "kind", "leaves_as"),
    [
        (MESSAGE, "message/rfc822", MESSAGE),
        (MESSAGE.replace(b"\r\n", b"\n"), "message/rfc822", MESSAGE),
        (MESSAGE + b"\xe9", "application/octet-stream", None),
        (MESSAGE + b"\0", "application/octet-stream", None),
        (MESSAGE + b"a\rb", "application/octet-stream", None),
        (MESSAGE + b"x" * 999, "application/octet-stream", None),
    ],
    ids=["CRLF", "LF", "8bit", "NUL", "CR", "a long line"],
)
def test_a_message_travels_as_one_or_as_a_file(
    new_email: NewEmail, content: bytes, kind: str, leaves_as: bytes | None
) -> None:
    """message/rfc822 may not be in base64 (RFC 2046, 5.2.1); what is not 7bit is a file of bytes."""
    mail = render(new_email(attachments=documents(Attachment("old.eml", content))))
    assert_can_travel(mail.content)
    found = next(iter(files_of(parse(mail))))
    assert (found.get_content_type(), found.get_filename()) == (kind, "old.eml")
    if leaves_as is None:
        assert content_of(found) == content
    else:
        assert b"\r\n\r\n" + leaves_as + b"\r\n--=_postroom_m_" in mail.content


def test_a_mail_that_holds_an_earlier_one_is_still_one_mail(new_email: NewEmail) -> None:
    """Its boundaries occur in none of its parts, though the earlier mail came of the same row."""
    row: dict[str, Any] = {"id": UUID(int=7), "attachments": documents(Attachment("a.png", PNG))}
    earlier = render(new_email(**row)).content
    mail = render(new_email(**row | {"attachments": documents(Attachment("old.eml", earlier))}))
    body, old = parse(mail).iter_parts()
    assert body.get_content_type() == "multipart/alternative"
    inner = old.get_payload(0)
    assert isinstance(inner, EmailMessage)
    assert [content_of(file) for file in files_of(inner)] == [PNG]


FILENAMES = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=255
).filter(str.strip)
TYPES = st.sampled_from([None, "application/pdf", 'text/x; charset="utf-8"', "image/png", "Application/X"])


@given(st.lists(st.tuples(FILENAMES, st.binary(max_size=400), TYPES), min_size=1, max_size=4))
def test_files_mean_what_the_standard_library_means(files: list[tuple[str, bytes, str | None]]) -> None:
    """Whatever names and bytes are: the same files (the reader strips names), and no header is made."""
    given = documents(*(Attachment(name, content, kind) for name, content, kind in files))
    row = OutgoingEmail(
        UUID(int=1), "a@b.example", "s", "<p>h</p>", "c@d.example", text="t", attachments=given
    )
    mail = render(row)
    assert mail.content.isascii()
    assert_can_travel(mail.content)
    ours = parse(mail)
    theirs = EmailMessage(policy=policy.SMTP)
    theirs.set_content("t")
    for name, content, _ in files:
        theirs.add_attachment(content, "application", "x", filename=name)
    read = message_from_bytes(theirs.as_bytes(), policy=policy.default)
    assert isinstance(read, EmailMessage)
    found = list(files_of(ours))
    assert [content_of(each) for each in found] == [content_of(each) for each in files_of(read)]
    assert [each.get_filename() for each in found] == [name.strip() for name, _, _ in files]
    assert not any(each.defects for each in ours.walk())
    for each in found:
        assert set(each.keys()) == {"Content-Type", "Content-Transfer-Encoding", "Content-Disposition"}


@given(st.binary(max_size=3_000), st.sampled_from([b"\n", b"\r\n", b" ", b""]))
def test_base64_in_lines_is_taken_as_the_same_file(content: bytes, newline: bytes) -> None:
    """encode(file, 'base64') of PostgreSQL breaks lines; the row of a door has none."""
    written = encodebytes(content).replace(b"\n", newline).decode()
    (file,) = check_attachments([{"filename": "a", "content": written}])
    assert (file.content, file.file, file.size) == (b64encode(content).decode(), content, len(content))


REFUSED: dict[str, tuple[object, str, str]] = {
    "a text": ("file.pdf", "attachments", "a text"),
    "an object": ({"filename": "a"}, "attachments", "an object"),
    "a number": (7, "attachments", "a number"),
    "101 files": ([{"filename": "a", "content": ""}] * 101, "attachments", "at most 100"),
    "an entry that is a text": (["https://example.com/a.pdf"], "attachments[0]", "a text"),
    "no filename": ([{"content": ""}], "attachments[0].filename", "missing"),
    "an empty filename": ([{"filename": " ", "content": ""}], "attachments[0].filename", "empty"),
    "a filename of a number": ([{"filename": 7, "content": ""}], "attachments[0].filename", "a number"),
    "a filename of two lines": (
        [{"filename": "a\r\nBcc: x@y.example", "content": ""}],
        "attachments[0].filename",
        "U+000D",
    ),
    "a filename with a NUL": ([{"filename": "a\0", "content": ""}], "attachments[0].filename", "U+0000"),
    "a filename with half a character": (
        [{"filename": "\ud800", "content": ""}],
        "attachments[0].filename",
        "half a character",
    ),
    "a long filename": ([{"filename": "a" * 256, "content": ""}], "attachments[0].filename", "255"),
    "no content": ([{"filename": "a"}], "attachments[0].content", "missing"),
    "content of a Buffer": (
        [{"filename": "a", "content": {"type": "Buffer", "data": []}}],
        "attachments[0].content",
        "an object",
    ),
    "content that is no base64": ([{"filename": "a", "content": "é"}], "attachments[0].content", "no base64"),
    "content with a hyphen": ([{"filename": "a", "content": "ab-_"}], "attachments[0].content", "no base64"),
    "content without padding": ([{"filename": "a", "content": "QQ"}], "attachments[0].content", "no base64"),
    "content that goes on": (
        [{"filename": "a", "content": "QQ==QUJD"}],
        "attachments[0].content",
        "no base64",
    ),
    "a data URL": (
        [{"filename": "a", "content": "data:image/png;base64,QUJD"}],
        "attachments[0].content",
        "data:",
    ),
    "a path": (
        [{"filename": "a", "path": "https://example.com/a.pdf"}],
        "attachments[0].path",
        "nothing is fetched",
    ),
    "an unknown field": ([{"filename": "a", "content": "", "cid": "x"}], "attachments[0]", "'cid'"),
    "a type that is none": (
        [{"filename": "a", "content": "", "content_type": "pdf"}],
        "attachments[0].content_type",
        "no media type",
    ),
    "a type of two lines": (
        [{"filename": "a", "content": "", "content_type": "text/plain\r\nBcc: x"}],
        "attachments[0].content_type",
        "no media type",
    ),
    "a type of several parts": (
        [{"filename": "a", "content": "", "content_type": "multipart/mixed; boundary=x"}],
        "attachments[0].content_type",
        "several parts",
    ),
    "an id of two words": (
        [{"filename": "a", "content": "", "content_id": "a b"}],
        "attachments[0].content_id",
        "one word",
    ),
    "an id of two lines": (
        [{"filename": "a", "content": "", "content_id": "a>\r\nBcc: <x"}],
        "attachments[0].content_id",
        "one word",
    ),
    "too much": (
        [{"filename": "a", "content": "A" * (ATTACHMENTS_BYTES_MAX // 6 * 4 + 4)}] * 2,
        "attachments",
        "together",
    ),
}


@pytest.mark.parametrize(("given", "field", "says"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_attached_is_refused_by_name(
    new_email: NewEmail, given: object, field: str, says: str
) -> None:
    """At a door the field is named; a row that holds it is a dead letter that says the same."""
    with pytest.raises(InvalidEmail) as refused:
        check_attachments(given)
    assert refused.value.field == field
    assert says in refused.value.problem
    with pytest.raises(PermanentFailure) as failed:
        render(new_email(attachments=given))
    assert failed.value.text.startswith(f"{field}: ")


@pytest.mark.parametrize("written", [None, [], {}, "", False, 0, "[]", "null"])
def test_an_empty_column_has_no_files(new_email: NewEmail, written: object) -> None:
    """A hand-made table's default may be any of these."""
    assert read_attachments(written) == []
    assert parse(render(new_email(attachments=written))).get_content_type() == "multipart/alternative"


def test_names_of_resends_library_are_known_and_json_in_a_text_is_read() -> None:
    """contentType and contentId; a hand-made column may be a text."""
    (file,) = read_attachments(
        '[{"filename": "a", "content": "QQ==", "contentType": "A/B", "contentId": "c"}]'
    )
    assert file.document == {"filename": "a", "content": "QQ==", "content_type": "a/b", "content_id": "c"}
    with pytest.raises(InvalidEmail, match="a text"):
        read_attachments("[" * 5_000 + "]" * 5_000)


def test_a_file_is_attached_under_its_own_name(tmp_path: Path) -> None:
    """Whatever the way to it; what it is comes from its ending."""
    path = tmp_path / "report.PDF"
    path.write_bytes(PNG)
    attachment = Attachment.from_file(str(path), content_id="r")
    assert attachment == Attachment("report.PDF", PNG, None, "r")
    assert check_attachments([attachment])[0].content_type == "application/pdf"


def test_nobody_sees_a_file_by_accident(new_email: NewEmail) -> None:
    """Not in a repr, which gets into logs; what is shown of a row has its size."""
    attachment = Attachment("a.txt", b"secret")
    files = check_attachments([attachment])
    row = new_email(attachments=[file.document for file in files])
    for each in (attachment, files, row):
        assert not re.search("secret|c2VjcmV0", repr(each))
    assert without_contents(row.attachments) == [{"filename": "a.txt", "content": "6 bytes"}]
    assert without_contents("x" * 99) == "x" * 80 + "…"


@pytest.mark.parametrize("column", [list, json.dumps], ids=["jsonb", "text"])
def test_a_provider_that_repeats_a_file_puts_it_into_no_log(
    new_email: NewEmail, column: Callable[[object], object]
) -> None:
    """What was said ends where the file's base64 begins, whatever type a hand-made column has."""
    given = documents(Attachment("a.bin", PNG))
    email = new_email(attachments=column(given))
    said = "422 attachments[0].content cannot be read: "
    assert without_body(said + given[0]["content"][:90], email) == f"{said}[the e-mail itself]"
    assert without_body(said * 2, email) == said * 2


def test_a_page_that_names_an_image_a_million_times_does_not_grow_without_end() -> None:
    """What is shown of a stranger's mail has a bound; the rest of its images are names."""
    html = '<img src="cid:a">' * 100_000
    shown = with_images(html, [("a", "image/png", PNG * 100), ("b", "image/png", PNG)])
    assert len(html) < len(shown) < len(html) + IMAGES_CHARACTERS_MAX
    assert shown.endswith('<img src="cid:a">')


def test_of_thousands_of_images_as_many_are_shown_as_go_with_an_email() -> None:
    """The page is searched for each of them."""
    html = "".join(f'<img src="cid:i{number}">' for number in range(150))
    shown = with_images(html, ((f"i{number}", "image/png", PNG) for number in range(150)))
    assert (shown.count("data:image/png"), shown.count("cid:i")) == (100, 50)
    assert shown.endswith('<img src="cid:i149">')


async def test_large_files_are_rendered_in_a_thread_to_the_same_bytes(new_email: NewEmail) -> None:
    """10 MB take about 50 ms, in which the event loop serves others."""
    given = documents(Attachment("a.bin", PNG * 20_000))
    email = new_email(attachments=given, attached=len(given[0]["content"]))
    mail = await rendered(email)
    assert mail.content == render(email).content
    assert_can_travel(mail.content)
