"""A dead e-mail is mended: another one goes out in its place."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from postroom.dashboard.site import Problem, actor_of, form_of, key_of, page, render, see, site_of
from postroom.email.replace import Mended, NotDeadLetter, read_mendable, replace_dead
from postroom.errors import InvalidEmail

BODY_CHARACTERS_MAX = 200_000
"""A part that is larger is not shown in a form; the command line mends it."""


@page
async def edit(request: Request) -> Response:
    """The form, filled with what the e-mail has."""
    before = await _before(request)
    if key_of(request).role != "operator":
        raise Problem(403, "You look on with a viewer's key: only an operator may change this.")
    return _form(request, before, None)


@page
async def send_edited(request: Request) -> Response:
    """Queue the new one; what cannot be sent stays in the form."""
    form, before = await form_of(request), await _before(request)
    # A form writes every line break as CRLF.
    written = {name: form[name].replace("\r\n", "\n") for name in before if name in form}
    changed = {
        name: text
        for name, text in written.items()
        if text != (before[name] or "").replace("\r\n", "\n").replace("\r", "\n")
    }
    email_id = request.path_params["id"]
    try:
        new_id = await replace_dead(
            site_of(request).room.database, email_id, Mended(**changed), actor_of(request)
        )
    except InvalidEmail as error:
        return _form(request, before | written, str(error))
    return see(f"/emails/{new_id}")


async def _before(request: Request) -> dict[str, Any]:
    try:
        return await read_mendable(site_of(request).room.database, request.path_params["id"])
    except NotDeadLetter as error:
        raise Problem(404 if error.status is None else 400, str(error)) from None


def _form(request: Request, email: dict[str, Any], refused: str | None) -> Response:
    large = [name for name in ("html", "text") if len(email[name] or "") > BODY_CHARACTERS_MAX]
    return render(
        request,
        "edit.html",
        id=request.path_params["id"],
        email=email,
        large=large,
        refused=refused,
    )
