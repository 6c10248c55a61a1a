"""OpenTelemetry: what was asked for arrives, what was not costs nothing."""

from __future__ import annotations

import gzip
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

from postroom import Room
from postroom.errors import PermanentFailure
from postroom.row_ids import new_row_id
from postroom.telemetry import wanted
from postroom.telemetry.signals import Telemetry, trace_id_of
from postroom.testing import signed
from tests.alerts.conftest import open_mailbox
from tests.http.conftest import serving, settings_of
from tests.journey.programs import Programs

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRET = "whsec_telemetry"


@dataclass
class Heard:
    """What a process's telemetry said, kept in memory."""

    spans: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    metrics: InMemoryMetricReader = field(default_factory=InMemoryMetricReader)

    def telemetry(self) -> Telemetry:
        """For Room.telemetry."""
        return Telemetry([SimpleSpanProcessor(self.spans)], [self.metrics])

    def named(self, name: str) -> list[ReadableSpan]:
        """The spans of this name, oldest first."""
        return [span for span in self.spans.get_finished_spans() if span.name == name]

    def counts(self, name: str) -> dict[tuple[object, ...], float]:
        """An instrument's values, by those of its attributes."""
        data = self.metrics.get_metrics_data()
        assert data is not None
        found = [
            point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]
        return {tuple((point.attributes or {}).values()): _value(point) for point in found}


def _value(point: Any) -> float:
    return float(point.count if hasattr(point, "count") else point.value)


def facts(span: ReadableSpan) -> dict[str, Any]:
    """A span's attributes."""
    return dict(span.attributes or {})


async def test_an_attempt_is_a_span_that_links_to_who_queued_the_mail(
    database_url: str, tmp_path: Path
) -> None:
    """By metadata.traceparent; a retry is a span of its own with the same link; no address is told."""
    heard = Heard()
    async with Room(**settings_of(database_url, tmp_path)) as room:
        room.telemetry = heard.telemetry()
        queued = await room.send(
            to="ada@example.com",
            subject="Hi",
            html="<p>Hi</p>",
            email_type="welcome",
            metadata={"traceparent": TRACEPARENT},
        )
        await room.send(to="bob@example.com", subject="Hi", html="<p>Hi</p>")
        await room.email_engine().run_pass()
    first, second = sorted(heard.named("send email"), key=lambda span: not span.links)
    (link,) = first.links
    assert f"{link.context.trace_id:032x}-{link.context.span_id:016x}" == TRACEPARENT[3:-3]
    assert facts(first) == {
        "messaging.system": "postroom",
        "messaging.operation.type": "process",
        "messaging.destination.name": "email",
        "messaging.message.id": str(queued),
        "postroom.email_type": "welcome",
        "postroom.outcome": "done",
        "postroom.transport": room.settings.transport_urls[0],
    }
    assert first.status.is_ok
    assert not second.links
    assert first.parent is None
    assert "example.com" not in str([facts(span) for span in (first, second)])
    assert heard.counts("postroom.attempts") == {("email", "welcome", "done"): 1, ("email", "", "done"): 1}
    assert heard.counts("postroom.attempt.duration") == {("email", "welcome"): 1, ("email", ""): 1}


