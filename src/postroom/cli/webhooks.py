"""`postroom webhooks`: why a signature does not hold; events again, or those that never came."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Annotated

import typer

from postroom.cli.errors import WrongUsage
from postroom.cli.house import actor, opened_room, run
from postroom.cli.moments import moment_of
from postroom.cli.screen import print_facts, print_json, print_line, print_table, progress
from postroom.errors import ConfigError, PostroomError
from postroom.wording import count_of

if TYPE_CHECKING:
    from postroom.webhooks.doctor import Diagnosis
    from postroom.webhooks.replay import Chosen
    from postroom.webhooks.request import WebhookRequest
    from postroom.webhooks.schemes import Verified
    from postroom.webhooks.source import Source

PREVIEW_ROWS = 10

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


@app.command("replay")
def replay(
    source: Annotated[str, typer.Option("--source", metavar="NAME", help="Such as stripe.")],
    since: Annotated[
        str, typer.Option("--since", metavar="T", help="Events that came since: ISO 8601, or 2h, 3d ago.")
    ],
    until: Annotated[
        str | None, typer.Option("--until", metavar="T", help="Events that came before it; now.")
    ] = None,
    handler: Annotated[
        str | None, typer.Option("--handler", metavar="NAME", help="This one runs again where it is done.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would run.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run the handlers that events have missed, or one of them again."""
    now = datetime.now(UTC)
    first = moment_of("--since", since, now)
    end = None if until is None else moment_of("--until", until, now, ends=True)
    if first >= (end or now):
        raise WrongUsage(f"no time lies between --since {since} and {f'--until {until}' if until else 'now'}")
    run(_replay(source, first, end, handler, dry_run=dry_run, json=json))


async def _replay(
    name: str, since: datetime, until: datetime | None, handler: str | None, *, dry_run: bool, json: bool
) -> None:
    from postroom.webhooks.replay import UnknownHandler, UnknownSource, preview, replay, select_events
    from postroom.webhooks.source_settings import read_sources

    async with opened_room() as room:
        try:
            selection = await select_events(
                room.database, read_sources(room.settings), name, since, until, handler
            )
        except (UnknownSource, UnknownHandler) as error:
            raise WrongUsage(str(error)) from None
        if dry_run:
            with progress("looking for events"):
                chosen, total = await preview(room.database, selection, PREVIEW_ROWS)
            _print_preview(chosen, total, json=json)
            return
        with progress("replayed 0") as tell:
            done = await replay(room.database, selection, actor(), lambda count: tell(f"replayed {count:,}"))
    if json:
        print_json({"dry_run": False, "count": done.count, "refused": done.refused})
    else:
        print_line(f"{count_of(done.count, 'event')} replayed")
    if done.refused:
        raise PostroomError(f"{count_of(done.refused, 'row')} refused the update: {done.why}")


def _print_preview(chosen: list[Chosen], total: int, *, json: bool) -> None:
    if json:
        print_json({"dry_run": True, "count": total, "first": chosen})
        return
    first = f"; the first {len(chosen)}:" if total > len(chosen) else ""
    print_line(f"{count_of(total, 'event')} would be replayed{first}")
    if chosen:
        print_table(
            ["ID", "EVENT", "TYPE", "STATUS", "CAME", "HANDLERS"],
            [
                (one.id, one.event_id, one.type, one.status, one.created_at, ", ".join(one.handlers))
                for one in chosen
            ],
        )


@app.command("reconcile")
def reconcile(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="One whose scheme is stripe.")],
    since: Annotated[
        str,
        typer.Option("--since", metavar="T", help="Events made since: ISO 8601, or 2h, 3d ago; at most 29d."),
    ],
    events: Annotated[
        list[str] | None,
        typer.Option(
            "--events", metavar="TYPE", help="Only these types, such as 'checkout.*'; once for each."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Store the events of the provider's list that never arrived."""
    from postroom.webhooks.reconcile import SINCE_MAX

    now = datetime.now(UTC)
    first = moment_of("--since", since, now)
    if first < now - SINCE_MAX:
        raise WrongUsage(
            f"--since {since} is more than {SINCE_MAX.days} days ago: an event is known for 30 days"
        )
    if first >= now:
        raise WrongUsage(f"no time lies between --since {since} and now")
    run(_reconcile(source, first, tuple(events or ["*"]), json=json))


async def _reconcile(name: str, since: datetime, events: tuple[str, ...], *, json: bool) -> None:
    from postroom.database.audit import record_alone
    from postroom.settings import load_settings
    from postroom.webhooks.reconcile import reconcile_stripe
    from postroom.webhooks.source_settings import STRIPE, read_sources
    from postroom.webhooks.stripe_api import StripeApi

    settings = load_settings()
    source = _source(name, read_sources(settings))
    if source.scheme.name != STRIPE:
        raise WrongUsage(
            f"source {name} is of scheme {source.scheme.name}: only Stripe's events can be listed"
        )
    if settings.stripe_api_key is None:
        raise ConfigError("set STRIPE_API_KEY to a key that may read events: sk_… or rk_…")
    api = StripeApi(settings.stripe_api_url, settings.stripe_api_key.get_secret_value())
    with progress("listed 0 events") as tell:
        async with opened_room() as room, api:
            about = {"source": name, "since": since, "events": events}
            await record_alone(room.database, actor(), "webhook.reconcile", about)
            found = await reconcile_stripe(
                room.database,
                source,
                api,
                since,
                events=events,
                report=lambda so_far: tell(f"listed {so_far.listed:,} events, {so_far.missing:,} missing"),
            )
    if json:
        print_json(found)
    else:
        print_line(f"{found.missing:,} of {count_of(found.listed, 'event')} had not arrived: stored now")
    if found.refused:
        raise PostroomError(
            f"the database refused {count_of(found.refused, 'event')}: see its triggers and constraints"
        )


@app.command("forget")
def forget(
    program: Annotated[str, typer.Argument(metavar="MODULE:ROOM", help="As it was given to --app.")],
) -> None:
    """Forget the handlers of a program that is gone for good: its events are any worker's then."""
    run(_forget(program))


async def _forget(program: str) -> None:
    async with opened_room() as room:
        forgotten = await room.webhooks.forget_handlers(program, actor())
        if not forgotten:
            rows = await room.database.fetch("SELECT DISTINCT app FROM postroom.handlers ORDER BY app")
            known = ", ".join(row["app"] for row in rows) or "none"
            raise WrongUsage(f"no program {program!r} has registered handlers; known: {known}")
    for source, name in forgotten:
        print_line(f"forgotten: {name} of {source}")


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
