"""``conduct ...``: how much agents could do on their own, and whether they act as they did."""

# ruff: noqa: D417 - cyclopts reads the docstrings; the options that many commands share are described in ``options``

from typing import Annotated

from cyclopts import App, Parameter

from perdure.cli.options import DATA, Data, Json
from perdure.cli.output import Out

conduct = App(name="conduct", help="How agents behave: their risk and their drift.", version_flags=())
drift = App(name="drift", help="Whether agents still act as they did.", version_flags=())
conduct.command(drift)
AgentName = Annotated[str, Parameter(name="AGENT")]


@conduct.command
def risk(app: Annotated[str, Parameter(name="APP")], /, *, json: Json = False) -> None:
    """The agency-risk index of each agent, its tier, and why.

    Args:
        app: The module or file with the agents; with `APP:AGENT`, every criterion of one.
    """
    from perdure.cli import conducting

    conducting.risk(app, Out(json))


@drift.command
def freeze(
    agent: AgentName,
    /,
    *,
    goal: str | None = None,
    runs: int = 1_000,
    data: Data = DATA,
    json: Json = False,
) -> None:
    """Keep how an agent acts now as its baseline, from its newest ended runs (at least 50).

    Args:
        agent: The agent's name.
        goal: What the runs were started for (default: the agent's name).
        runs: How many at most.
    """
    from perdure.cli import conducting

    conducting.freeze(data, Out(json), agent, goal, runs=runs)


@drift.command(name="check")
def check_drift(
    agent: AgentName,
    /,
    *,
    goal: str | None = None,
    window: int = 20,
    data: Data = DATA,
    json: Json = False,
) -> int:
    """Hold what an agent did since then against its baseline; exit code 1 unless it acts as before.

    Args:
        agent: The agent's name.
        goal: What the runs were started for (default: the agent's name).
        window: How many of the newest ended runs (10 to 200).
    """
    from perdure.cli import conducting

    return conducting.check(data, Out(json), agent, goal, window=window)


@drift.command(name="list")
def list_baselines(*, data: Data = DATA, json: Json = False) -> None:
    """List the baselines."""
    from perdure.cli import conducting

    conducting.baselines(data, Out(json))
