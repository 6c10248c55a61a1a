"""
A queue whose attempts are spans: it stands between the engine and the queue, and only where somebody asks.

A span begins with the attempt, after its start mark, and is the current one meanwhile: what a handler does is
below it. It links to whoever queued the row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast
from uuid import UUID

from opentelemetry import context as current
from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanKind

from postroom import log
from postroom.errors import NotStarted
from postroom.queue.claim import Claim, Held, Start, Work
from postroom.queue.outcome import Outcome, Verdict, outcome_of
from postroom.telemetry.signals import Telemetry, fail, link_to, link_to_intake, now_ns

if TYPE_CHECKING:
    from postroom.database.connect import Database
    from postroom.email.message import OutgoingEmail
    from postroom.webhooks.store import ClaimedEvent

T = TypeVar("T")
Table = Literal["public.email_queue", "public.webhook_retry_queue"]

LINKS_MAX = 10_000

_log = log.get_logger()


class TracedWork(Generic[T]):
    """
    A queue as the engine sees it, whose attempts are told to OpenTelemetry.

    Args:
        kind: An item's email_type or source.
        facts: Attributes of its span.
    """

    def __init__(
        self,
        work: Work[T],
        telemetry: Telemetry,
        database: Database,
        table: Table,
        kind: Callable[[T], str | None],
        facts: Callable[[T], Mapping[str, str]],
    ) -> None:
        self._work = work
        self._telemetry = telemetry
        self._database = database
        self._table = table
        self._kind = kind
        self._facts = facts
        self._links: dict[UUID, list[Link]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)

    async def claim(self, worker: UUID, limit: int, before: datetime | None, held: int) -> list[Claim[T]]:
        """As the queue does it; then who queued these rows is looked up."""
        claims = await self._work.claim(worker, limit, before, held)
        if claims and self._telemetry.has_traces:
            if len(self._links) > LINKS_MAX:  # of rows that were given back
                self._links.clear()
            await self._look_up([claim.id for claim in claims])
        return claims

    async def attempt(self, claim: Claim[T], start: Start) -> str | Outcome:
        """As the queue does it, in a span."""
        began_ns, began = now_ns(), monotonic()
        begun: list[tuple[Span, Any]] = []

        async def begin() -> Held:
            held = await start()
            if not begun:
                span = self._begin(claim, now_ns())
                begun.append((span, current.attach(trace.set_span_in_context(span))))
            return held

        outcome = Outcome(Verdict.UNCERTAIN, "it was given up")
        try:
            answer = await self._work.attempt(claim, begin)
            outcome = answer if isinstance(answer, Outcome) else Outcome(Verdict.DONE, answer)
            return answer
        except NotStarted:
            self._links.pop(claim.id, None)
            raise
        except Exception as error:
            outcome = outcome_of(error, started=claim.started)
            raise
        finally:
            if not begun and outcome.verdict != Verdict.UNCERTAIN:
                # Nothing was to be begun: a transport that is down, an event that nobody wants.
                begun.append((self._begin(claim, began_ns), None))
            for span, token in begun:
                self._end(claim, span, outcome, monotonic() - began)
                if token is not None:
                    current.detach(token)

    def _begin(self, claim: Claim[T], at_ns: int) -> Span:
        verb = "send" if self._work.queue == "email" else "handle"
        return self._telemetry.begin_span(
            f"{verb} {self._work.queue}",
            SpanKind.CONSUMER,
            {
                "messaging.system": "postroom",
                "messaging.operation.type": "process",
                "messaging.destination.name": self._work.queue,
                "messaging.message.id": str(claim.id),
                **self._facts(claim.item),
            },
            self._links.pop(claim.id, []),
            at_ns,
        )

    def _end(self, claim: Claim[T], span: Span, outcome: Outcome, took_s: float) -> None:
        verdict = str(outcome.verdict)
        span.set_attribute("postroom.outcome", verdict)
        if claim.route:
            span.set_attribute("postroom.transport", claim.route)
        if outcome.verdict not in (Verdict.DONE, Verdict.UNHANDLED):
            # Not the other side's words: they hold people's addresses, and go to a third party here.
            fail(span, verdict)
        span.end()
        about = {"queue": self._work.queue, "kind": self._telemetry.kind_of(self._kind(claim.item))}
        self._telemetry.instruments.attempts.add(1, {**about, "outcome": verdict})
        self._telemetry.instruments.attempt_duration.record(took_s, about)

    async def _look_up(self, ids: list[UUID]) -> None:
        """Who queued these rows: by metadata.traceparent, an event's own request else."""
        from_headers = "NULL" if self._table == "public.email_queue" else "item.headers ->> 'traceparent'"
        try:
            rows = await self._database.fetch(
                f"""
                SELECT
                    item.id,
                    left(COALESCE(item.metadata ->> 'traceparent', {from_headers}), 100) AS traceparent
                FROM {self._table} AS item
                WHERE item.id = ANY ($1)
                """,  # noqa: S608 - names of ours
                ids,
            )
        except Exception as error:
            # The rows are leased: an attempt without a link is better than none.
            _log.warning(
                "telemetry.no_links", queue=self._work.queue, error=f"{type(error).__name__}: {error}"
            )
            return
        for row in rows:
            if row["traceparent"] is not None:
                self._links[row["id"]] = link_to(row["traceparent"])
            elif self._table == "public.webhook_retry_queue":
                self._links[row["id"]] = link_to_intake(row["id"])


def traced_emails(work: Work[OutgoingEmail], telemetry: Telemetry, database: Database) -> Work[OutgoingEmail]:
    """The e-mail queue, traced."""
    traced = TracedWork(
        work,
        telemetry,
        database,
        "public.email_queue",
        lambda email: email.email_type,
        lambda email: {"postroom.email_type": email.email_type} if email.email_type else {},
    )
    return cast("Work[OutgoingEmail]", traced)


def traced_events(work: Work[ClaimedEvent], telemetry: Telemetry, database: Database) -> Work[ClaimedEvent]:
    """The webhook queue, traced."""
    traced = TracedWork(
        work,
        telemetry,
        database,
        "public.webhook_retry_queue",
        lambda claimed: claimed.event.source,
        lambda claimed: {
            "postroom.source": claimed.event.source,
            **({"postroom.event_type": claimed.event.type} if claimed.event.type else {}),
        },
    )
    return cast("Work[ClaimedEvent]", traced)
