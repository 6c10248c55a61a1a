"""
What a provider may have signed, of what came: bodies and addresses are written anew on their way.

A proxy, or a framework that parses JSON and writes it again, changes whitespace, the order of keys,
escapes or line ends; the text stays the same, the signature does not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

_BOM = b"\xef\xbb\xbf"

_LAYOUTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("without whitespace", {"separators": (",", ":")}),
    ("with a space after each comma and colon", {}),
    ("indented by 2 spaces", {"indent": 2}),
    ("indented by 4 spaces", {"indent": 4}),
    ("indented by tabs", {"indent": "\t"}),
)


def bodies(body: bytes) -> Iterator[tuple[str, bytes]]:
    """What may have been signed in place of a body, the likeliest first, each with what sets it apart."""
    seen = {body}
    for what, data in (*_of_bytes(body), *_of_json(body), *_of_form(body)):
        if data not in seen:
            seen.add(data)
            yield what, data


def urls(url: str) -> Iterator[tuple[str, str]]:
    """Addresses that a provider may have called in place of one, each with what sets it apart."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return
    other_scheme = "http" if parts.scheme == "https" else "https"
    variants = [(f"begins with {other_scheme}://", parts._replace(scheme=other_scheme))]
    if parts.path.endswith("/"):
        variants.append(("has no / at its end", parts._replace(path=parts.path.rstrip("/"))))
    else:
        variants.append(("has a / at its end", parts._replace(path=f"{parts.path}/")))
    if port:
        bare = parts.netloc.rpartition(":")[0]
        variants.append(("has no port", parts._replace(netloc=bare)))
        variants.append(
            (
                f"has no port and begins with {other_scheme}://",
                parts._replace(netloc=bare, scheme=other_scheme),
            )
        )
    if parts.query:
        variants.append(("has nothing after ?", parts._replace(query="")))
    if parts.netloc.startswith("www."):
        variants.append(("has no www.", parts._replace(netloc=parts.netloc[4:])))
    else:
        variants.append(("has www. before its host", parts._replace(netloc=f"www.{parts.netloc}")))
    yield from ((what, variant.geturl()) for what, variant in variants)


def _of_bytes(body: bytes) -> Iterator[tuple[str, bytes]]:
    yield "with a line break at its end", body + b"\n"
    yield "without whitespace at its end", body.rstrip()
    yield "without whitespace around it", body.strip()
    yield "with other line ends", body.replace(b"\r\n", b"\n")
    yield "with other line ends", body.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    yield "with other marks at its beginning", body.removeprefix(_BOM)
    yield "with other marks at its beginning", _BOM + body
    for read, written in (("utf-8", "latin-1"), ("utf-8", "cp1252"), ("latin-1", "utf-8")):
        try:
            yield f"in {written.upper()}, not taken for {read.upper()}", body.decode(read).encode(written)
        except UnicodeError:
            continue


def _of_json(body: bytes) -> Iterator[tuple[str, bytes]]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return
    if not isinstance(content, dict | list):
        return
    for is_sorted in (False, True):
        for layout, options in _LAYOUTS:
            for is_ascii in (False, True):
                try:
                    text = json.dumps(content, sort_keys=is_sorted, ensure_ascii=is_ascii, **options)
                except (ValueError, RecursionError):
                    continue
                whats = [layout]
                whats += ["with its keys sorted"] if is_sorted else []
                whats += ["with its unicode escaped"] if is_ascii else []
                data = text.encode(errors="backslashreplace")
                yield from _escaped(whats, data)


def _escaped(whats: list[str], data: bytes) -> Iterator[tuple[str, bytes]]:
    slashed, marked = data.replace(b"/", rb"\/"), _without_marks(data)
    for further, variant in (
        ([], data),
        (["with its slashes escaped"], slashed),
        (["with its < > & escaped"], marked),
        (["with its < > & and slashes escaped"], _without_marks(slashed)),
    ):
        what = ", ".join((*whats, *further))
        yield what, variant
        yield f"{what}, with a line break at its end", variant + b"\n"


def _without_marks(data: bytes) -> bytes:
    """As programs write JSON that may stand in a web page."""
    return data.replace(b"<", rb"\u003c").replace(b">", rb"\u003e").replace(b"&", rb"\u0026")


def _of_form(body: bytes) -> Iterator[tuple[str, bytes]]:
    if b"=" not in body or body[:1] in (b"{", b"["):
        return
    try:
        fields = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=1_000)
    except ValueError:
        return
    yield "as a form with other escapes", urlencode(fields).encode()
    yield "as a form with other escapes", urlencode(fields, quote_via=quote).encode()
    yield "as a form with its fields sorted", urlencode(sorted(fields)).encode()
