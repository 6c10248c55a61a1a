"""
The spans and instruments of one process.

An event's trace is told by its row: unless its request came with a traceparent, its trace id is made of the
row's id, and its span id is the last half of that. So an attempt, which may be made days later by another
process, links to the intake without a write for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from time import time_ns
from typing import Any
from uuid import UUID, uuid4

from opentelemetry import trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from postroom.version import VERSION

KINDS_MAX = 50
"""Of e-mail, as attributes of metrics; those that come later are `other`."""

_HALF = (1 << 64) - 1
_VARIANT_SHIFT = 62
_VARIANT = 0b11 << _VARIANT_SHIFT
_row: ContextVar[UUID | None] = ContextVar("row", default=None)
_propagator = TraceContextTextMapPropagator()


class Telemetry:
    """
    What a process says to OpenTelemetry.

    Args:
        processors: Of spans; empty: no traces.
        readers: Of metrics; empty: no metrics.
    """

    def __init__(self, processors: list[SpanProcessor], readers: list[MetricReader]) -> None:
        resource = Resource({"service.name": "postroom", "service.version": VERSION}).merge(
            # With OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, which win.
            OTELResourceDetector().detect()
        )
        resource = Resource({"service.instance.id": str(uuid4())}).merge(resource)
        self._tracers = TracerProvider(resource=resource, id_generator=_Ids(), shutdown_on_exit=False)
        for processor in processors:
            self._tracers.add_span_processor(processor)
        self._meters = SdkMeterProvider(readers, resource=resource, shutdown_on_exit=False)
        self._tracer = self._tracers.get_tracer("postroom", VERSION)
        self._has_traces = bool(processors)
        self.instruments = Instruments(self._meters)
        self._kinds: set[str] = set()

    @property
    def has_traces(self) -> bool:
        """Whether spans go anywhere."""
        return self._has_traces

    def begin_span(
        self, name: str, kind: SpanKind, attributes: Mapping[str, Any], links: list[Link], began_ns: int
    ) -> Span:
        """A span of its own trace, that began then."""
        return self._tracer.start_span(
            name,
            context=trace.set_span_in_context(trace.INVALID_SPAN),
            kind=kind,
            attributes=dict(attributes),
            links=links,
            start_time=began_ns,
        )

    def intake_span(
        self, name: str, attributes: Mapping[str, Any], row: UUID | None, parent: str | None, began_ns: int
    ) -> Span:
        """
        The span of a provider's request.

        Args:
            row: Of the event that it brought; None where nothing new was stored.
            parent: The request's traceparent.
        """
        context = None if parent is None else _propagator.extract({"traceparent": parent})
        with _named_by(row):
            return self._tracer.start_span(
                name, context=context, kind=SpanKind.SERVER, attributes=dict(attributes), start_time=began_ns
            )

    def kind_of(self, kind: str | None) -> str:
        """An email_type or a source, as an attribute whose values are bounded."""
        kind = kind or ""
        if kind in self._kinds:
            return kind
        if len(self._kinds) >= KINDS_MAX or "@" in kind:
            return "other"
        self._kinds.add(kind)
        return kind

    def close(self) -> None:
        """Send what is left, and end; it may block for some seconds."""
        self._tracers.shutdown()
        self._meters.shutdown()


class Instruments:
    """What is counted, of this process alone: add it up over processes."""

    def __init__(self, meters: MeterProvider) -> None:
        meter = meters.get_meter("postroom", VERSION)
        self.attempts = meter.create_counter(
            "postroom.attempts",
            unit="{attempt}",
            description="Attempts that ended, by queue, kind and outcome.",
        )
        self.attempt_duration = meter.create_histogram(
            "postroom.attempt.duration", unit="s", description="How long attempts took."
        )
        self.intake = meter.create_counter(
            "postroom.webhook.intake",
            unit="{request}",
            description="Requests of providers, by source and status.",
        )
        self.intake_duration = meter.create_histogram(
            "postroom.webhook.intake.duration",
            unit="s",
            description="How long providers waited for an answer.",
        )


class _Ids(RandomIdGenerator):
    """Random ids, but for the span of an event's intake: see above."""

    def generate_trace_id(self) -> int:
        """See OpenTelemetry."""
        row = _row.get()
        return super().generate_trace_id() if row is None else trace_id_of(row)

    def generate_span_id(self) -> int:
        """See OpenTelemetry."""
        row = _row.get()
        return super().generate_span_id() if row is None else _span_id(row)


def by_otlp(signals: frozenset[str]) -> Telemetry:
    """Telemetry that goes where OpenTelemetry's variables say."""
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return Telemetry(
        [BatchSpanProcessor(OTLPSpanExporter())] if "traces" in signals else [],
        [PeriodicExportingMetricReader(OTLPMetricExporter())] if "metrics" in signals else [],
    )


def link_to(traceparent: str) -> list[Link]:
    """A link to whoever has that traceparent; none where it is not one."""
    found = trace.get_current_span(_propagator.extract({"traceparent": traceparent})).get_span_context()
    return [Link(found)] if found.is_valid else []


def link_to_intake(row: UUID) -> list[Link]:
    """A link to the request that brought an event."""
    return [Link(SpanContext(trace_id_of(row), _span_id(row), is_remote=True, trace_flags=TraceFlags(1)))]


def trace_id_of(row: UUID) -> int:
    """
    The row's id, with its last two bits also in the place of its variant's.

    OpenTelemetry's sampler by ratio (TraceIdRatioBased) goes by the low 64 bits, and those of every UUID
    begin with 10 (RFC 9562, 4.1): a ratio of a half would take none of them, and one of three quarters all.
    """
    return row.int & ~_VARIANT | (row.int & 0b11) << _VARIANT_SHIFT


def fail(span: Span, why: str) -> None:
    """Say that what a span tells of went wrong."""
    span.set_status(Status(StatusCode.ERROR, why))


def now_ns() -> int:
    """This machine's clock, as OpenTelemetry wants it."""
    return time_ns()


def _span_id(row: UUID) -> int:
    return trace_id_of(row) & _HALF or 1


@contextmanager
def _named_by(row: UUID | None) -> Iterator[None]:
    token = _row.set(row)
    try:
        yield
    finally:
        _row.reset(token)
