"""
The files that go with an e-mail: as a program gives them, and as a row has them.

A row has them as Resend's API does: `[{"filename", "content", "content_type"?, "content_id"?}]`, the
content in base64 (docs/decisions/0031). One check is asked at the doors, and of a row before its attempt,
whoever wrote it.
"""

from __future__ import annotations

import re
from base64 import b64encode
from binascii import a2b_base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote as url_quote

from postroom.email.address import check_unicode, kind_of
from postroom.errors import InvalidEmail
from postroom.queue.statements import read_json

ATTACHMENTS_MAX = 100
ATTACHMENTS_BYTES_MAX = 25 * 1024 * 1024
"""Of all files of an e-mail together: as much as Gmail takes."""

FILENAME_CHARACTERS_MAX = 255
TYPE_CHARACTERS_MAX = 200
OTHER_TYPE = "application/octet-stream"

IMAGES_CHARACTERS_MAX = 8 * 1024 * 1024
"""That with_images() puts into a page: it may name one image a million times."""

FIELDS = ("filename", "content", "content_type", "content_id")
_ALSO = {
    "contentType": "content_type",
    "contentId": "content_id",
}  # as Resend's library for JavaScript has them

# By our own table: one of the machine's would make the bytes of a mail depend on where it is rendered.
TYPES = {
    "pdf": "application/pdf",
    "zip": "application/zip",
    "gz": "application/gzip",
    "json": "application/json",
    "xml": "application/xml",
    "rtf": "application/rtf",
    "p7s": "application/pkcs7-signature",
    "doc": "application/msword",
    "xls": "application/vnd.ms-excel",
    "ppt": "application/vnd.ms-powerpoint",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    "odt": "application/vnd.oasis.opendocument.text",
    "ods": "application/vnd.oasis.opendocument.spreadsheet",
    "txt": "text/plain",
    "log": "text/plain",
    "csv": "text/csv",
    "html": "text/html",
    "htm": "text/html",
    "md": "text/markdown",
    "ics": "text/calendar",
    "vcf": "text/vcard",
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "gif": "image/gif",
    "webp": "image/webp",
    "svg": "image/svg+xml",
    "avif": "image/avif",
    "tif": "image/tiff",
    "tiff": "image/tiff",
    "bmp": "image/bmp",
    "mp3": "audio/mpeg",
    "wav": "audio/wav",
    "ogg": "audio/ogg",
    "mp4": "video/mp4",
    "webm": "video/webm",
    "eml": "message/rfc822",
}

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_TOKEN = r"[!#$%&'*+.^_`{|}~0-9A-Za-z-]+"  # noqa: S105 - of RFC 2045, 5.1
_TYPE = re.compile(
    rf'({_TOKEN}/{_TOKEN})((?:[ \t]*;[ \t]*{_TOKEN}=(?:{_TOKEN}|"(?:[ !#-\[\]-~]|\\[ -~])*"))*)[ \t]*;?[ \t]*'
)
_IMAGE = re.compile(r"image/[a-z0-9.+-]{1,40}")
_ID = re.compile(r"[!-;=?-~]{1,200}")
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_SPACE = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Attachment:
    """
    A file that goes with an e-mail.

    Attributes:
        filename: As the recipient sees it.
        content_type: Such as `application/pdf`; by the filename's ending where there is none.
        content_id: Where the HTML shows it: `<img src="cid:logo">` shows the one whose content_id is `logo`.
    """

    filename: str
    content: bytes = field(repr=False)
    content_type: str | None = None
    content_id: str | None = None

    @classmethod
    def from_file(
        cls, path: str | Path, *, content_type: str | None = None, content_id: str | None = None
    ) -> Self:
        """
        A file of this machine, read now, under its own name.

        Raises:
            OSError: It cannot be read.
        """
        file = Path(path)
        return cls(file.name, file.read_bytes(), content_type, content_id)


@dataclass(frozen=True, slots=True)
class AttachedFile:
    """
    An attachment that was checked.

    Attributes:
        given: The file itself, or the same in base64 and nothing else: padded, without line breaks.
        given_type: What it was given as, where it was.
        size: Of the file itself, in bytes.
    """

    filename: str
    given: str | bytes = field(repr=False)
    given_type: str | None
    content_id: str | None
    size: int

    @property
    def content_type(self) -> str:
        """What it was given as, or by its name's ending."""
        return self.given_type or _type_of(self.filename)

    @property
    def content(self) -> str:
        """In base64. Made anew each time: one file may go with thousands of e-mails."""
        return self.given if isinstance(self.given, str) else b64encode(self.given).decode()

    @property
    def file(self) -> bytes:
        """The file itself."""
        return a2b_base64(self.given) if isinstance(self.given, str) else self.given

    @property
    def document(self) -> dict[str, str]:
        """As a row has it."""
        given = {"content_type": self.given_type, "content_id": self.content_id}
        return {"filename": self.filename, "content": self.content} | {
            name: value for name, value in given.items() if value is not None
        }


