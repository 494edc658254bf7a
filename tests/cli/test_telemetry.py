"""The OpenTelemetry adapter, with the SDK's exporters in memory."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from perdure import Run, Runtime, agent, step
from perdure.core.errors import StepFailedError
from perdure.telemetry import OtelTelemetry


@step
async def good(number: int) -> int:
    """Returns."""
    return number + 1


@step(retries=1, backoff=0.0)
async def bad() -> None:
    """Raises."""
    raise ValueError("no")


@agent("observed")
async def observed(run: Run, number: int) -> int:
    """One step that returns, one that fails."""
    found = await run.step(good, number)
    try:
        await run.step(bad)
    except StepFailedError:
        found += 1
    return found


def test_steps_are_spans_and_ends_are_counted(tmp_path: Path) -> None:
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(), MeterProvider([reader])
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    telemetry = OtelTelemetry(tracers, meters)
    assert telemetry.is_on

    async def main() -> tuple[str, int]:
        async with Runtime.open(tmp_path, agents=[observed], telemetry=telemetry) as runtime:
            handle = await runtime.start("observed", 1)
            return handle.id, await handle.result(10)

    run, result = asyncio.run(main())
    assert result == 3
    found = spans.get_finished_spans()
    assert [span.name for span in found] == ["perdure.step"] * 3
    assert [dict(span.attributes or {}) for span in found] == [
        {"perdure.run": run, "perdure.step": "good", "perdure.attempt": 1},
        {"perdure.run": run, "perdure.step": "bad", "perdure.attempt": 1},
        {"perdure.run": run, "perdure.step": "bad", "perdure.attempt": 2},
    ]
    assert [span.events[0].name for span in found[1:]] == ["exception", "exception"]
    data = reader.get_metrics_data()
    assert data is not None
    metric = data.resource_metrics[0].scope_metrics[0].metrics[0]
    assert metric.name == "perdure.runs.ended"
    point = metric.data.data_points[0]
    assert (point.value, dict(point.attributes)) == (1, {"agent": "observed", "status": "completed"})


def test_without_an_sdk_it_does_nothing() -> None:
    telemetry = OtelTelemetry()
    with telemetry.span("perdure.step", {"perdure.step": "x"}):
        telemetry.count("perdure.runs.ended", 1, {})
