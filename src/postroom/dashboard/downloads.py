"""What a person takes away as a file: bytes that strangers wrote, which no browser shall show or run."""

from __future__ import annotations

from urllib.parse import quote

from starlette.responses import Response

NAME_CHARACTERS_MAX = 150

POLICY = "sandbox; default-src 'none'"


def download(content: bytes, name: str) -> Response:
    """
    A file to keep. Its type is that of no document, whatever it is: a browser offers to save it, no more.

    Args:
        name: What its author calls it; only what is harmless of it is offered.
    """
    safe = _safe(name)
    plain = "".join(char if char.isascii() and char not in '"\\%' else "_" for char in safe)
    headers = {
        "content-disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(safe, safe='')}",
        "content-security-policy": POLICY,
        "cross-origin-resource-policy": "same-origin",
    }
    return Response(content, 200, headers, "application/octet-stream")


def _safe(name: str) -> str:
    """Without a way to another folder, without what turns its end around, and not hidden."""
    clean = "".join("_" if char in '/\\:*?"<>|' or not char.isprintable() else char for char in name)
    return clean.strip(". ")[:NAME_CHARACTERS_MAX] or "attachment"