@dataclass(frozen=True, slots=True)
class Listed:
    """An attachment as a page shows it: `number` counts from 0 within its e-mail, `size` is in bytes."""

    number: int
    name: str
    type: str
    size: int


def check_attachments(attachments: object) -> list[AttachedFile]:
    """
    Check an e-mail's attachments: Attachment objects, or objects as a row has them.

    Raises:
        InvalidEmail: They can never be sent; its field is `attachments`, or `attachments[2].content`.
    """
    if attachments is None:
        return []
    if isinstance(attachments, str | bytes | Mapping) or not hasattr(attachments, "__iter__"):
        found = kind_of(attachments)
        raise InvalidEmail("attachments", f"must be a list of filename and content, not {found}")
    given = list(attachments)
    if len(given) > ATTACHMENTS_MAX:
        raise InvalidEmail("attachments", f"are {len(given):,}; at most {ATTACHMENTS_MAX} go with an e-mail")
    files = [_check(f"attachments[{place}]", each) for place, each in enumerate(given)]
    size = sum(file.size for file in files)
    if size > ATTACHMENTS_BYTES_MAX:
        raise InvalidEmail(
            "attachments", f"have {size:,} bytes together; at most {ATTACHMENTS_BYTES_MAX:,} are allowed"
        )
    return files


def read_attachments(written: object) -> list[AttachedFile]:
    """
    The attachments of a row: what its column holds, as JSON.

    A hand-made table may have a column of this name and of another type: a text that holds JSON is read as
    that; an empty list, object or text, false and 0 are none, as postroom.attached_bytes has it.

    Raises:
        InvalidEmail: As check_attachments.
    """
    written = as_json(written)
    return check_attachments(written) if written else []


def as_json(written: object) -> object:
    """What a column attachments holds; a hand-made one may be a text with JSON in it."""
    return read_json(written) if isinstance(written, str) else written


def without_contents(written: object) -> object:
    """What a row has of attachments, for people: of each file the number of bytes, not the file."""
    written = as_json(written)
    if not isinstance(written, list):
        return f"{written[:80]}…" if isinstance(written, str) and len(written) > 80 else written
    return [{**each, "content": f"{_size(each):,} bytes"} if _is_file(each) else each for each in written]


def list_files(written: object) -> list[Listed]:
    """What a row has of attachments, as far as there are files in it, whatever else is wrong with them."""
    written = as_json(written)
    given = written if isinstance(written, list) else []
    return [
        Listed(
            number,
            str(each.get("filename") or "(no name)"),
            str(each.get("content_type") or each.get("contentType") or _type_of(str(each.get("filename")))),
            _size(each),
        )
        for number, each in enumerate(given)
        if _is_file(each)
    ]


def read_file(written: object, number: int) -> tuple[str, bytes] | None:
    """One of list_files(): its name and what is in it; None where there is none of this number."""
    written = as_json(written)
    if not isinstance(written, list) or not 0 <= number < len(written) or not _is_file(written[number]):
        return None
    try:
        content = a2b_base64(written[number]["content"])
    except ValueError:
        return None
    return str(written[number].get("filename") or "attachment"), content


def with_images(html: str, images: Iterable[tuple[str, str, bytes]]) -> str:
    """
    A page as it looks where its images are: `cid:` URLs (RFC 2392) become `data:` ones, of images alone.

    Args:
        images: Content-ID, type and content of each. Those beyond ATTACHMENTS_MAX stay names: a stranger's
            mail may have thousands, and the page is searched for each.
    """
    left = IMAGES_CHARACTERS_MAX
    for content_id, kind, content in islice(images, ATTACHMENTS_MAX):
        if _IMAGE.fullmatch(kind):
            url = f"data:{kind};base64,{b64encode(content).decode()}"
            if count := left // len(url):
                html, made = shown_by(content_id).subn(url, html, count=count)
                left -= made * len(url)
    return html


def shown_by(content_id: str) -> re.Pattern[str]:
    """The URL by which a page shows what has this Content-ID, written plainly or quoted."""
    names = "|".join(re.escape(name) for name in (content_id, url_quote(content_id)))
    return re.compile(rf"cid:(?:{names})(?![\w.@%+-])")


