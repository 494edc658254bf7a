"""OpenTelemetry: steps as spans, ended runs as counts; what exports them is the app's choice."""

from __future__ import annotations

from contextlib import AbstractContextManager

from opentelemetry import metrics, trace

from perdure.ports.telemetry import Attributes

SCOPE = "perdure"


class OtelTelemetry:
    """The ``Telemetry`` port on OpenTelemetry's API; without a configured SDK it does nothing.

    Args:
        tracers: where spans go; the global provider by default.
        meters: where counts go; the global provider by default.
    """

    is_on = True

    def __init__(
        self, tracers: trace.TracerProvider | None = None, meters: metrics.MeterProvider | None = None
    ) -> None:
        self._tracer = (tracers or trace.get_tracer_provider()).get_tracer(SCOPE)
        self._meter = (meters or metrics.get_meter_provider()).get_meter(SCOPE)
        self._counters: dict[str, metrics.Counter] = {}

    def span(self, name: str, attributes: Attributes) -> AbstractContextManager[object]:
        """A span that is current inside; an exception that passes is recorded on it."""
        return self._tracer.start_as_current_span(name, attributes=dict(attributes))

    def count(self, name: str, value: int, attributes: Attributes) -> None:
        """Add to the counter ``name``."""
        counter = self._counters.get(name)
        if counter is None:
            counter = self._counters[name] = self._meter.create_counter(name)
        counter.add(value, attributes=dict(attributes))
