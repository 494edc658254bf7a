"""``exec``: run an unmodified program as an agent that does not die."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import msgspec

from perdure.agents import Agent, process
from perdure.agents.program import Divergence, Kind
from perdure.cli import views
from perdure.cli.apps import value_of
from perdure.cli.execute import _signals as signals
from perdure.cli.hosting_asked import Hosting, Kept
from perdure.cli.output import Out
from perdure.core import entries as e
from perdure.core.actions import ActionState, Budget
from perdure.core.errors import PerdureError, UsageError
from perdure.core.models import Upstream
from perdure.core.records import Status
from perdure.core.tools import is_tool_name
from perdure.hosting.workspace import Workspace
from perdure.ports import Toolset
from perdure.runtime import RunHandle, Runtime
from perdure.runtime.config import world_from
from perdure.runtime.outside import PROGRAMS, World
from perdure.runtime.replays import replay
from perdure.runtime.secrets import LocalSecrets

INTERRUPTED = 130
MICROS = 1_000_000
AMOUNT_MAX = 2**53  # of a limit: beyond it other readers of JSON lose digits; 9 billion USD, 285,000 years


def execute(asked: Hosting, out: Out) -> int:
    """Start, resume or replay; the exit code."""
    return asyncio.run(_execute(asked, out))


async def _execute(asked: Hosting, out: Out) -> int:
    kept = given(asked)
    budget = budget_of(asked)
    agent = _agent(world := _world(asked), kept)
    with signals() as stop:
        opened = Runtime.open(
            asked.data, agents=[agent], upstreams=world.upstreams, toolsets=world.toolsets, secrets=world.secrets,
            rules=world.rules, sandboxes=world.sandboxes, resources=world.resources,
        )  # fmt: skip
        async with opened as runtime:
            if asked.replay is not None:
                return await _replay(runtime, asked.replay, out)
            handle = await _handle(runtime, agent, asked, budget)
            if asked.resume is None:
                await asyncio.to_thread(_keep, asked.data, handle.id, kept)
            if not out.json:
                out.note(f"run {handle.id}" + (" goes on" if asked.resume else ""))
            if await _follow(handle, out, stop):
                return _report(runtime, handle, out, await handle.result())
    out.note(f"run {handle.id} is kept; go on with `perdure exec --resume {handle.id} --data {asked.data}`")
    if out.json:
        out.emit({"run": handle.id, "interrupted": True})
    return INTERRUPTED


async def _handle(runtime: Runtime, agent: Agent, asked: Hosting, budget: Budget | None) -> RunHandle:
    if asked.resume is None:
        return await runtime.start(agent.name, value_of(asked.input), budget=budget)
    handle = runtime.run(asked.resume)
    record = handle.record()
    if record.agent != agent.name:
        raise UsageError(f"run `{handle.id}` is one of agent `{record.agent}`; give `--agent {record.agent}`")
    if record.status is Status.BLOCKED:
        await runtime.resume(handle.id)
    return handle


async def _follow(handle: RunHandle, out: Out, stop: asyncio.Event) -> bool:
    """Show the program's output and what befalls it, until the run ends or a signal comes; whether it ended."""
    tasks = [
        asyncio.ensure_future(_entries(handle, out)),
        asyncio.ensure_future(stop.wait()),
        asyncio.ensure_future(_output(handle, out)),
    ]
    try:
        await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
        return tasks[0].done()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _output(handle: RunHandle, out: Out) -> None:
    async for item in handle.live():
        show(out, item.kind, item.data)


def show(out: Out, kind: str, data: Any) -> None:
    """One line of a program's output where it belongs."""
    if out.json:
        out.emit({kind: data})
    elif kind == "stdout":
        out.text(str(data))
    elif kind == "stderr":
        out.note(str(data))
    else:
        out.note(f"{kind}: {data}")


async def _entries(handle: RunHandle, out: Out) -> None:
    last = handle.record().seq
    async for entry in handle.entries():
        if out.json:
            out.emit({"run": handle.id, "entry": views.entry_json(entry)})
        elif entry.seq > last and (text := told(handle.id, entry)):
            out.note(text)


