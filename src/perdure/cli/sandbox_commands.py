"""``sandbox ...`` and ``workspace ...``: which walls there are, code behind one, and the files of runs."""

# ruff: noqa: D417 - cyclopts reads the docstrings; the options that many commands share are described in ``options``

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from perdure.cli.options import DATA, Data, Json
from perdure.cli.output import Out

sandbox = App(name="sandbox", help="Where code is executed.", version_flags=())
workspace = App(name="workspace", help="The files of runs.", version_flags=())
RunId = Annotated[str, Parameter(name="RUN")]
ConfigFile = Annotated[Path | None, Parameter(name="--config")]


@sandbox.command
def doctor(*, config: ConfigFile = None, json: Json = False) -> int:
    """Which walls can be had on this machine, tried with a real job each; why not, and how to get them.

    Args:
        config: The configuration file (default: perdure.toml, if it is there).
    """
    from perdure.cli import sandboxing

    return sandboxing.doctor(Out(json), config)


@sandbox.command
def run(
    file: Annotated[str, Parameter(name="FILE")] = "",
    /,
    *,
    tier: str = "",
    config: ConfigFile = None,
    json: Json = False,
) -> int:
    """Execute a Python file, or what comes on standard input, in a fresh sandbox.

    Args:
        file: The file (default: standard input).
        tier: The weakest wall allowed (default: the usual one).
        config: The configuration file (default: perdure.toml, if it is there).
    """
    from perdure.cli import sandboxing

    return sandboxing.run(Out(json), file, tier, config)


@workspace.command(name="list")
def list_files(run: RunId, /, *, at: str = "", data: Data = DATA, json: Json = False) -> None:
    """The files of a run.

    Args:
        run: The run.
        at: As the action with this key (RUN/CALL) has left them (default: as they are now).
    """
    from perdure.cli import sandboxing

    sandboxing.list_files(data, Out(json), run, at)


@workspace.command
def get(
    run: RunId,
    name: Annotated[str, Parameter(name="NAME")],
    /,
    *,
    to: Path | None = None,
    at: str = "",
    data: Data = DATA,
) -> None:
    """Write a file of a run to standard output, or to a file.

    Args:
        run: The run.
        name: The file's name in the workspace.
        to: Where to write it; an existing file is not overwritten.
        at: As the action with this key (RUN/CALL) has left it (default: as it is now).
    """
    from perdure.cli import sandboxing

    sandboxing.get(data, run, name, to, at)


@workspace.command
def history(run: RunId, /, *, data: Data = DATA, json: Json = False) -> None:
    """What actions have done to the files of a run.

    Args:
        run: The run.
    """
    from perdure.cli import sandboxing

    sandboxing.history(data, Out(json), run)
