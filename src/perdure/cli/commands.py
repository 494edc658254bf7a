"""The commands and their options. Each imports what it needs when it is called, so that help stays quick."""

# ruff: noqa: D417 - cyclopts reads the docstrings; the options that many commands share are described once, below

import os
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from perdure.cli.agents_commands import agents, top
from perdure.cli.audit_commands import audit
from perdure.cli.conduct_commands import conduct
from perdure.cli.exec_command import exec_
from perdure.cli.gateway_commands import actions, budgets, models, tools
from perdure.cli.governance_commands import approvals, contain, keys, kill, undo
from perdure.cli.host_commands import worker
from perdure.cli.options import DATA, After, Config, Data, Isolated, Json, Otel
from perdure.cli.output import Out
from perdure.cli.policy_commands import policy
from perdure.cli.sandbox_commands import sandbox, workspace

STATUS = Literal[
    "pending", "queued", "running", "waiting", "blocked", "completed", "failed", "cancelled", "unfinished"
]

_style = Parameter(negative=(), show_env_var=False, show_default=False)
app = App(
    name="perdure",
    help="Perdure runs agents that do not die.",
    help_format="plaintext",
    help_formatter="plain",
    default_parameter=_style,
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
    version_flags=(),
)
runs = App(name="runs", help="Look at runs and act on them.", version_flags=())
schedules = App(name="schedules", help="Look at schedules.", version_flags=())
app.command(exec_, name="exec")
app.command(runs)
runs.command(undo)
app.command(kill)
app.command(worker)
app.command(top)
for _group in (
    actions,
    agents,
    budgets,
    tools,
    models,
    approvals,
    keys,
    contain,
    conduct,
    audit,
    policy,
    sandbox,
    workspace,
):
    app.command(_group)
app.command(schedules)


@app.command
def demo(
    folder: str | None = None,
    /,
    *,
    yes: bool = False,
    fast: bool = False,
    pace: int | None = None,
    json: Json = False,
) -> int:
    """The invoice desk: a worker is killed half-way, and the journal proves what happened.

    Args:
        folder: A folder of `.eml` files; by default those shipped with the demo.
        yes: Let the scripted reviewer answer, also at a terminal.
        fast: No pauses for watching.
        pace: Milliseconds of pause in each step.
        json: One JSON object with the proof.
    """
    from perdure.cli import upkeep

    flags = [name for name, wanted in (("--yes", yes), ("--fast", fast), ("--json", json)) if wanted]
    return upkeep.demo(
        [*flags, *(["--pace", str(pace)] if pace is not None else []), *([folder] if folder else [])]
    )


@app.command
def run(
    target: Annotated[str, Parameter(name="APP:AGENT")],
    input: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    /,
    *,
    data: Data = DATA,
    session: str | None = None,
    key: str | None = None,
    deadline: float | None = None,
    detach: bool = False,
    user: str | None = None,
    group: list[str] | None = None,
    goal: str | None = None,
    isolation: Isolated = None,
    config: Config = None,
    otel: Otel = False,
    json: Json = False,
) -> int:
    """Start a run, show its progress, print its result as JSON.

    Args:
        target: A module path (`shop.agents:triage`) or file (`agents.py:triage`) and the name of an agent; the
            name may be left out if the app has one agent.
        input: JSON, or a plain text if it is not JSON; `-` reads stdin.
        session: Runs of one session of an agent go one at a time.
        key: An idempotency key: the same key again follows the same run.
        deadline: Seconds after which the run is cancelled and fails.
        detach: Only start it; a process with `perdure work` drives it.
        user: On whose behalf: policies ask for this user too, who then cannot approve what the run asks for.
        group: A group of that user, for policies; can be given several times.
        goal: What it is started for; drift tells goals apart (default: the agent's name).
    """
    from perdure.cli.execute import Order
    from perdure.cli.execute import run as execute

    order = Order(
        target=target, input=input, data=data, session=session, key=key, deadline=deadline, detach=detach,
        otel=otel, config=config, user=user, groups=tuple(group or ()), goal=goal, isolation=isolation,
    )  # fmt: skip
    return execute(order, Out(json))


@app.command
def work(
    target: Annotated[str, Parameter(name="APP")],
    /,
    *,
    data: Data = DATA,
    config: Config = None,
    agentcore: str | None = None,
    isolation: Isolated = None,
    otel: Otel = False,
    json: Json = False,
) -> int:
    """Drive all runs of an app until SIGTERM or SIGINT; running steps may end, every run is kept.

    Args:
        target: A module path or file with agents.
        agentcore: HOST:PORT at which `/invocations` and `/ping` are answered, as AgentCore's containers do
            (`0.0.0.0:8080` there); if the app has several agents, name one: `APP:AGENT`.
    """
    from perdure.cli.execute import work as drive

    return drive(target, data, Out(json), otel=otel, config=config, agentcore=agentcore, isolation=isolation)


# -- runs
@runs.command(name="list")
def list_(
    *,
    agent: str | None = None,
    status: STATUS | None = None,
    session: str | None = None,
    limit: int = 50,
    data: Data = DATA,
    json: Json = False,
) -> None:
    """List runs, newest first.

    Args:
        agent: Only runs of this agent.
        status: Only runs in this status; `unfinished` is all that have not ended.
        session: Only runs of this session.
        limit: How many at most.
    """
    from perdure.cli import looking

    looking.runs(data, Out(json), agent=agent, status=status, session=session, limit=limit)