def told(run: str, entry: e.Entry) -> str:
    """What a person should know of an entry while the program runs; empty for most."""
    match entry:
        case e.ProgramStarted(attempt=attempt) if attempt > 1:
            return f"attempt {attempt} begins; what it asked for before is answered from the journal"
        case e.ProgramExited(error=error):
            return f"{error.message}\nthe program is started again"
        case e.ProgramSuspended():
            return "the program only waits for a decision, so it was stopped; it goes on when there is one"
        case e.ActionDoubted(name=name, call=call):
            return (
                f"`{name}` was dispatched and did not answer: nobody knows whether it happened. Find out, then\n"
                f"  perdure actions settle {run}/{call} happened|did-not-happen|retry"
            )
        case e.ActionHeld(name=name, call=call, reason=reason):
            advice = f"perdure actions settle {run}/{call} live|fail"
            return f"`{name}` is held ({reason.code}): {reason.message}\n  {advice}"
        case _:
            return ""


def _report(runtime: Runtime, handle: RunHandle, out: Out, result: Any) -> int:
    summary = summarised(runtime, handle.id)
    if out.json:
        out.emit({"run": handle.id, "result": result, **summary})
        return 0
    money = f"{summary['usd_micros'] / MICROS:.6f} USD" + (
        " and an unknown part" if summary["unpriced"] else ""
    )
    out.note(
        f"done: {summary['calls']} calls, {summary['served']} answered from the journal, {summary['tokens']} tokens, "
        f"{money}; `perdure runs show {handle.id}`"
    )
    return 0


def summarised(runtime: Runtime, run: str) -> dict[str, int]:
    """Calls, answers from the journal, tokens and money of a run."""
    account = runtime.actions.accounts(run)[0].spent
    rows = runtime.actions.rows(run=run, limit=1_000_000)
    return {
        "calls": sum(row.state in (ActionState.SUCCEEDED, ActionState.FAILED) for row in rows),
        "served": len(runtime.actions.served(run)),
        "tokens": account.tokens,
        "usd_micros": account.usd_micros,
        "unpriced": account.unpriced,
    }


async def _replay(runtime: Runtime, run: str, out: Out) -> int:
    ended, answered = await replay(runtime, run, lambda kind, data: show(out, kind, data))
    result = msgspec.json.decode(ended.result) if ended.how == "result" else None
    if out.json:
        error = None if ended.error is None else msgspec.to_builtins(ended.error)
        out.emit({"run": run, "replayed": answered, "result": result, "error": error})
    else:
        out.note(f"replayed: {answered} calls answered from the journal of {run}, none sent")
        if ended.error is not None:
            out.note(f"error[{ended.error.code}]: {ended.error.message}")
    return 0 if ended.how == "result" else 1


# -- what was asked for
def _world(asked: Hosting) -> World:
    secrets = LocalSecrets.default(asked.data)
    world = world_from(asked.config, os.environ, secrets)
    upstreams = list(world.upstreams)
    if asked.upstream is not None:
        base = asked.upstream.rstrip("/")
        upstreams = [
            Upstream(name="upstream", base_url=base, key=_key(secrets)),
            Upstream(name="upstream-anthropic", base_url=base, wire="anthropic", key=_key(secrets)),
        ]
    toolsets = [*world.toolsets, *(_toolset(item) for item in asked.mcp)]
    return replace(world, upstreams=upstreams, toolsets=toolsets, secrets=secrets)


def _key(secrets: LocalSecrets) -> str:
    """The reference for ``--upstream``, if there is a secret of that name."""
    try:
        secrets.resolve("secret://upstream")
    except PerdureError:
        return ""
    return "secret://upstream"


def _toolset(text: str) -> Toolset:
    from perdure.tools.mcp_client import McpToolset

    name, equals, target = text.partition("=")
    if not equals or not name or not target:
        raise UsageError(
            f"`--mcp {text}` must be NAME=URL or NAME=COMMAND, such as `--mcp files=http://127.0.0.1:9000/mcp`"
        )
    if target.startswith(("http://", "https://")):
        return McpToolset(name, url=target)
    return McpToolset(name, command=tuple(shlex.split(target)), ours=os.environ)


def _agent(world: World, kept: Kept) -> Agent:
    tools = [item.name for item in world.toolsets]
    return process(
        kept.agent, kept.command, tools=tools, kind=kept.kind, divergence=kept.divergence,
        restarts_max=kept.restarts, cwd=kept.cwd, env=kept.env, sandbox=kept.sandbox, steady=kept.steady, shows=kept.shows, writes=kept.writes,
    )  # fmt: skip


