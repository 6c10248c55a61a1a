"""The dashboard's pages and their addresses."""

from __future__ import annotations

from starlette.routing import Route

from postroom.dashboard.assets import asset
from postroom.dashboard.audit import audit
from postroom.dashboard.dead_letters import bulk_action, dead_letters, decide_letters, steer_bulk_action
from postroom.dashboard.edit import edit, send_edited
from postroom.dashboard.login import login, logout
from postroom.dashboard.mailbox import (
    caught,
    caught_attachment,
    caught_html,
    caught_source,
    delete_caught,
    mailbox,
)
from postroom.dashboard.messages import mail, mail_attachment, mail_source, message, messages, replay
from postroom.dashboard.operations import cron, settings
from postroom.dashboard.overview import flow, live, overview
from postroom.dashboard.queues import queues
from postroom.dashboard.site import ROOT

ROUTES = [
    Route(ROOT, overview),
    Route(f"{ROOT}/live", live),
    Route(f"{ROOT}/flow", flow),
    Route(f"{ROOT}/login", login, methods=["GET", "POST"]),
    Route(f"{ROOT}/logout", logout, methods=["POST"]),
    Route(f"{ROOT}/static/{{name}}", asset),
    Route(f"{ROOT}/dead-letters", dead_letters),
    Route(f"{ROOT}/dead-letters/decide", decide_letters, methods=["POST"]),
    Route(f"{ROOT}/dead-letters/actions/{{id:uuid}}", bulk_action),
    Route(f"{ROOT}/dead-letters/actions/{{id:uuid}}", steer_bulk_action, methods=["POST"]),
    Route(f"{ROOT}/emails/{{id:uuid}}/edit", edit),
    Route(f"{ROOT}/emails/{{id:uuid}}/edit", send_edited, methods=["POST"]),
    Route(f"{ROOT}/queues", queues, methods=["GET", "POST"]),
    Route(f"{ROOT}/settings", settings, methods=["GET", "POST"]),
    Route(f"{ROOT}/cron", cron, methods=["GET", "POST"]),
    Route(f"{ROOT}/audit", audit),
    Route(f"{ROOT}/webhooks/{{id:uuid}}/replay", replay, methods=["POST"]),
    Route(f"{ROOT}/mailbox", mailbox),
    Route(f"{ROOT}/mailbox/delete", delete_caught, methods=["POST"]),
    Route(f"{ROOT}/mailbox/{{name}}", caught),
    Route(f"{ROOT}/mailbox/{{name}}/html", caught_html),
    Route(f"{ROOT}/mailbox/{{name}}/source", caught_source),
    Route(f"{ROOT}/mailbox/{{name}}/attachments/{{number}}", caught_attachment),
    Route(f"{ROOT}/emails/{{id:uuid}}/html", mail),
    Route(f"{ROOT}/emails/{{id:uuid}}/source", mail_source),
    Route(f"{ROOT}/emails/{{id:uuid}}/attachments/{{number}}", mail_attachment),
    Route(f"{ROOT}/{{kind}}/{{id:uuid}}", message),
    Route(f"{ROOT}/{{kind}}", messages),
]
