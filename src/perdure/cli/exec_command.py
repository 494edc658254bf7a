"""The options of ``exec``."""

# ruff: noqa: D417 - cyclopts reads the docstring; the options that many commands share are described in ``options``

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from perdure.cli.options import DATA, Config, Data, Json
from perdure.cli.output import Out


def exec_(
    *command: Annotated[str, Parameter(allow_leading_hyphen=True)],
    data: Data = DATA,
    agent: str | None = None,
    resume: str | None = None,
    replay: str | None = None,
    input: str | None = None,
    config: Config = None,
    mcp: list[str] | None = None,
    upstream: str | None = None,
    usd: str | None = None,
    tokens: int | None = None,
    calls: int | None = None,
    hold: bool = False,
    divergence: Literal["ask", "live", "fail"] = "ask",
    kind: Literal["command", "agentcore"] = "command",
    restarts: int = 3,
    cwd: Path | None = None,
    env: list[str] | None = None,
    sandbox: Literal["namespace", "process"] | None = None,
    steady: bool = False,
    show: list[Path] | None = None,
    write: list[Path] | None = None,
    json: Json = False,
) -> int:
    """Run an unmodified program as an agent: `perdure exec -- python agent.py`.

    Its model and tool calls go through the gateway. Killed, it is started again and answered from the journal up to
    where it was. It runs behind a wall whose one door is the gateway, and may read its folder and what its command names.

    Args:
        command: The program and its arguments, after `--`.
        agent: The name under which its runs are kept; by default one made of the command.
        resume: Go on with this run (the command may be left out).
        replay: Start the program once more, answered from the journal of this run alone; nothing is sent.
        input: What it gets on stdin: JSON or a text; `-` reads stdin.
        mcp: NAME=URL or NAME=COMMAND of an MCP server whose tools it may use; may be given more than once.
        upstream: The base URL of a model provider, instead of those of the configuration.
        usd: The most that it may spend, in US dollars.
        tokens: The most tokens that it may use.
        calls: The most calls that it may make.
        hold: What is beyond the budget waits until it is raised; else it is refused.
        divergence: When a restarted program asks for something else than before: ask a human, send it, or stop.
        kind: `agentcore` for a program that answers `/invocations` and `/ping`.
        restarts: Restarts in a row, without a new call in between, after which the run fails.
        cwd: The folder to start it in; by default this one.
        env: NAME=VALUE for the program, or NAME to hand on a variable of this shell; others than the harmless ones are
            not handed on. May be given more than once.
        sandbox: The wall around it: `namespace`, or `process` for none; by default what the configuration says.
        steady: Make chance and the time of day the same on every attempt (programs of Python or Node.js).
        show: A file or folder that it may read as well; may be given more than once.
        write: A folder that it may change, beside its workspace; may be given more than once.
    """
    from perdure.cli.hosting import execute
    from perdure.cli.hosting_asked import Hosting

    asked = Hosting(
        command=command, data=data, agent=agent, resume=resume, replay=replay, input=input, config=config,
        mcp=mcp or (), upstream=upstream, usd=usd, tokens=tokens, calls=calls, hold=hold, divergence=divergence,
        kind=kind, restarts=restarts, cwd=cwd, env=env or (),
        sandbox=sandbox, steady=steady, show=show or (), write=write or (),
    )  # fmt: skip
    return execute(asked, Out(json))
