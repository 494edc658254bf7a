"""``run`` and ``work``: the commands that drive runs."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from perdure.agents import Agent
from perdure.cli import views
from perdure.cli.apps import choose, fitted_input, load, split, value_of
from perdure.cli.output import Out, dumps
from perdure.cli.progress import Quiet, screen_for
from perdure.core.errors import QuestionUnknownError, UsageError
from perdure.core.principals import Principal
from perdure.core.workers import Isolation
from perdure.ports import Telemetry
from perdure.runtime import RunHandle, Runtime
from perdure.runtime.config import world_from
from perdure.runtime.secrets import LocalSecrets

ASK_POLL_S = 0.2  # how often new questions are looked for
UNFINISHED_MAX = 10_000  # counted at most, for the greeting
INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Order:
    """What ``perdure run`` is to start."""

    target: str
    input: str | None
    data: Path
    session: str | None = None
    key: str | None = None
    deadline: float | None = None
    detach: bool = False
    otel: bool = False
    config: Path | None = None
    user: str | None = None
    groups: tuple[str, ...] = ()
    goal: str | None = None
    isolation: Isolation | None = None

    @property
    def principals(self) -> list[Principal]:
        """On whose behalf the run acts.

        Raises:
            UsageError: groups are given, and nobody who is in them.
        """
        if self.user is None:
            if self.groups:
                raise UsageError("`--group` is a group of `--user`; give both")
            return []
        return [Principal(kind="user", name=self.user, groups=self.groups)]


def run(order: Order, out: Out) -> int:
    """Start a run and see it through; the exit code."""
    app, name = split(order.target)
    agents = load(app)
    chosen = choose(agents, name, app)
    return asyncio.run(_run(order, out, agents, chosen, app))


def work(
    app: str,
    data: Path,
    out: Out,
    *,
    otel: bool,
    config: Path | None = None,
    agentcore: str | None = None,
    isolation: Isolation | None = None,
) -> int:
    """Drive all runs of an app until a signal; the exit code."""
    return asyncio.run(
        _work(app, data, out, otel=otel, config=config, agentcore=agentcore, isolation=isolation)
    )


def _opened(
    data: Path,
    agents: list[Agent],
    config: Path | None,
    telemetry: Telemetry | None,
    *,
    beside: bool = False,
    isolation: Isolation | None = None,
) -> AbstractAsyncContextManager[Runtime]:
    """A runtime with the upstreams, toolsets and workers of the configuration."""
    world = world_from(config, os.environ, LocalSecrets.default(data))
    workers = world.workers if isolation is None else replace(world.workers, isolation=isolation)
    return Runtime.open(
        data, agents=agents, beside=beside, telemetry=telemetry, upstreams=world.upstreams, toolsets=world.toolsets,
        secrets=world.secrets, rules=world.rules, sandboxes=world.sandboxes, isolation=workers, resources=world.resources,
    )  # fmt: skip


async def _run(order: Order, out: Out, agents: list[Agent], name: str, app: str) -> int:
    telemetry = _telemetry() if order.otel else None
    with _signals() as stop:
        opened = _opened(
            order.data, agents, order.config, telemetry, beside=order.detach, isolation=order.isolation
        )
        async with opened as runtime:
            handle = await runtime.start(
                name,
                fitted_input(runtime.agent(name), order.input),
                session=order.session,
                idempotency_key=order.key,
                deadline=order.deadline,
                principals=order.principals,
                goal=order.goal,
            )
            if order.detach:
                out.emit({"run": handle.id}) if out.json else out.text(handle.id)
                return 0
            if not out.json:
                out.note(f"run {handle.id}")
            if await _follow(runtime, handle, out, name, stop):
                return _report(await handle.result(), handle, out)
            out.note(f"stopping; waiting up to {views.span(runtime.settings.drain_ms)} for running steps")
        out.note(f"run {handle.id} is kept; it goes on with `perdure work {app} --data {order.data}`")
        if out.json:
            out.emit({"run": handle.id, "interrupted": True})
    return INTERRUPTED


def _report(result: Any, handle: RunHandle, out: Out) -> int:
    if out.json:
        out.emit({"run": handle.id, "result": result})
    else:
        out.text(dumps(result))
    return 0


async def _follow(runtime: Runtime, handle: RunHandle, out: Out, name: str, stop: asyncio.Event) -> bool:
    """Show a run until it has ended (or is blocked), or a signal came; whether it ended."""
    screen = screen_for(name, handle.id, is_json=out.json)
    screen.begin()
    followers = [
        asyncio.ensure_future(_entries(handle, out, screen)),
        asyncio.ensure_future(stop.wait()),
        asyncio.ensure_future(_lives(handle, screen)),
        asyncio.ensure_future(_ask(runtime, handle, out, screen)),
    ]
    try:
        await asyncio.wait(followers[:2], return_when=asyncio.FIRST_COMPLETED)
        if followers[0].done():
            followers[0].result()
        return followers[0].done()
    finally:
        for task in followers:
            task.cancel()
        await asyncio.gather(*followers, return_exceptions=True)
        screen.end()


async def _entries(handle: RunHandle, out: Out, screen: Quiet) -> None:
    async for entry in handle.entries():
        if out.json:
            out.emit({"run": handle.id, "entry": views.entry_json(entry)})
        screen.entry(entry)


async def _lives(handle: RunHandle, screen: Quiet) -> None:
    async for item in handle.live():
        screen.live(item)


# -- questions
async def _ask(runtime: Runtime, handle: RunHandle, out: Out, screen: Quiet) -> None:
    """Put each new question of the run and its children to the human at the terminal, or say how to answer."""
    seen: set[tuple[str, int]] = set()
    while True:
        fresh = [item for item in runtime.questions() if (item.run, item.call) not in seen]
        ours = views.family(runtime, handle.id) if fresh else []
        for item in fresh:
            seen.add((item.run, item.call))
            if item.run not in ours:
                continue
            text = views.question_text(item.question)
            if not sys.stdin.isatty() or out.json:
                out.note(f"question: {text}\n  perdure answer {item.run} {item.call} ANSWER")
                continue
            screen.end()
            line = await _prompt(f"{text}\n> ")
            if line is not None:
                with suppress(QuestionUnknownError):  # its time was up meanwhile
                    await _answer(runtime, item.run, item.call, line, out)
            screen.begin()
        await asyncio.sleep(ASK_POLL_S)


async def _answer(runtime: Runtime, run: str, call: int, line: str, out: Out) -> None:
    try:
        await runtime.run(run).answer(call, value_of(line) if line != "-" else line, sender=_user())
    except QuestionUnknownError:
        out.note("that question is no longer open")
        raise


async def _prompt(text: str) -> str | None:
    """A line from the terminal, without a thread, so that a signal can end the wait; ``None`` at end of file."""
    sys.stderr.write(text)
    sys.stderr.flush()
    loop = asyncio.get_running_loop()
    line: asyncio.Future[str] = loop.create_future()

    def ready() -> None:
        if not line.done():
            line.set_result(sys.stdin.readline())

    loop.add_reader(sys.stdin, ready)
    try:
        found = await line
    finally:
        loop.remove_reader(sys.stdin)
    return found.rstrip("\n") if found else None


def _user() -> str:
    return os.environ.get("USER") or os.environ.get("LOGNAME") or "terminal"


# -- work
async def _work(
    app: str,
    data: Path,
    out: Out,
    *,
    otel: bool,
    config: Path | None,
    agentcore: str | None,
    isolation: Isolation | None,
) -> int:
    app, chosen = split(app)
    agents = load(app)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with _signals() as stop:
        opened = _opened(data, agents, config, _telemetry() if otel else None, isolation=isolation)
        async with opened as runtime:
            names = sorted(runtime.agents)
            unfinished = sum(
                len(runtime.runs(agent=name, status="unfinished", limit=UNFINISHED_MAX)) for name in names
            )
            if out.json:
                out.emit(
                    {"working": str(data), "agents": names, "unfinished": unfinished, "pid": os.getpid()}
                )
            else:
                listed = ", ".join(names)
                out.note(
                    f"working on `{data}` as process {os.getpid()}: {listed}; unfinished runs: {unfinished}"
                )
            async with AsyncExitStack() as faces:
                if agentcore is not None:
                    from perdure.cli.faces import serve_agentcore

                    name = choose(agents, chosen, app)
                    await faces.enter_async_context(serve_agentcore(runtime, name, agentcore, out))
                await stop.wait()
            out.note(f"stopping; waiting up to {views.span(runtime.settings.drain_ms)} for running steps")
    count = await _unfinished(data)
    out.note(
        f"stopped; unfinished runs: {count}; they are kept and go on with `perdure work {app} --data {data}`"
    )
    if out.json:
        out.emit({"stopped": str(data), "unfinished": count})
    return INTERRUPTED if stop.number == signal.SIGINT else 0


async def _unfinished(data: Path) -> int:
    async with Runtime.open(data, beside=True) as runtime:
        return len(runtime.runs(status="unfinished", limit=UNFINISHED_MAX))


# -- signals and telemetry
class _Stop(asyncio.Event):
    """Set by the first SIGTERM or SIGINT; the second ends the process at once (what is recorded is safe)."""

    number = 0

    def on(self, number: int) -> None:
        if self.is_set():
            os._exit(INTERRUPTED)
        self.number = number
        self.set()


@contextmanager
def _signals() -> Iterator[_Stop]:
    stop = _Stop()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.on, number)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _telemetry() -> Telemetry:
    from perdure.telemetry import OtelTelemetry

    return OtelTelemetry()
