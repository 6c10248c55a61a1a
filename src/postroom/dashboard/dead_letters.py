"""Dead letters: what needs a person, grouped by its reason, and what the person decides."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from urllib.parse import urlencode
from uuid import UUID, uuid4

from starlette.requests import Request
from starlette.responses import Response

from postroom import log
from postroom.dashboard.filters import PLACES, TEXT_CHARACTERS_MAX, Asked
from postroom.dashboard.site import (
    ROOT,
    Form,
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
from postroom.queue import bulk
from postroom.queue.dead_letters import (
    COUNTED_MAX,
    ERRORS_OF,
    Decided,
    What,
    count_dead_letters,
    decide,
    group_dead_letters,
)
from postroom.queue.search import Filters, InvalidCursor, Listing, list_rows
from postroom.queues import QUEUES
from postroom.wording import count_of

ACTIONS_SHOWN = 5
LOOK_S = 0.08
"""How long a search looks: the page has its groups, too."""

_log = log.get_logger()


@page
async def dead_letters(request: Request) -> Response:
    """A page of letters, newest first; with the groups on top of the first page of all."""
    database = site_of(request).room.database
    query = request.query_params
    asked = Asked(request, "/dead-letters", {}, kept=("queue", "reason"))
    queues = [queue for queue in QUEUES if query.get("queue", "") in ("", queue.name)]
    if not queues:
        raise Problem(404, f"There is no queue {query['queue'][:80]!r}: there are email and webhook.")
    after, before = (query.get(name) or None for name in PLACES)
    if asked.canonical is not None and after is before is None and "notice" not in query:
        return see(asked.canonical.removeprefix(ROOT))
    reason = query.get("reason", "").strip()[:TEXT_CHARACTERS_MAX].replace("\0", "") or None
    filters = replace(asked.filters, reason=reason)
    found = Listing([], None, None)
    if not asked.errors:
        try:
            found = await list_rows(
                database, queues, "dead_letter", filters, after=after, before=before, look_s=LOOK_S
            )
        except InvalidCursor:
            raise Problem(400, "There is no such place in this list: begin at its first page.") from None
    is_whole = not (asked.is_on or reason or query.get("queue") or after or before)
    group = Filters(reason=reason)
    counts = [
        await count_dead_letters(database, [queue], group, at_most=COUNTED_MAX + 1)
        for queue in queues
        if not group.searches  # nobody knows how long that takes
    ]
    return render(
        request,
        "dead_letters.html",
        status=400 if asked.errors else 200,
        asked=asked,
        groups=await group_dead_letters(database, QUEUES) if is_whole else [],
        found=found,
        is_first=after is before is None,
        goes_back=before is not None,
        total=sum(min(count, COUNTED_MAX) for count in counts) if counts else None,
        more=any(count > COUNTED_MAX for count in counts),
        errors_of=ERRORS_OF,
        reason=reason,
        queue=query.get("queue", ""),
        actions=await bulk.read_actions(database, ACTIONS_SHOWN),
        notice=query.get("notice", "")[:300],
    )


@page
async def decide_letters(request: Request) -> Response:
    """Retry or discard one, some or all of a group; more than one are asked about first."""
    form = await form_of(request)
    what = _what(form.get("what", ""))
    database, by, note = site_of(request).room.database, actor_of(request), form.get("note")
    if form.get("all") == "yes":
        return await _decide_all(request, form, what)
    ids = [_uuid(value) for value in await values_of(request, "id")]
    if not ids:
        raise Problem(400, "Choose what it is about: no dead letter is chosen.")
    if len(set(ids)) > 1 and form.get("sure") != "yes":
        return render(request, "confirm.html", what=what, count=len(set(ids)), ids=ids, group=None)
    decided = await decide(database, QUEUES, what, ids, by=by, note=note)
    _log.info(
        "dashboard.decided",
        what=what,
        rows=len(decided.done),
        missed=len(decided.missed),
        reason=None,
        key_id=session_of(request).key_id,
    )
    return see(f"/dead-letters?{urlencode({'notice': _notice(what, decided)})}")


@page
async def bulk_action(request: Request) -> Response:
    """How far an action on a whole group is; the page looks again by itself while it runs."""
    action = await bulk.read_action(site_of(request).room.database, request.path_params["id"])
    if action is None:
        raise Problem(404, "There is no such action: it may be long ago.")
    return render(request, "bulk_action.html", action=action)


@page
async def steer_bulk_action(request: Request) -> Response:
    """Stop an action, or go on with one whose process has ended."""
    form, action_id = await form_of(request), request.path_params["id"]
    site = site_of(request)
    if form.get("what") == "stop":
        await bulk.stop_action(site.room.database, action_id, actor_of(request))
    elif form.get("what") == "go on":
        site.work(bulk.run(site.room.database, action_id, actor_of(request), patient=True))
    else:
        raise Problem(400, "Say what is to be done: stop, or go on.")
    return see(f"/dead-letters/actions/{action_id}")


async def _decide_all(request: Request, form: Form, what: What) -> Response:
    site, reason = site_of(request), form.get("reason") or None
    database = site.room.database
    queues = [queue for queue in QUEUES if form.get("queue", "") in ("", queue.name)]
    if not queues:
        raise Problem(400, "There is no such queue.")
    if form.get("sure") != "yes":
        group = {
            "queue": form.get("queue", ""),
            "reason": reason or "",
            "asked_at": (await database.fetchval("SELECT clock_timestamp()")).isoformat(),
            "action": str(uuid4()),
        }
        count = await count_dead_letters(database, queues, Filters(reason=reason))
        return render(request, "confirm.html", what=what, count=count, ids=[], group=group)
    by, asked_at = actor_of(request), _moment(form.get("asked_at", ""))
    action_id = await bulk.begin(
        database,
        queues,
        what,
        reason=reason,
        by=by,
        note=form.get("note"),
        asked_at=asked_at,
        action_id=_uuid(form.get("action", "")),
    )
    _log.info("dashboard.decided_all", what=what, reason=reason, key_id=session_of(request).key_id)
    site.work(bulk.run(database, action_id, by, patient=True))
    return see(f"/dead-letters/actions/{action_id}")


def _what(text: str) -> What:
    decisions: dict[str, What] = {"retry": "retry", "discard": "discard"}
    if text not in decisions:
        raise Problem(400, "Say what is to be done: retry or discard.")
    return decisions[text]


def _notice(what: What, decided: Decided) -> str:
    done = count_of(len(decided.done), "dead letter")
    text = f"{done} {'will be tried again' if what == 'retry' else 'discarded'}."
    if decided.missed:
        text += f" {len(decided.missed)} left as they are: {next(iter(decided.missed.values()))}."
    return text


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise Problem(400, "That is no id of a dead letter.") from None


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise Problem(400, "That form is not complete: go back and ask again.") from None
    return moment.astimezone()
