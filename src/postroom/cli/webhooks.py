"""`postroom webhooks`: say whether a provider's signature holds and, if not, why."""

from __future__ import annotations

import re
import sys
from datetime import datetime
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Annotated

import typer

from postroom.cli.errors import WrongUsage
from postroom.cli.screen import print_facts, print_json
from postroom.errors import PostroomError

if TYPE_CHECKING:
    from postroom.webhooks.doctor import Diagnosis
    from postroom.webhooks.request import WebhookRequest
    from postroom.webhooks.schemes import Verified
    from postroom.webhooks.source import Source

_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?", re.ASCII)

app = typer.Typer(help="Work on webhooks.")


@app.callback()
def webhooks() -> None:
    """Work on webhooks."""


@app.command("verify")
def verify(
    source: Annotated[str, typer.Option("--source", metavar="NAME", help="Such as stripe.")],
    body: Annotated[
        str, typer.Option("--body", metavar="FILE", help="The bytes as they came; - reads stdin.")
    ],
    header: Annotated[
        list[str] | None,
        typer.Option("--header", "-H", metavar="'NAME: VALUE'", help="As it came; once for each."),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option("--url", help="The address that was called; POSTROOM_PUBLIC_URL/webhooks/NAME."),
    ] = None,
    method: Annotated[str, typer.Option("--method")] = "POST",
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="TIME", help="When it came, in ISO 8601 or seconds since 1970; now."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say whether a request's signature holds and, if not, why."""
    from postroom.errors import SignatureError
    from postroom.settings import load_settings
    from postroom.webhooks.doctor import diagnose
    from postroom.webhooks.request import Headers, WebhookRequest
    from postroom.webhooks.source_settings import read_sources

    settings = load_settings()
    sources = read_sources(settings)
    chosen = _source(source, sources)
    address = url or f"{settings.public_url or f'http://{settings.host}:{settings.port}'}/webhooks/{source}"
    request = WebhookRequest(
        method.upper(), address, Headers(map(_field, header or [])), _read(body, chosen.body_bytes_max)
    )
    now_s = time() if at is None else _seconds(at)
    try:
        verified = chosen.verify(request, now_s)
    except SignatureError:
        diagnosis = diagnose(
            chosen, request, now_s, others=sources.values(), rewritten_bytes_max=chosen.body_bytes_max
        )
        assert diagnosis is not None  # it does not hold
        if json:
            print_json(_as_json(diagnosis))
        raise PostroomError(f"{diagnosis.found}; {diagnosis.advice}") from None
    _print(chosen, request, verified, now_s, json=json)


def _print(source: Source, request: WebhookRequest, verified: Verified, now_s: float, *, json: bool) -> None:
    handlers = [handler.name for handler in source.handlers_for(verified.event_type)]
    if json:
        print_json(
            {
                "holds": True,
                "source": source.name,
                "scheme": source.scheme.name,
                "secret": verified.secret_index + 1 if source.secrets else None,
                "event_id": verified.event_id,
                "event_type": verified.event_type,
                "signed_at": verified.timestamp_s,
                "handlers": handlers,
            }
        )
        return
    secret = f", by secret {verified.secret_index + 1} of {len(source.secrets)}" if source.secrets else ""
    facts = {"signature": f"holds{secret}", "scheme": source.scheme.name}
    facts["event id"] = verified.event_id or "none: it is never taken for a duplicate"
    facts["event type"] = verified.event_type or "none"
    if verified.timestamp_s is not None:
        facts["signed"] = f"{now_s - verified.timestamp_s:.0f} s ago"
    facts["handlers"] = ", ".join(handlers) or "none in postroom.toml"
    print_facts({**facts, "body": f"{len(request.body):,} bytes"})


def _as_json(diagnosis: Diagnosis) -> dict[str, object]:
    return {
        "holds": False,
        "reason": diagnosis.reason,
        "cause": diagnosis.cause,
        "certain": diagnosis.certain,
        "found": diagnosis.found,
        "advice": diagnosis.advice,
    }


def _source(name: str, sources: dict[str, Source]) -> Source:
    if name in sources:
        return sources[name]
    if not sources:
        raise WrongUsage("set POSTROOM_STRIPE_WEBHOOK_SECRET, or write [webhooks.NAME] into postroom.toml")
    raise WrongUsage(f"there is no source {name!r}; sources: {', '.join(sources)}")


def _field(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise WrongUsage(f"a header is written 'NAME: VALUE', not {text[:40]!r}")
    return name.strip(), value.strip()


def _read(name: str, bytes_max: int) -> bytes:
    if name == "-":
        data = sys.stdin.buffer.read(bytes_max + 1)
    else:
        try:
            with Path(name).open("rb") as file:
                data = file.read(bytes_max + 1)
        except OSError as error:
            raise WrongUsage(f"--body {name}: {error.strerror}") from None
    if len(data) > bytes_max:
        raise PostroomError(f"the body is larger than {bytes_max:,} bytes: the source refuses it")
    return data


def _seconds(text: str) -> float:
    if _NUMBER.fullmatch(text):
        return float(text)
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError):
        raise WrongUsage("--at is a time in ISO 8601, or seconds since 1970") from None
