"""``conduct ...``: how much agents could do on their own, and whether they act as they did."""

# ruff: noqa: D417 - cyclopts reads the docstrings; the options that many commands share are described in ``options``

from typing import Annotated

from cyclopts import App, Parameter

from perdure.cli.options import DATA, Data, Json
from perdure.cli.output import Out

conduct = App(name="conduct", help="How agents behave: their risk and their drift.", version_flags=())


@conduct.command
def risk(app: Annotated[str, Parameter(name="APP")], /, *, data: Data = DATA, json: Json = False) -> None:
    """The agency-risk index of each agent, its tier, and why.

    Args:
        app: The module or file with the agents; with `APP:AGENT`, every criterion of one.
    """
    del data  # nothing that ran matters
    from perdure.cli import conducting

    conducting.risk(app, Out(json))