async def test_attempts_by_smtp_are_spans_too(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Many on one connection: each has its own span and link, and leaves no context behind."""
    heard = Heard()
    with open_mailbox() as mailbox:
        url = f"smtp://127.0.0.1:{mailbox.port}?starttls=never"
        async with Room(**settings_of(database_url, tmp_path, transport=url)) as room:
            room.telemetry = heard.telemetry()
            mail = {"subject": "Hi", "html": "<p>Hi</p>", "metadata": {"traceparent": TRACEPARENT}}
            await room.send_many([{"to": f"a{number}@example.com", **mail} for number in range(8)])
            assert (await room.email_engine().run_pass()).done == 8
    spans = heard.named("send email")
    assert len({span.context.span_id for span in spans}) == 8
    assert all(len(span.links) == 1 for span in spans)
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


async def refuses(_: object) -> str:
    """What a server says, with an address in it."""
    raise PermanentFailure("ada@example.com is unknown", code=550)


async def test_an_attempt_that_fails_says_how(database_url: str, tmp_path: Path) -> None:
    """Its verdict; what waits for a limit has not begun, and is no span."""
    heard = Heard()
    async with Room(**settings_of(database_url, tmp_path)) as room, serving(room) as served:
        room.telemetry = heard.telemetry()
        await served.set("email.limit.global", "1/1h")
        for _ in range(2):
            await room.send(to="ada@example.com", subject="Hi", html="<p>Hi</p>")
        served.recorder.behave = refuses
        await room.email_engine().run_pass()
        (span,) = heard.named("send email")
        assert facts(span)["postroom.outcome"] == "permanent"
        assert (span.status.is_ok, span.status.description) == (False, "permanent")


async def test_an_event_is_followed_from_the_door_to_its_handler(database_url: str, tmp_path: Path) -> None:
    """Its intake's trace id is its row's id, and the attempt links to it."""
    heard = Heard()
    settings = settings_of(database_url, tmp_path, stripe_webhook_secret=SECRET)
    async with Room(**settings) as room:
        room.telemetry = heard.telemetry()

        @room.on("stripe")
        async def note(event: Any, db: Any) -> None:
            from opentelemetry import trace

            assert trace.get_current_span().get_span_context().is_valid

        async with serving(room) as served:
            request = signed("stripe", {"id": "evt_1", "type": "charge.failed"}, SECRET)
            for _ in range(2):
                answer = await served.client.post(
                    "/webhooks/stripe", content=request.body, headers=dict(request.headers)
                )
                assert answer.status_code == 200
            await served.client.post("/webhooks/stripe", content=b"{}")
            await served.client.post("/webhooks/strangers-own-name", content=b"{}")
            await room.prepare_handlers()
            assert (await room.webhook_engine().run_pass()).done == 1
            row: UUID = await room.database.fetchval("SELECT id FROM webhook_retry_queue")
    first, again, refused = heard.named("webhook stripe")
    assert first.context.trace_id == trace_id_of(row)
    assert facts(first)["messaging.message.id"] == str(row)
    assert facts(first)["postroom.event_type"] == "charge.failed"
    assert (facts(first)["postroom.duplicate"], facts(again)["postroom.duplicate"]) == (False, True)
    assert again.context.trace_id != trace_id_of(row)
    assert (facts(refused)["http.response.status_code"], refused.status.is_ok) == (400, False)
    assert len(heard.named("webhook unknown")) == 1
    (handled,) = heard.named("handle webhook")
    assert handled.links[0].context.trace_id == first.context.trace_id
    assert handled.links[0].context.span_id == first.context.span_id
    assert heard.counts("postroom.webhook.intake") == {
        ("stripe", 200): 2,
        ("stripe", 400): 1,
        ("unknown", 404): 1,
    }


async def test_an_intake_goes_on_with_the_trace_that_the_request_came_with(
    database_url: str, tmp_path: Path
) -> None:
    """And the attempt links into it."""
    heard = Heard()
    settings = settings_of(database_url, tmp_path, stripe_webhook_secret=SECRET)
    async with Room(**settings) as room:
        room.telemetry = heard.telemetry()
        async with serving(room) as served:
            request = signed("stripe", {"id": "evt_1", "type": "charge.failed"}, SECRET)
            headers = {**dict(request.headers), "traceparent": TRACEPARENT}
            await served.client.post("/webhooks/stripe", content=request.body, headers=headers)
            await room.prepare_handlers()
            await room.webhook_engine().run_pass()
    (intake,) = heard.named("webhook stripe")
    (handled,) = heard.named("handle webhook")
    assert f"{intake.context.trace_id:032x}" == TRACEPARENT[3:35]
    assert f"{handled.links[0].context.trace_id:032x}" == TRACEPARENT[3:35]


@dataclass
class Receiver:
    """An OTLP receiver over HTTP."""

    url: str
    traces: list[ExportTraceServiceRequest] = field(default_factory=list)
    metrics: list[ExportMetricsServiceRequest] = field(default_factory=list)

    def take(self, path: str, body: bytes) -> None:
        """One request."""
        if path == "/v1/traces":
            self.traces.append(ExportTraceServiceRequest.FromString(body))
        else:
            assert path == "/v1/metrics"
            self.metrics.append(ExportMetricsServiceRequest.FromString(body))


@contextmanager
def open_receiver() -> Iterator[Receiver]:
    """On a free port."""
    receiver = Receiver("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            receiver.take(self.path, body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_worker_sends_what_it_did_by_otlp(database_url: str, tmp_path: Path) -> None:
    """A process of its own, to a receiver on loopback; what is left is sent before it ends."""
    with open_receiver() as receiver:
        programs = Programs(
            tmp_path,
            {
                "POSTROOM_DATABASE_URL": database_url,
                "POSTROOM_FROM": "shop@example.com",
                "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
                "OTEL_SERVICE_NAME": "post-of-the-shop",
            },
        )
        programs.run("send", "--to", "ada@example.com", "--subject", "Hi", "--html", "<p>Hi</p>")
        drained = programs.run("worker", "--drain", "--queues", "email")
        assert drained.returncode == 0, drained.stderr
    spans = [
        (resource.resource, span)
        for request in receiver.traces
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    ((resource, span),) = spans
    assert span.name == "send email"
    assert {one.key: one.value.string_value for one in resource.attributes}[
        "service.name"
    ] == "post-of-the-shop"
    metrics = {
        metric.name
        for request in receiver.metrics
        for resource_metrics in request.resource_metrics
        for scope_metrics in resource_metrics.scope_metrics
        for metric in scope_metrics.metrics
    }
    assert {"postroom.attempts", "postroom.attempt.duration"} <= metrics


async def test_what_nobody_asks_for_costs_nothing(database_url: str, tmp_path: Path) -> None:
    """The engine works on the queue itself, no middleware stands before the door, nothing is imported."""
    async with Room(**settings_of(database_url, tmp_path)) as room:
        assert room.email_engine().work is room.delivery
    code = (
        "import sys, postroom.cli.staying, postroom.http, postroom.telemetry as t; "
        "assert t.from_environment() is None; "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


@pytest.mark.parametrize(
    ("environ", "signals"),
    [
        ({}, set()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, {"traces", "metrics"}),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, {"traces"}),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_METRICS_EXPORTER": "none"}, {"traces"}),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, set()),
    ],
)
def test_opentelemetrys_own_variables_decide(environ: dict[str, str], signals: set[str]) -> None:
    """Both signals, one of them, or none."""
    assert wanted(environ) == signals


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75])
def test_a_sampler_takes_its_share_of_events(ratio: float) -> None:
    """OTEL_TRACES_SAMPLER=traceidratio: of events as of everything else."""
    sampler = TraceIdRatioBased(ratio)
    taken = [sampler.should_sample(None, trace_id_of(new_row_id()), "webhook").decision for _ in range(4000)]
    share = taken.count(Decision.RECORD_AND_SAMPLE) / len(taken)
    assert ratio - 0.05 < share < ratio + 0.05
