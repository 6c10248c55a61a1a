"""Our own files: the style, the script, and the two libraries that pages use."""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from postroom.dashboard.site import html_answer

_TYPES = {"css": "text/css", "js": "text/javascript", "txt": "text/plain", "svg": "image/svg+xml"}

_FILES = {
    each.name: each.read_bytes()
    for each in files("postroom.dashboard").joinpath("static").iterdir()
    if each.is_file()
}


async def asset(request: Request) -> Response:
    """One file. Its address names the version, so a browser may keep it."""
    name = request.path_params["name"]
    content = _FILES.get(name)
    if content is None:
        return html_answer("There is no such file.", 404)
    headers = {"cache-control": "public, max-age=31536000, immutable"}
    return Response(content, 200, headers, _TYPES[name.rpartition(".")[2]])
