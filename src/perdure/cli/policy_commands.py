"""``policy ...``: check, test, explain and try policies."""

# ruff: noqa: D417 - cyclopts reads the docstrings; the options that many commands share are described in ``options``

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from perdure.cli.options import DATA, Config, Data, Json
from perdure.cli.output import Out

policy = App(name="policy", help="Check, test, explain and try policies.", version_flags=())
AppName = Annotated[str, Parameter(name="APP")]
Folder = Annotated[Path, Parameter(name="FOLDER")]


@policy.command
def check(
    folder: Folder, app: AppName, /, *, config: Config = None, data: Data = DATA, json: Json = False
) -> int:
    """Parse policies, hold them against the tools of an app, and look for what is probably not meant.

    Args:
        folder: The folder with the `.cedar` files.
        app: The module or file with the agents.
    """
    from perdure.cli import policies

    return policies.check(folder, app, config, data, Out(json))


@policy.command(name="test")
def run_table(
    folder: Folder,
    app: AppName,
    /,
    *,
    cases: Path | None = None,
    config: Config = None,
    data: Data = DATA,
    json: Json = False,
) -> int:
    """Run the table tests of a folder of policies.

    Args:
        folder: The folder with the `.cedar` files.
        app: The module or file with the agents.
        cases: The table (default: `tests.yaml` in the folder).
    """
    from perdure.cli import policies

    return policies.test(folder, app, cases or folder / "tests.yaml", config, data, Out(json))


@policy.command
def explain(
    folder: Folder,
    app: AppName,
    action: Annotated[str, Parameter(name="RUN/CALL")],
    /,
    *,
    config: Config = None,
    data: Data = DATA,
    json: Json = False,
) -> None:
    """Say for each link of an action's chain what the policies say, and which.

    Args:
        folder: The folder with the `.cedar` files.
        app: The module or file with the agents.
        action: The action's id.
    """
    from perdure.cli import policies

    policies.explain(folder, app, action, config, data, Out(json))


@policy.command
def backtest(
    folder: Folder,
    app: AppName,
    /,
    *,
    since: str = "30d",
    config: Config = None,
    data: Data = DATA,
    json: Json = False,
) -> None:
    """Judge what was done before by other policies, and show every verdict that would change.

    Args:
        folder: The folder with the candidate's `.cedar` files.
        app: The module or file with the agents.
        since: How far back, such as `12h` or `30d`.
    """
    from perdure.cli import policies

    policies.backtest(folder, app, since, config, data, Out(json))
