"""``agents quarantine|release|quarantined`` and ``top``: agents that break their limits, and what is used now."""

# ruff: noqa: D417 - cyclopts reads the docstrings; the options that many commands share are described in ``options``

from typing import Annotated

from cyclopts import App, Parameter

from perdure.cli.options import DATA, Data, Json
from perdure.cli.output import Out

agents = App(name="agents", help="Hold the runs of agents.", version_flags=())
Name = Annotated[str, Parameter(name="NAME")]


@agents.command
def quarantine(
    name: Name,
    /,
    *,
    reason: str = "",
    seconds: float | None = None,
    data: Data = DATA,
    json: Json = False,
) -> None:
    """Hold the runs of an agent that do not execute yet, until it is released.

    Args:
        name: The agent.
        reason: Why; it is in the record.
        seconds: For how long (default: until it is released).
    """
    from perdure.cli import quarantining

    quarantining.quarantine(data, Out(json), name, reason=reason, seconds=seconds)


@agents.command
def release(name: Name, /, *, reason: str = "", data: Data = DATA, json: Json = False) -> None:
    """End the quarantine of an agent; what was held goes on.

    Args:
        name: The agent.
        reason: Why; it is in the record.
    """
    from perdure.cli import quarantining

    quarantining.release(data, Out(json), name, reason=reason)


@agents.command
def quarantined(*, data: Data = DATA, json: Json = False) -> None:
    """List the agents whose runs are held, and why."""
    from perdure.cli import quarantining

    quarantining.quarantined(data, Out(json))


def top(*, once: bool = False, data: Data = DATA, json: Json = False) -> None:
    """Live processor time, memory and states of runs, hosted programs and sandboxes.

    Args:
        once: Print it once and end.
    """
    from perdure.cli import topping

    topping.top(data, Out(json), once=once)