def given(asked: Hosting) -> Kept:
    """The definition from the command line, or as the run was started that is to go on.

    Raises:
        UsageError: there is no command, it is another one than the run was started with, or a name cannot be.
    """
    known = asked.resume or asked.replay
    before = None if known is None else _kept(asked.data, known)
    if before is not None and not asked.command:
        return before
    if not asked.command:
        raise UsageError(
            "there is no command to run; give it after `--`, such as `perdure exec -- python agent.py`"
        )
    command = tuple(asked.command)
    if before is not None and before.command != command:
        shown = shlex.join(before.command)
        raise UsageError(f"run `{known}` was started with `{shown:.300}`; give that command, or leave it out")
    agent = asked.agent or (before.agent if before else named(command))
    if not is_tool_name(agent):
        raise UsageError(f"`--agent {agent:.100}` must be letters, digits, `_`, `-` and `.`")
    return Kept(
        agent=agent,
        command=command,
        cwd=str(asked.cwd if asked.cwd is not None else Path.cwd()),
        env=variables(asked.env, os.environ) or (before.env if before else {}),
        kind=cast(Kind, asked.kind),
        divergence=cast(Divergence, asked.divergence),
        restarts=asked.restarts,
        sandbox=asked.sandbox or (before.sandbox if before else None),
        steady=asked.steady or (before is not None and before.steady),
        shows=_paths(asked.show) or (before.shows if before else ()),
        writes=_paths(asked.write) or (before.writes if before else ()),
    )


def named(command: Sequence[str]) -> str:
    """A name for the agent of a command: another command is another agent, so that their runs leave each other alone."""
    words = [Path(word).name for word in command[:2] if not word.startswith("-")]
    readable = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in words[-1])[:40]
    digest = hashlib.sha256(msgspec.json.encode(command)).hexdigest()[:8]
    return f"{readable}-{digest}"


def _paths(given: Sequence[Path]) -> tuple[str, ...]:
    return tuple(str(path.absolute()) for path in given)


def _place(data: Path, run: str) -> Path:
    return Workspace.folder(data / PROGRAMS, run) / "started.json"


def _kept(data: Path, run: str) -> Kept | None:
    try:
        return msgspec.json.decode(_place(data, run).read_bytes(), type=Kept)
    except (OSError, msgspec.MsgspecError):
        return None


def _keep(data: Path, run: str, kept: Kept) -> None:
    """Only for this user: a command or a variable may hold what is nobody else's business."""
    place = _place(data, run)
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = place.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_bytes(msgspec.json.encode(kept))
    fresh.replace(place)


def variables(given: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Variables for the program, from ``NAME=VALUE`` and ``NAME``.

    Raises:
        UsageError: a name is missing, or is not set in this shell.
    """
    found: dict[str, str] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not name or (not equals and name not in environment):
            raise UsageError(f"`--env {item}` must be NAME=VALUE, or the NAME of a variable that is set here")
        found[name] = value if equals else environment[name]
    return found


def budget_of(asked: Hosting) -> Budget | None:
    """The budget that the options set, if they set one."""
    if asked.usd is None and asked.tokens is None and asked.calls is None:
        return None
    micros = None if asked.usd is None else usd_micros(asked.usd)
    return Budget(
        usd_micros=micros,
        tokens=limited("--tokens", asked.tokens),
        calls=limited("--calls", asked.calls),
        exhausted="hold" if asked.hold else "fail",
    )


def limited(option: str, amount: float | None) -> int | None:
    """A limit as it is stored.

    Raises:
        UsageError: it is negative, no number, or too large to be kept exactly.
    """
    if amount is None:
        return None
    if not 0 <= amount <= AMOUNT_MAX:  # false for NaN too
        raise UsageError(
            f"`{option}` is out of range; expected 0 or more, and no more than can be kept exactly"
        )
    return round(amount)


def usd_micros(text: str) -> int:
    """Millionths of a dollar from decimal text, exactly.

    Raises:
        UsageError: it is no amount, negative, or has more than six decimals.
    """
    try:
        micros = Decimal(text) * MICROS
    except ArithmeticError as error:  # no number, or one beyond all bounds
        raise UsageError(f"`{text}` is no amount of US dollars; expected a number such as 2.50") from error
    if not micros.is_finite() or not 0 <= micros <= AMOUNT_MAX or micros != micros.to_integral_value():
        raise UsageError(f"`{text}` is no amount of US dollars; expected up to six decimals, such as 2.50")
    return int(micros)
