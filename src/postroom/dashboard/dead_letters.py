"""Dead letters: what needs a person, grouped by its reason, and what the person decides."""

from __future__ import annotations

from urllib.parse import urlencode
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from postroom import log
from postroom.dashboard.site import (
    Problem,
    actor_of,
    form_of,
    page,
    render,
    see,
    session_of,
    site_of,
    values_of,
)
from postroom.queue.dead_letters import (
    Decided,
    What,
    decide,
    decide_all,
    group_dead_letters,
    list_dead_letters,
)
from postroom.queues import QUEUES
from postroom.wording import count_of

SHOWN_MAX = 100

_log = log.get_logger()


@page
async def dead_letters(request: Request) -> Response:
    """The groups, and the newest letters of all or of one group."""
    database = site_of(request).room.database
    reason = request.query_params.get("reason") or None
    letters, total = await list_dead_letters(database, QUEUES, reason=reason, limit=SHOWN_MAX)
    return render(
        request,
        "dead_letters.html",
        groups=await group_dead_letters(database, QUEUES),
        letters=letters,
        total=total,
        reason=reason,
        notice=request.query_params.get("notice", "")[:300],
    )


@page
async def decide_letters(request: Request) -> Response:
    """Retry or discard some, or all of a group."""
    form = await form_of(request)
    what = _what(form.get("what", ""))
    database, reason = site_of(request).room.database, form.get("reason") or None
    by, note = actor_of(request), form.get("note")
    if form.get("all") == "yes":
        decided = await decide_all(database, QUEUES, what, reason=reason, by=by, note=note)
    else:
        ids = [_uuid(value) for value in await values_of(request, "id")]
        decided = await decide(database, QUEUES, what, ids, by=by, note=note)
    _log.info(
        "dashboard.decided",
        what=what,
        rows=len(decided.done),
        missed=len(decided.missed),
        reason=reason,
        key_id=session_of(request).key_id,
    )
    query = {"notice": _notice(what, decided)} | ({"reason": reason} if reason else {})
    return see(f"/dead-letters?{urlencode(query)}")


def _what(text: str) -> What:
    decisions: dict[str, What] = {"retry": "retry", "discard": "discard"}
    if text not in decisions:
        raise Problem(400, "Say what is to be done: retry or discard.")
    return decisions[text]


def _notice(what: What, decided: Decided) -> str:
    done = count_of(len(decided.done), "dead letter")
    text = f"{done} {'will be tried again' if what == 'retry' else 'given up'}."
    if decided.missed:
        text += f" {len(decided.missed)} left as they are: {next(iter(decided.missed.values()))}."
    return text


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise Problem(400, "That is no id of a dead letter.") from None
