"""docs/webhooks.md with three providers' own libraries; tests/docs follows the page itself."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import standardwebhooks
import stripe

from postroom.webhooks.schemes import SCHEMES, scheme_name
from tests.journey.programs import Programs
from tests.support.waiting import until_now

PAGE = (Path(__file__).parents[2] / "docs/webhooks.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)
STRIPE, GITHUB, BILLING = (
    "whsec_of_stripe_listen",
    "a secret of mine",
    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
)


@pytest.fixture
def folder(programs: Programs) -> Programs:
    """An empty folder with the page's first two files, and the three secrets."""
    (programs.folder / "postroom.toml").write_text(BLOCKS[0][1])
    (programs.folder / "shop.py").write_text(BLOCKS[1][1])
    programs.settings |= {
        "STRIPE_WEBHOOK_SECRET": STRIPE,
        "GITHUB_WEBHOOK_SECRET": GITHUB,
        "BILLING_WEBHOOK_SECRET": BILLING,
        "PYTHONUNBUFFERED": "1",
    }
    return programs


def by_stripe(body: str) -> dict[str, str]:
    """As the library stripe signs."""
    at = int(time.time())
    return {
        "Stripe-Signature": f"t={at},v1={stripe.WebhookSignature._compute_signature(f'{at}.{body}', STRIPE)}"
    }


def by_standard_webhooks(body: str) -> dict[str, str]:
    """As the library standardwebhooks signs."""
    now = datetime.now(UTC)
    return {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": standardwebhooks.Webhook(BILLING).sign("msg_1", now, body),
    }


def by_github(body: str) -> dict[str, str]:
    """As GitHub's document says."""
    digest = hmac.new(GITHUB.encode(), body.encode(), hashlib.sha256).hexdigest()
    return {"X-Hub-Signature-256": f"sha256={digest}", "X-GitHub-Event": "ping", "X-GitHub-Delivery": "72d3"}


def test_the_first_two_files_take_the_events_of_three_providers(folder: Programs) -> None:
    """Each is answered 200, stored under its id, and handled or marked; twice is a duplicate."""
    paid = {"id": "evt_1", "type": "checkout.session.completed", "data": {"object": {"id": "cs_1"}}}
    requests: list[tuple[str, str, Any]] = [
        ("stripe", json.dumps(paid), by_stripe),
        ("billing", '{"type": "invoice.paid"}', by_standard_webhooks),
        ("github", '{"zen": "Keep it logically awesome."}', by_github),
    ]
    with folder.running("up", "--app", "shop:room") as up:
        address = up.ready()
        for source, body, sign in requests:
            headers = sign(body)
            for duplicate in (False, True):
                answer = httpx.post(f"{address}/webhooks/{source}", content=body, headers=headers)
                assert answer.status_code == 200
                assert answer.json().get("duplicate", False) == duplicate
            forged = httpx.post(f"{address}/webhooks/{source}", content=body + " ", headers=headers)
            assert forged.status_code == 400
        until_now(lambda: len(up.events("webhook.processed")) + len(up.events("webhook.unhandled")) == 3)
        assert "paid: cs_1" in up.answer
    with psycopg.connect(folder.settings["POSTROOM_DATABASE_URL"]) as db:
        rows = db.execute("SELECT webhook_type, webhook_event_id, status FROM webhook_retry_queue ORDER BY 1")
        assert rows.fetchall() == [
            ("billing", "msg_1", "processed"),
            ("github", "72d3", "processed"),
            ("stripe", "evt_1", "processed"),
        ]
    refused = up.events("webhook.refused")
    assert [event["source"] for event in refused] == ["stripe", "billing", "github"]


def test_a_secret_that_is_missing_ends_the_program_with_one_line(folder: Programs) -> None:
    """Before it touches the database."""
    del folder.settings["GITHUB_WEBHOOK_SECRET"]
    done = folder.run("up", "--app", "shop:room")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "postroom: postroom.toml: webhooks.github.secrets: the variable GITHUB_WEBHOOK_SECRET is not set"
    ]


def test_every_scheme_stands_on_the_page() -> None:
    """By the name that is written into postroom.toml."""
    named = {scheme_name(word) for word in re.findall(r"[a-z0-9-]+", PAGE)}
    assert SCHEMES.keys() <= named
