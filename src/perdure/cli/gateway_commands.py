"""The options of ``actions``, ``budgets``, ``tools`` and ``models``."""

# ruff: noqa: D417 - cyclopts reads the docstrings; the options that many commands share are described in ``options``

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from perdure.cli.options import DATA, Config, Data, Json
from perdure.cli.output import Out

STATES = Literal["held", "intended", "unknown", "succeeded", "failed", "lost", "refused"]

actions = App(
    name="actions", help="Look at what runs did, and decide what is doubtful or held.", version_flags=()
)
budgets = App(name="budgets", help="What runs may use, and have used.", version_flags=())
tools = App(name="tools", help="Look at tools, and try one.", version_flags=())
models = App(name="models", help="Look at upstreams, and try one.", version_flags=())


@actions.command(name="list")
def list_actions(
    *,
    run: str | None = None,
    state: STATES | None = None,
    name: str | None = None,
    limit: int = 50,
    data: Data = DATA,
    json: Json = False,
) -> None:
    """List actions, newest first.

    Args:
        run: Only those of this run.
        state: Only those in this state.
        name: Only those of this tool or model.
        limit: How many at most.
    """
    from perdure.cli import ledger

    ledger.actions(data, Out(json), run=run, state=state, name=name, limit=limit)


@actions.command
def show(
    action: Annotated[str, Parameter(name="RUN/CALL")],
    /,
    *,
    output: Path | None = None,
    data: Data = DATA,
    json: Json = False,
) -> None:
    """Everything about one action.

    Args:
        action: Its id.
        output: Write its whole output, as JSON, to this file.
    """
    from perdure.cli import ledger

    ledger.show(data, Out(json), action, output)


@actions.command
def doubtful(*, data: Data = DATA, json: Json = False) -> None:
    """The inbox: actions that only a decision can end, the oldest first."""
    from perdure.cli import ledger

    ledger.doubtful(data, Out(json))


@actions.command
def settle(
    action: Annotated[str, Parameter(name="RUN/CALL")],
    decision: Literal["happened", "did-not-happen", "retry", "live", "fail"],
    /,
    *,
    by: str | None = None,
    reason: str = "",
    result: str | None = None,
    data: Data = DATA,
    json: Json = False,
) -> None:
    """Decide about a doubtful action (happened, did-not-happen, retry) or a held one (live, fail).

    Args:
        action: Its id.
        decision: What is the case, or what to do.
        by: Who decides (default: the user's name).
        reason: Why; the agent is told.
        result: What the tool returned, as JSON, if it happened.
    """
    from perdure.cli import ledger

    ledger.settle(data, Out(json), action, decision, by=by, reason=reason, result=result)


@budgets.default
def list_budgets(
    run: Annotated[str | None, Parameter(name="RUN")] = None, /, *, data: Data = DATA, json: Json = False
) -> None:
    """What a run and its children may use and have used; without a run, all that have a budget or have spent something.

    Args:
        run: The run.
    """
    from perdure.cli import ledger

    ledger.budgets(data, Out(json), run)


@budgets.command(name="set")
def set_budget(
    run: Annotated[str, Parameter(name="RUN")],
    /,
    *,
    usd: str | None = None,
    tokens: int | None = None,
    calls: int | None = None,
    wall: float | None = None,
    hold: bool = False,
    fail: bool = False,
    none: bool = False,
    data: Data = DATA,
    json: Json = False,
) -> None:
    """Change the budget of a run, of which the rest stays; what waited for it is judged again.

    Args:
        run: The run.
        usd: US dollars, such as 2.50.
        tokens: Tokens of input and output together.
        calls: Uses of tools and models.
        wall: Seconds from the start of the run.
        hold: What is beyond it waits.
        fail: What is beyond it is refused.
        none: Take the whole budget away.
    """
    from perdure.cli import ledger

    ledger.set_budget(
        data, Out(json), run, usd=usd, tokens=tokens, calls=calls, wall=wall, hold=hold, fail=fail, none=none
    )  # fmt: skip


@tools.command(name="list")
def list_tools(
    app: Annotated[str | None, Parameter(name="APP:AGENT")] = None,
    /,
    *,
    config: Config = None,
    data: Data = DATA,
    json: Json = False,
) -> None:
    """List the tools of an app, or of the configured toolsets.

    Args:
        app: A module path or file, and an agent of it.
    """
    from perdure.cli import world

    world.tools(app, config, data, Out(json))


@tools.command
def call(
    name: Annotated[str, Parameter(name="TOOL")],
    arguments: Annotated[str | None, Parameter(name="JSON", allow_leading_hyphen=True)] = None,
    /,
    *,
    app: str | None = None,
    yes: bool = False,
    config: Config = None,
    data: Data = DATA,
    json: Json = False,
) -> int:
    """Call a tool once, outside of any run: nothing is recorded.

    Args:
        name: The tool.
        arguments: A JSON object; `-` reads stdin.
        app: Whose tools; by default those of the configured toolsets.
        yes: Also if the tool changes something.
    """
    from perdure.cli import world

    return world.call(name, arguments, app, config, data, Out(json), yes=yes)


@models.command(name="list")
def list_models(*, config: Config = None, data: Data = DATA, json: Json = False) -> None:
    """List upstreams, their models, and whether their keys are found."""
    from perdure.cli import world

    world.models(config, data, Out(json))


@models.command(name="test")
def try_model(
    model: Annotated[str, Parameter(name="MODEL")],
    /,
    *,
    config: Config = None,
    data: Data = DATA,
    json: Json = False,
) -> int:
    """Ask a model for one word: who answers, how quickly, at which cost.

    Args:
        model: Its name.
    """
    from perdure.cli import world

    return world.try_model(model, config, data, Out(json))
