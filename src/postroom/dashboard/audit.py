"""The audit trail: who did what by hand, in the dashboard and by the command line."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from postroom.dashboard.site import Problem, page, render, site_of
from postroom.database.audit import read_audit

PAGE_ROWS = 50
ID_MAX = 2**63 - 1


@page
async def audit(request: Request) -> Response:
    """A page of it, newest first."""
    after = request.query_params.get("after", "")
    if after and not (after.isascii() and after.isdigit() and len(after) <= 19 and int(after) <= ID_MAX):
        raise Problem(400, "There is no such place in this list: begin at its first page.")
    database = site_of(request).room.database
    found = await read_audit(database, limit=PAGE_ROWS + 1, before_id=int(after) if after else None)
    entries = found[:PAGE_ROWS]
    return render(
        request,
        "audit.html",
        entries=entries,
        after=after,
        next=entries[-1].id if len(found) > PAGE_ROWS else None,
    )
