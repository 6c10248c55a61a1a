"""OpenTelemetry: traces and metrics of this process, where they are asked for; else nothing is imported."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from postroom.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from postroom.telemetry.signals import Telemetry

ENDPOINTS = {
    "traces": ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    "metrics": ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
}
"""OpenTelemetry's own variables: where one is set, the signal goes there."""


def wanted(environ: Mapping[str, str] = os.environ) -> frozenset[str]:
    """Which signals OpenTelemetry's variables ask for: `traces`, `metrics`."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return frozenset()
    return frozenset(
        signal
        for signal, names in ENDPOINTS.items()
        if any(environ.get(name) for name in names)
        and environ.get(f"OTEL_{signal.upper()}_EXPORTER", "otlp") == "otlp"
    )


def from_environment() -> Telemetry | None:
    """
    What sends this process's signals by OTLP over HTTP; None where nobody has asked for any.

    Raises:
        ConfigError: It is asked for, and not installed.
    """
    signals = wanted()
    if not signals:
        return None
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.exporter.otlp.proto.http") is None:
        raise ConfigError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, which needs OpenTelemetry: pip install 'postroom[otel]'"
        )
    from postroom.telemetry.signals import by_otlp

    return by_otlp(signals)
