"""Adapters of the port ``Telemetry``; what they need is imported when they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perdure.telemetry.otel import OtelTelemetry

__all__ = ["OtelTelemetry"]


def __getattr__(name: str) -> Any:
    """The adapter, imported now."""
    if name == "OtelTelemetry":
        from perdure.telemetry.otel import OtelTelemetry

        return OtelTelemetry
    raise AttributeError(f"module `perdure.telemetry` has no attribute `{name}`")
