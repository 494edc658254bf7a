"""``work --agentcore``: an app of ours behind the HTTP contract of AgentCore's containers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import uvicorn

from perdure.agents.codec import to_json
from perdure.cli.output import Out
from perdure.core.errors import InputInvalidError, UnavailableError, UsageError
from perdure.hosting.agentcore import AgentCoreFace
from perdure.runtime import RunHandle, Runtime
from perdure.runtime.system import SystemClock

WRAPPINGS = ("prompt", "input")  # the usual names of a payload's one field


class _Server(uvicorn.Server):
    """Serves inside our own loop; signals are the command's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Leave them alone."""
        yield


@contextlib.asynccontextmanager
async def serve_agentcore(runtime: Runtime, agent: str, address: str, out: Out) -> AsyncIterator[None]:
    """Answer ``/invocations`` and ``/ping`` with runs of an agent.

    Raises:
        UsageError: the address is none.
        UnavailableError: it cannot be listened at.
    """
    face = AgentCoreFace(
        lambda payload, session: _result(runtime, agent, payload, session),
        lambda payload, session: _followed(runtime, agent, payload, session),
        lambda: bool(runtime.runs(agent=agent, status="unfinished", limit=1)),
        SystemClock(),
    )
    bound = _bound(address)
    config = uvicorn.Config(face.app, log_level="error", access_log=False, lifespan="off", ws="none")
    server = _Server(config)
    serving = asyncio.ensure_future(server.serve(sockets=[bound]))
    while not (server.started or serving.done()):
        await asyncio.sleep(0.005)
    host, port = bound.getsockname()[:2]
    out.emit({"agentcore": f"{host}:{port}"}) if out.json else out.note(
        f"/invocations and /ping at {host}:{port}"
    )
    try:
        yield
    finally:
        server.should_exit = True
        server.force_exit = True
        await asyncio.gather(serving, return_exceptions=True)


def _bound(address: str) -> socket.socket:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise UsageError(f"`--agentcore {address}` must be HOST:PORT, such as `0.0.0.0:8080`")
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, int(port)))
    except (OSError, OverflowError) as error:
        made.close()
        raise UnavailableError(f"`{address}` cannot be listened at: {error}") from error
    return made


async def _started(runtime: Runtime, agent: str, payload: Any, session: str | None) -> RunHandle:
    """Start a run with a payload; one that only wraps the input is unwrapped where the agent does not take it as it is."""
    try:
        runtime.agent(agent).parameters.read_input(to_json(payload))
    except InputInvalidError:
        if not isinstance(payload, dict) or len(payload) != 1 or next(iter(payload)) not in WRAPPINGS:
            raise
        payload = next(iter(payload.values()))
    return await runtime.start(agent, payload, session=session)


async def _result(runtime: Runtime, agent: str, payload: Any, session: str | None) -> Any:
    return await (await _started(runtime, agent, payload, session)).result()


async def _followed(runtime: Runtime, agent: str, payload: Any, session: str | None) -> AsyncIterator[Any]:
    handle = await _started(runtime, agent, payload, session)
    async for item in handle.live():
        yield {item.kind: item.data}
    yield {"result": await handle.result()}
