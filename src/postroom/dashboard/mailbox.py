"""The mailbox: with the maildir transport, the mails that went out, as a mail catcher shows them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from postroom import log
from postroom.dashboard.downloads import download
from postroom.dashboard.filters import TEXT_CHARACTERS_MAX
from postroom.dashboard.messages import MAIL_POLICY, SOURCE_BYTES_MAX
from postroom.dashboard.site import Problem, actor_of, form_of, page, render, see, session_of, site_of
from postroom.database.audit import record
from postroom.email.attachments import with_images
from postroom.email.mailbox import SEARCHED_MAX, Mail, delete_mails, list_mails, read_mail
from postroom.email.transports.urls import maildir_of
from postroom.wording import count_of

_log = log.get_logger()


@page
async def mailbox(request: Request) -> Response:
    """The list, newest first; without a maildir, how to get one."""
    folder = _folder(request)
    if folder is None:
        return render(request, "mailbox.html", folder=None, notice="")
    query = request.query_params
    text = query.get("q", "").strip()[:TEXT_CHARACTERS_MAX]
    after = query.get("after") or None
    found = await asyncio.to_thread(list_mails, folder, text=text, after=after)
    return render(
        request,
        "mailbox.html",
        folder=folder,
        notice=query.get("notice", "")[:300],
        text=text,
        after=after,
        found=found,
        searched_max=SEARCHED_MAX,
        at=lambda moment: datetime.fromtimestamp(moment, UTC) if moment else None,
    )


@page
async def caught(request: Request) -> Response:
    """One mail."""
    mail = await _mail(request)
    return render(
        request,
        "caught.html",
        mail=mail,
        at=datetime.fromtimestamp(mail.head.at, UTC) if mail.head.at else None,
        source=mail.content[:SOURCE_BYTES_MAX].decode("utf-8", "replace"),
        cut=len(mail.content) > SOURCE_BYTES_MAX,
    )


@page
async def caught_html(request: Request) -> Response:
    """A mail's HTML, for a frame in which nothing runs."""
    mail = await _mail(request)
    headers = {"content-security-policy": MAIL_POLICY, "x-frame-options": "SAMEORIGIN"}
    images = [(one.content_id, one.type, one.content) for one in mail.parts.attachments if one.content_id]
    html = await asyncio.to_thread(with_images, mail.parts.html or "", images)
    return Response(html, 200, headers, "text/html")


@page
async def caught_source(request: Request) -> Response:
    """The file as it is."""
    mail = await _mail(request)
    return download(mail.content, f"{mail.head.name}.eml")


@page
async def caught_attachment(request: Request) -> Response:
    """One of a mail's attachments, to keep."""
    mail, number = await _mail(request), request.path_params["number"]
    found = next((one for one in mail.parts.attachments if str(one.number) == number), None)
    if found is None:
        raise Problem(404, "The mail has no such attachment.")
    return download(found.content, found.name)


@page
async def delete_caught(request: Request) -> Response:
    """Delete one mail's file, or all of them; the queue's rows stay."""
    folder = _folder(request)
    if folder is None:
        raise Problem(404, "There is no mailbox: e-mails do not go into a maildir here.")
    form = await form_of(request)
    name = form.get("name", "")
    if not name and form.get("all") != "yes":
        raise Problem(400, "Say which mail is to be deleted, or that all are.")
    async with site_of(request).room.database.transaction() as connection:
        deleted = await asyncio.to_thread(delete_mails, folder, name or None)
        about = {"count": deleted} | ({"name": name[:255]} if name else {})
        await record(connection, actor_of(request), "mailbox.delete", about)
    _log.info("dashboard.mailbox_deleted", mails=deleted, key_id=session_of(request).key_id)
    return see(f"/mailbox?notice={count_of(deleted, 'mail').replace(' ', '+')}+deleted.")


async def _mail(request: Request) -> Mail:
    folder = _folder(request)
    name = request.path_params["name"]
    mail = None if folder is None else await asyncio.to_thread(read_mail, folder, name)
    if mail is None:
        raise Problem(404, "There is no such mail in the mailbox: it may have been deleted.")
    return mail


def _folder(request: Request) -> Path | None:
    """Of the first maildir among the transports."""
    folders = map(maildir_of, site_of(request).room.settings.transport_urls)
    return next((folder for folder in folders if folder is not None), None)