@runs.command
def show(run: str, /, *, data: Data = DATA, json: Json = False) -> None:
    """Everything about one run.

    Status, what it waits for and asks, children, times, result or error.

    Args:
        run: The run's id.
    """
    from perdure.cli import looking

    looking.show(data, Out(json), run)


@runs.command
def journal(
    run: str, /, *, after: After = 0, limit: int | None = None, data: Data = DATA, json: Json = False
) -> None:
    """The recorded entries of a run.

    Args:
        run: The run's id.
        limit: How many at most.
    """
    from perdure.cli import looking

    looking.journal(data, Out(json), run, after=after, limit=limit)


@runs.command
def tail(run: str, /, *, after: After = 0, data: Data = DATA, json: Json = False) -> None:
    """Follow a run's entries as they are recorded, until it ends or is blocked.

    Args:
        run: The run's id.
    """
    from perdure.cli import looking

    looking.tail(data, Out(json), run, after=after)


@runs.command
def diff(left: str, right: str, /, *, data: Data = DATA, json: Json = False) -> None:
    """Two journals side by side, from their first difference.

    Args:
        left: A run's id.
        right: Another run's id.
    """
    from perdure.cli import looking

    looking.diff(data, Out(json), left, right)


@runs.command
def cancel(
    run: str, reason: str = "cancelled from the command line", /, *, data: Data = DATA, json: Json = False
) -> None:
    """Ask a run and its children to stop.

    Args:
        run: The run's id.
        reason: What the journal says.
    """
    from perdure.cli import acting

    acting.cancel(data, Out(json), run, reason)


@runs.command
def resume(
    run: str,
    /,
    *,
    migrate: bool = False,
    target: Annotated[str | None, Parameter(name="--app")] = None,
    data: Data = DATA,
    json: Json = False,
) -> None:
    """Let a blocked run go on.

    Args:
        run: The run's id.
        migrate: Under the version of its agent that is in `--app`.
        target: A module path or file with the agent's new code.
    """
    from perdure.cli import acting

    acting.resume(data, Out(json), run, migrate=migrate, app=target)


@runs.command
def fork(
    run: str, /, *, at: int, change: list[str] | None = None, data: Data = DATA, json: Json = False
) -> None:
    """Start a new run from a point of another's journal; prints its id.

    Args:
        run: The origin's id; it is not touched.
        at: The last entry to keep.
        change: `SEQ=JSON`: another result for a kept entry, or another input for entry 1; may be repeated.
    """
    from perdure.cli import acting

    acting.fork(data, Out(json), run, at, change or ())


# -- messages and questions
@app.command
def send(
    run: str,
    topic: str,
    body: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    /,
    *,
    key: str | None = None,
    sender: str | None = None,
    data: Data = DATA,
    json: Json = False,
) -> None:
    """Put a message into a run's mailbox; durable when the command returns.

    Args:
        run: The run's id.
        topic: What the run receives by.
        body: JSON, or a plain text if it is not JSON; `-` reads stdin.
        key: A second message with the same key is dropped.
        sender: Who sends, as the run sees it.
    """
    from perdure.cli import acting

    acting.send(data, Out(json), run, topic, body, key, _sender(sender))


@app.command
def answer(
    run: str,
    call: int,
    body: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    /,
    *,
    sender: str | None = None,
    data: Data = DATA,
    json: Json = False,
) -> None:
    """Answer a question that a run asks.

    Args:
        run: The run's id.
        call: The number of the call that asks; `perdure questions` lists it.
        body: JSON, or a plain text if it is not JSON; `-` reads stdin.
        sender: Who answers, as the run sees it.
    """
    from perdure.cli import acting

    acting.answer(data, Out(json), run, call, body, _sender(sender))


@app.command
def questions(run: str | None = None, /, *, data: Data = DATA, json: Json = False) -> None:
    """List what runs ask humans, oldest first.

    Args:
        run: Only this run's.
    """
    from perdure.cli import looking

    looking.questions(data, Out(json), run)


@schedules.command(name="list")
def list_schedules(*, data: Data = DATA, json: Json = False) -> None:
    """List schedules and when they are due next."""
    from perdure.cli import looking

    looking.schedules(data, Out(json))


# -- operating
@app.command
def backup(target: Path, /, *, data: Data = DATA, json: Json = False) -> None:
    """Copy the database, also while a process works on it, and check the copy.

    Args:
        target: A new file, or an empty directory (which is then a data directory).
    """
    from perdure.cli import upkeep

    upkeep.backup(data, Out(json), target)


@app.command
def doctor(*, data: Data = DATA, json: Json = False) -> int:
    """Check the installation and the data directory; exit code 1 if there is a problem."""
    from perdure.cli import upkeep

    return upkeep.doctor(data, Out(json))


@app.command
def bench(*, seconds: float = 2.0, data: Data = DATA, json: Json = False) -> None:
    """Measure durable steps on this disk, beside the bare SQLite commits that bound them.

    Args:
        seconds: How long each of the three measures takes.
    """
    from perdure.cli import measure

    measure.bench(data, Out(json), seconds=seconds)


def _sender(given: str | None) -> str:
    return given if given is not None else os.environ.get("USER", "") or "command-line"
