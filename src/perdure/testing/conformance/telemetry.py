"""What every ``Telemetry`` must do. Cases take the listener."""

from __future__ import annotations

from perdure.ports import Telemetry
from perdure.testing.conformance.checks import check, refused

ATTRIBUTES: dict[str, str | int | float | bool] = {"text": "a", "number": 1, "share": 0.5, "flag": True}


def says_whether_it_listens(telemetry: Telemetry) -> None:
    """``is_on`` is a plain bool, cheap to ask."""
    check(isinstance(telemetry.is_on, bool), "`is_on` is a bool")


def spans_nest(telemetry: Telemetry) -> None:
    """Spans may be in each other, with every type of attribute."""
    with telemetry.span("perdure.outer", ATTRIBUTES), telemetry.span("perdure.inner", {}):
        telemetry.count("perdure.things", 1, ATTRIBUTES)


def spans_let_errors_pass(telemetry: Telemetry) -> None:
    """An exception leaves a span as it came, also control flow."""
    with refused(ValueError, "an error passes through a span"), telemetry.span("perdure.failing", {}):
        raise ValueError("expected")
    try:
        with telemetry.span("perdure.stopping", {}):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        return
    check(False, "control flow passes through a span")


def counts_anything(telemetry: Telemetry) -> None:
    """Counters take zero and large numbers; nothing is raised."""
    for value in (0, 1, 1 << 40):
        telemetry.count("perdure.things", value, ATTRIBUTES)


CASES = (says_whether_it_listens, spans_nest, spans_let_errors_pass, counts_anything)