def _is_file(each: object) -> bool:
    return isinstance(each, dict) and isinstance(each.get("content"), str)


def _size(each: dict[str, Any]) -> int:
    """In bytes; a little more where its base64 is in lines."""
    content = each["content"]
    return len(content) // 4 * 3 - str(content[-2:]).count("=")


def _type_of(filename: str) -> str:
    return TYPES.get(filename.rpartition(".")[2].lower(), OTHER_TYPE)


def _check(place: str, given: object) -> AttachedFile:
    if isinstance(given, Attachment):
        given = {name: getattr(given, name) for name in FIELDS}
    if not isinstance(given, Mapping):
        raise InvalidEmail(place, f"must be an object of filename and content, not {kind_of(given)}")
    named = {_ALSO.get(name, name): value for name, value in given.items() if value is not None}
    if "path" in named:
        raise InvalidEmail(f"{place}.path", "nothing is fetched; give the file itself as content, in base64")
    if unknown := next((name for name in named if name not in FIELDS), None):
        raise InvalidEmail(place, f"{str(unknown)[:80]!r} is no field of it; there are {', '.join(FIELDS)}")
    content, size = _check_content(f"{place}.content", named.get("content"))
    return AttachedFile(
        _check_filename(f"{place}.filename", named.get("filename")),
        content,
        check_type(f"{place}.content_type", named.get("content_type")),
        _check_id(f"{place}.content_id", named.get("content_id")),
        size,
    )


def _check_filename(name: str, filename: object) -> str:
    if filename is None:
        raise InvalidEmail(name, "is missing")
    if not isinstance(filename, str):
        raise InvalidEmail(name, f"must be a text, not {kind_of(filename)}")
    if not filename.strip():
        raise InvalidEmail(name, "is empty")
    if len(filename) > FILENAME_CHARACTERS_MAX:
        raise InvalidEmail(
            name, f"is {len(filename):,} characters long; at most {FILENAME_CHARACTERS_MAX} are allowed"
        )
    if found := _CONTROL.search(filename):
        raise InvalidEmail(name, f"holds U+{ord(found[0]):04X} at position {found.start() + 1}; take it out")
    return check_unicode(name, filename)


def _check_content(name: str, content: object) -> tuple[str | bytes, int]:
    """As AttachedFile.given, and the size of the file."""
    if content is None:
        raise InvalidEmail(name, "is missing")
    if isinstance(content, bytes | bytearray | memoryview):
        file = bytes(content)
        return file, len(file)
    if not isinstance(content, str):
        raise InvalidEmail(name, f"must be a text, the file in base64, not {kind_of(content)}")
    try:
        data = content.encode("ascii")
    except UnicodeEncodeError:
        raise InvalidEmail(name, "is no base64") from None
    if data[:5] == b"data:":
        raise InvalidEmail(name, "must be base64 alone, without `data:…;base64,` before it")
    padding = data.translate(None, _BASE64)  # a fifth of the time that decoding takes
    if padding.strip(b"="):  # lines, as encode(file, 'base64') of PostgreSQL makes them
        data = data.translate(None, _SPACE)
        padding = data.translate(None, _BASE64)
        content = data.decode()
    if padding not in (b"", b"=", b"==") or not data.endswith(padding) or len(data) % 4:
        raise InvalidEmail(name, "is no base64")
    return content, len(data) // 4 * 3 - len(padding)


def check_type(name: str, content_type: object) -> str | None:
    """
    A media type, such as `text/calendar; method=REQUEST`.

    Raises:
        InvalidEmail: It is none, or one of several parts, which a file cannot have.
    """
    if content_type is None or content_type == "":
        return None
    if not isinstance(content_type, str):
        raise InvalidEmail(name, f"must be a text, not {kind_of(content_type)}")
    found = _TYPE.fullmatch(content_type) if len(content_type) <= TYPE_CHARACTERS_MAX else None
    if found is None:
        raise InvalidEmail(name, "is no media type, such as application/pdf")
    if found[1].lower().startswith("multipart/"):
        raise InvalidEmail(name, f"{found[1]} is the type of several parts, not of a file")
    return found[1].lower() + found[2].rstrip()


def _check_id(name: str, content_id: object) -> str | None:
    if content_id is None or content_id == "":
        return None
    if not isinstance(content_id, str):
        raise InvalidEmail(name, f"must be a text, not {kind_of(content_id)}")
    bare = content_id.removeprefix("<").removesuffix(">")
    if not _ID.fullmatch(bare):
        raise InvalidEmail(name, "must be one word of ASCII, such as logo, for `cid:logo` in the HTML")
    return bare
