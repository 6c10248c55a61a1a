"""No secret and no message's body is ever seen in a log, an answer, an error or a list of processes."""

from __future__ import annotations

import asyncio
import secrets
import sys
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import psycopg
import pytest
from aiohttp import web

from postroom.testing import signed
from tests.email.transports.servers.scripted_smtp import ScriptedSmtp
from tests.journey.programs import Program, Programs
from tests.support.waiting import until


def _marked(what: str) -> str:
    return f"{what}{secrets.token_hex(8)}"


SMTP_PASSWORD, RESEND_KEY, SERVICE_KEY = _marked("smtppw"), "re_" + _marked("resend"), _marked("servicekey")
DATABASE_PASSWORD, JWT_SECRET = _marked("dbpw"), _marked("jwtsecretjwtsecretjwtsecret")
STRIPE_SECRET, URL_SECRET = "whsec_" + _marked("stripe"), "whsec_" + "c2VjcmV0" + secrets.token_hex(12)
STRIPE_KEY, URL_TOKEN = "sk_live_" + _marked("stripekey"), _marked("urltoken")
WRONG_KEY = _marked("wrongkey")
HTML, TEXT, METADATA, PAYLOAD = (_marked(what) for what in ("html", "text", "metadata", "payload"))
FILE = b64encode(f"The file that goes with it: {_marked('file')}".encode()).decode()
BODIES = {
    "html": f"<p>Thank you for your order, which is on its way: {HTML}</p>",
    "text": f"Thank you for your order,\nwhich is on its way: {TEXT}",
}
ALL = {
    name: value
    for name, value in globals().items()
    if name.isupper() and isinstance(value, str) and len(value) > 15
}

HANDLERS = """
from postroom import Room

room = Room()

@room.on("stripe", "bad.*")
async def fail(event, db):
    hidden = event.payload["data"]
    if event.type == "bad.key":
        raise KeyError("nothing")
    if event.type == "bad.sql":
        await db.execute("INSERT INTO guarded VALUES ($1)", hidden)
    raise RuntimeError("it failed")
"""

TOML = f"""
[webhooks.stripe]
scheme = "stripe"
secrets = ["env:STRIPE_WEBHOOK_SECRET"]
[[webhooks.stripe.handlers]]
name = "url"
events = ["url.*"]
url = "http://127.0.0.1:1/hook?token={URL_TOKEN}"
secret = "env:URL_SECRET"
[[webhooks.stripe.handlers]]
name = "sql"
events = ["sql.*"]
sql = "public.on_event"
"""

FUNCTIONS = """
    CREATE TABLE guarded (value text CHECK (value = 'allowed'));
    CREATE FUNCTION on_event(payload jsonb, event_id text) RETURNS void LANGUAGE sql
    AS 'INSERT INTO public.guarded VALUES (payload ->> ''data'')';
    ALTER TABLE email_queue ADD CONSTRAINT forbidden CHECK (subject <> 'refused')
"""


@pytest.fixture
async def ways_out() -> AsyncIterator[str]:
    """A mail server that repeats the password that it refuses, and a Resend that repeats the key."""

    async def repeat(request: web.Request) -> web.Response:
        body = {
            "name": "validation_error",
            "message": f"bad {request.headers['authorization']} {await request.text()}",
        }
        return web.json_response(body, status=422)

    served = web.Application()
    served.router.add_post("/emails", repeat)
    runner = web.AppRunner(served)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    smtp = ScriptedSmtp(extensions=["AUTH PLAIN LOGIN", "PIPELINING"])
    smtp.always("AUTH", f"535 5.7.8 wrong password {SMTP_PASSWORD} of user")
    await smtp.open()
    yield (
        f"smtp://user:{SMTP_PASSWORD}@127.0.0.1:{smtp.port}?starttls=never "
        f"resend+http://{RESEND_KEY}@127.0.0.1:{runner.addresses[0][1]}"
    )
    await smtp.close()
    await runner.cleanup()


@pytest.fixture
def programs(database_url: str, tmp_path: Path, ways_out: str) -> Programs:
    """The programs of a house in which everything is a secret and nothing works."""
    (tmp_path / "postroom.toml").write_text(TOML)
    (tmp_path / "house.py").write_text(HANDLERS)
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute(FUNCTIONS)
    return Programs(
        tmp_path,
        {
            "PYTHONPATH": f"{tmp_path}:{':'.join(sys.path)}",
            "POSTROOM_DATABASE_URL": database_url.replace("postgres@", f"postgres:{DATABASE_PASSWORD}@"),
            "POSTROOM_TRANSPORT": ways_out,
            "POSTROOM_FROM": "shop@example.com",
            "POSTROOM_SERVICE_KEY": SERVICE_KEY,
            "POSTROOM_JWT_SECRET": JWT_SECRET,
            "STRIPE_WEBHOOK_SECRET": STRIPE_SECRET,
            "STRIPE_API_KEY": STRIPE_KEY,
            "URL_SECRET": URL_SECRET,
            "POSTROOM_PORT": "0",
            "POSTROOM_LOG": "json",
            "POSTROOM_LOG_LEVEL": "debug",
        },
    )


async def _provoke(url: str) -> list[str]:
    """Everything that can fail behind the doors; what they answered."""
    mail: dict[str, Any] = {"to": "ada@example.com", "subject": "Hi", **BODIES, "metadata": {"a": METADATA}}
    mail["attachments"] = [{"filename": "a.txt", "content": FILE}]
    send, answers = "/functions/v1/send-email", []
    stranger = jwt.encode({"role": "anon"}, JWT_SECRET)
    keys = [SERVICE_KEY, WRONG_KEY, stranger, f"{stranger[:-4]}AAAA"]
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:

        async def ask(path: str, key: str = SERVICE_KEY, **how: Any) -> None:
            headers = {"authorization": f"Bearer {key}"} | how.pop("headers", {})
            answer = await client.post(path, headers=headers, **how)
            answers.append(f"{answer.status_code} {answer.headers} {answer.text}")

        for key in keys:
            await ask(send, key, json=mail | {"use_queue": True})
            await ask(send, key, json=mail)
        await ask(send, json=mail | {"use_queue": True, "subject": "refused"})
        await ask(send, json=mail | {"subject": "refused"})
        await ask(send, json=mail | {"to": "nobody"})
        await ask(send, json=mail | {"attachments": [{"filename": "a.txt", "content": f"{FILE}?"}]})
        await ask(send, content=f'{{"html": "{HTML}", '.encode())
        await ask("/functions/v1/process-email-queue")
        for kind in ("bad.key", "bad.sql", "bad.other", "url.x", "sql.x", "unhandled"):
            event = signed("stripe", {"id": f"evt_{kind}", "type": kind, "data": PAYLOAD}, STRIPE_SECRET)
            await ask("/webhooks/stripe", content=event.body, headers=event.headers)
            await ask("/webhooks/stripe", content=event.body.replace(b"evt", b"EVT"), headers=event.headers)
        wrong = signed("stripe", {"id": "evt_1", "data": PAYLOAD}, WRONG_KEY)
        await ask("/webhooks/stripe", content=wrong.body, headers=wrong.headers)
        await ask(f"/webhooks/stripe?token={WRONG_KEY}", content=PAYLOAD.encode())
        await ask("/functions/v1/process-webhook-retries")
    return answers


def _seen_in_the_database(database_url: str) -> str:
    """What postroom itself has written down, and what it shows of itself."""
    with psycopg.connect(database_url) as owner:
        rows = owner.execute(
            "SELECT last_error, attempt_log, waits_for, dead_reason FROM email_queue"
        ).fetchall()
        rows += owner.execute(
            "SELECT last_error, attempt_log, dead_reason FROM webhook_retry_queue"
        ).fetchall()
        for table in ("workers", "transports", "refused_rows", "settings", "handlers"):
            rows += owner.execute(f"SELECT * FROM postroom.{table}").fetchall()
        rows += owner.execute("SELECT application_name, query FROM pg_stat_activity").fetchall()
    return repr(rows)


async def test_no_secret_and_no_body_is_seen_anywhere(programs: Programs, database_url: str) -> None:
    """A whole house at level debug in which everything fails: logs, answers, rows, screens and processes."""
    seen: dict[str, str] = {}
    started: list[Program] = []
    try:
        serving, working = programs.start("serve"), programs.start("worker", "--app", "house:room")
        started += [serving, working]
        url = await asyncio.to_thread(serving.ready)
        await asyncio.to_thread(working.working)
        seen["answers"] = "\n".join(await _provoke(url))

        async def has_failed() -> bool:
            with psycopg.connect(database_url) as owner:
                counted = owner.execute(
                    "SELECT (SELECT count(*) FROM webhook_retry_queue WHERE attempts > 0),"
                    " (SELECT count(*) FROM email_queue WHERE last_error IS NOT NULL)"
                ).fetchone()
            assert counted is not None
            return bool(counted[0] >= 6 and counted[1] >= 1)

        await until(has_failed, limit_s=60)
        commands = [Path(f"/proc/{program.process.pid}/cmdline").read_bytes() for program in started]
        seen["processes"] = repr(commands)
        seen["rows"] = _seen_in_the_database(database_url)
    finally:
        for program in started:
            await asyncio.to_thread(program.end)
            seen[f"log of {program.log_file.name.partition('-')[0]}"] = program.log + program.answer
    refused = ["send", "--to", "ada@example.com", "--subject", "refused", "--html", BODIES["html"]]
    for arguments in (["status"], ["dead-letters", "list"], ["doctor"], ["settings", "list"], refused):
        done = await asyncio.to_thread(programs.run, *arguments)
        seen[" ".join(arguments[:2])] = done.stdout + (done.stderr or "")
    for name, value in {
        "POSTROOM_DATABASE_URL": f"postgresql://postgres:{DATABASE_PASSWORD}@127.0.0.1:1/x",
        "POSTROOM_TRANSPORT": f"smtp://user:{SMTP_PASSWORD}/@127.0.0.1",
        "STRIPE_WEBHOOK_SECRET": f"{STRIPE_KEY}",
    }.items():
        broken = Programs(programs.folder, programs.settings | {name: value})
        done = await asyncio.to_thread(broken.run, "worker", "--drain")
        seen[f"with a wrong {name}"] = done.stdout + (done.stderr or "")

    assert len(seen["log of worker"]) > 500
    assert "webhook.put_back" in seen["log of worker"]
    found = [
        f"{name} in {where}: {_around(text, value)}"
        for where, text in seen.items()
        for name, value in ALL.items()
        if value in text or value.removeprefix("whsec_") in text
    ]
    assert not found, "\n".join(found)


def _around(text: str, value: str) -> str:
    place = max(text.find(value.removeprefix("whsec_")), 0)
    return text[max(place - 300, 0) : place + 100]
