"""Runs hosted programs: endpoints on a loopback port, a token, a fresh workspace and a wall for each attempt.

Behind the wall those endpoints are all that it can reach. As a plain process, where somebody has asked for that, it can reach what
this user can. Either way it gets no keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import uvicorn

from perdure.agents.hosting import Ended
from perdure.agents.program import Program
from perdure.core.audit import AuditRecord
from perdure.core.entries import Failure
from perdure.core.errors import SandboxUnavailableError, UnavailableError
from perdure.core.resources import Limits
from perdure.core.values import too_large
from perdure.gateway.hosted import Attempt
from perdure.hosting.endpoints import Endpoints
from perdure.hosting.joining import joined, window
from perdure.hosting.limiting import LimitsOf, check_without_wall, timed, told
from perdure.hosting.mcp_face import McpFace
from perdure.hosting.process import Launch, Process, reap
from perdure.hosting.steadiness import steady
from perdure.hosting.tokens import Tokens
from perdure.hosting.workspace import Workspace
from perdure.ports import Clock, Entropy, ProgramWalls, WalledProgram

STOP_MS = 5_000  # how long a program may take to end after SIGTERM
HOST = "127.0.0.1"


class _Server(uvicorn.Server):
    """Serves inside our own loop; signals are the process's, not its."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield


class LocalPrograms:
    """Implements the ``Programs`` port with processes of this machine.

    Args:
        folder: where workspaces are made.
        clock: the time of day.
        entropy: makes tokens.
        environment: what programs inherit (no secrets).
        result_bytes_max: the largest result.
        walls: what programs run behind; without them they are plain processes.
        usual: the tier of programs that do not say it.
        limits_of: what each attempt of an agent may take.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clock: Clock,
        entropy: Entropy,
        environment: Mapping[str, str],
        result_bytes_max: int,
        walls: ProgramWalls | None = None,
        usual: str = "process",
        limits_of: LimitsOf = lambda _: None,
    ) -> None:
        self._folder = folder
        self._walls = walls
        self._usual = usual
        self._limits_of = limits_of
        self.living: dict[int, Attempt] = {}  # by the process that each was started as
        self._clock = clock
        self._entropy = entropy
        self._tokens = Tokens(entropy)
        self._mcp: McpFace | None = None
        self._environment = dict(environment)
        self._result_bytes_max = result_bytes_max
        self._serving: asyncio.Task[None] | None = None
        self._server: _Server | None = None
        self._port = 0
        self._lock = asyncio.Lock()

    # -- the server
    async def port(self) -> int:
        """The endpoints' port; they are served from the first call on."""
        async with self._lock:
            if self._serving is None:
                await self._serve()
        return self._port

    async def _serve(self) -> None:
        endpoints = Endpoints(self._tokens)
        self._mcp = McpFace(endpoints.find, self._clock, self._entropy)
        endpoints.serve_at("/mcp", self._mcp)
        # The protocol is named so that asyncio sets TCP_NODELAY on what it accepts: without it each answer waits for an ACK.
        bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((HOST, 0))
        self._port = bound.getsockname()[1]
        config = uvicorn.Config(
            endpoints, log_level="error", access_log=False, lifespan="off", timeout_keep_alive=75,
            timeout_graceful_shutdown=1, ws="none", server_header=False, date_header=False, proxy_headers=False,
        )  # fmt: skip
        self._server = _Server(config)
        self._serving = asyncio.get_running_loop().create_task(
            self._server.serve(sockets=[bound]), name="perdure-endpoints"
        )
        while not self._server.started:
            if self._serving.done():
                raise UnavailableError("the endpoints for hosted programs could not be served")
            await asyncio.sleep(0.001)

    async def close(self) -> None:
        """Stop serving."""
        if self._mcp is not None:
            await self._mcp.close()
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            self._server.force_exit = True
            await asyncio.gather(self._serving, return_exceptions=True)

    # -- programs
    async def run(
        self, program: Program, given: bytes, attempt: Attempt, show: Callable[[str, Any], None]
    ) -> Ended:
        """Run one attempt to its end (see the port)."""
        port = await self.port()
        run = attempt.seat.run_id
        workspace = await asyncio.to_thread(_fresh, self._folder, run, attempt.number)
        token = self._tokens.issue(attempt)
        limits = self._limits_of(attempt.seat.agent)
        try:
            async with self._walled(program, workspace, port, attempt, limits) as wall:
                launch = self._launch(program, workspace, attempt, token, port, given)
                process = await Process.start(replace(launch, wall=wall), show=show)
                self.living[process.pid] = attempt
                try:
                    if wall is not None:
                        await wall.stand()
                    _record(attempt)
                    found = await timed(
                        self._watch(program, process, workspace, attempt, given, show), attempt, limits
                    )
                    return told(found, attempt, wall)
                finally:
                    del self.living[process.pid]
                    attempt.is_over = True
                    self._tokens.revoke(token)
                    await asyncio.shield(process.stop(STOP_MS))
        finally:
            self._tokens.revoke(token)
            await asyncio.to_thread(workspace.remove)

    @contextlib.asynccontextmanager
    async def _walled(
        self, program: Program, workspace: Workspace, port: int, attempt: Attempt, limits: Limits | None
    ) -> AsyncIterator[WalledProgram | None]:
        """The wall of an attempt, with one door: the endpoints, at the same address as outside."""
        tier = program.sandbox or self._usual
        if tier == "process":
            attempt.within = tier
            check_without_wall(limits)
            yield None
            return
        if self._walls is None or self._walls.tier != tier:
            raise SandboxUnavailableError(f"this runtime has no walls of tier `{tier}` for programs")
        attempt.within = tier

        async def endpoints(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await joined((reader, writer), await asyncio.open_connection(HOST, port))

        async with self._walls.around(
            program.command,
            cwd=str(_folder_of(program, workspace)),
            path=program.env.get("PATH") or self._environment.get("PATH", os.defpath),
            shown=program.shows,
            writable=(str(workspace.root), *(_absolute(each) for each in program.writes)),
            doors={port: endpoints},
            limits=limits,
        ) as wall:
            yield wall

    def _launch(
        self, program: Program, workspace: Workspace, attempt: Attempt, token: str, port: int, given: bytes
    ) -> Launch:
        base = f"http://{HOST}:{port}"
        mcp = {"type": "http", "url": f"{base}/mcp", "headers": {"Authorization": f"Bearer {token}"}}
        config = workspace.write_mcp_config({"perdure": mcp})
        env = {
            **self._environment,
            "HOME": str(workspace.home),
            "TMPDIR": str(workspace.tmp),
            "OPENAI_BASE_URL": f"{base}/v1",
            "OPENAI_API_BASE": f"{base}/v1",
            "OPENAI_API_KEY": token,
            "ANTHROPIC_BASE_URL": base,
            "ANTHROPIC_API_KEY": token,
            "PERDURE_MCP_URL": f"{base}/mcp",
            "PERDURE_MCP_TOKEN": token,
            "PERDURE_MCP_CONFIG": str(config),
            "PERDURE_RUN": attempt.seat.run_id,
            "PERDURE_ATTEMPT": str(attempt.number),
            "PERDURE_WORKSPACE": str(workspace.work),
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            **program.env,
        }
        if program.steady:
            env |= steady(attempt, workspace.root / "shim", env)
        if program.kind == "agentcore":
            env.setdefault("PORT", str(free_port()))
        cwd = _folder_of(program, workspace)
        return Launch(
            command=program.command, cwd=cwd, env=env, stdin=workspace.write_input(given), log=workspace.log
        )

    async def _watch(
        self,
        program: Program,
        process: Process,
        workspace: Workspace,
        attempt: Attempt,
        given: bytes,
        show: Callable[[str, Any], None],
    ) -> Ended:
        """Whatever comes first: the program's end, or that it only waits for a decision."""
        async with _ending(attempt.stuck_for(program.hold_ms / 1000)) as stuck:
            if program.kind == "agentcore":
                main = asyncio.ensure_future(self._invoked(process, attempt, given, show))
            else:
                main = asyncio.ensure_future(self._waited(process, workspace))
            try:
                await asyncio.wait((main, stuck), return_when=asyncio.FIRST_COMPLETED)
                return main.result() if main.done() else Ended("suspended")
            finally:
                main.cancel()
                await asyncio.gather(main, return_exceptions=True)

    async def _waited(self, process: Process, workspace: Workspace) -> Ended:
        exit_ = await process.wait()
        if exit_.code != 0:
            text = f"the program ended with {exit_.reason}" + (
                f": {exit_.output_tail[-TAIL_SHOWN:]}" if exit_.output_tail else ""
            )
            return Ended("failed", error=Failure(code="program-failed", message=text))
        result = await asyncio.to_thread(workspace.result, exit_.last_line)
        if len(result) > self._result_bytes_max:
            raise too_large(len(result), self._result_bytes_max)
        return Ended("result", result=result)

    async def _invoked(
        self, process: Process, attempt: Attempt, given: bytes, show: Callable[[str, Any], None]
    ) -> Ended:
        inside, wall = int(process.launch.env["PORT"]), process.launch.wall
        async with contextlib.AsyncExitStack() as stack:
            where = inside if wall is None else await stack.enter_async_context(window(wall, inside))
            return await self._asked(process, attempt, given, f"http://{HOST}:{where}", show)

    async def _asked(
        self, process: Process, attempt: Attempt, given: bytes, base: str, show: Callable[[str, Any], None]
    ) -> Ended:
        from perdure.hosting.agentcore import invoke

        asked = asyncio.ensure_future(invoke(base, given, session=attempt.seat.run_id, show=show))
        ended = asyncio.ensure_future(process.wait())
        try:
            await asyncio.wait((asked, ended), return_when=asyncio.FIRST_COMPLETED)
            if asked.done() and asked.exception() is None:
                return Ended("result", result=_as_json(asked.result()))
            await asyncio.wait((ended,), timeout=LAST_WORDS_S)  # its own last words say more, if it is dying
            if not ended.done():
                asked.result()  # raises what was wrong with the answer
            tail = ended.result().output_tail[-TAIL_SHOWN:]
            text = f"the program ended with {ended.result().reason} before it answered" + (
                f": {tail}" if tail else ""
            )
            return Ended("failed", error=Failure(code="program-failed", message=text))
        finally:
            for task in (asked, ended):
                task.cancel()
            await asyncio.gather(asked, ended, return_exceptions=True)


LAST_WORDS_S = 1.0
TAIL_SHOWN = 2_000  # characters of a failed program's last output in its error


def _record(attempt: Attempt) -> None:
    """Note in the audit log which wall an attempt runs behind."""
    seat = attempt.seat
    record = AuditRecord(
        kind="sandbox", at_ms=seat.now_ms(), run=seat.run_id, agent=seat.agent, name="program", tier=attempt.within,
        refs={"attempt": str(attempt.number)},
    )  # fmt: skip
    seat.later(lambda tx: tx.audit(record))


def _folder_of(program: Program, workspace: Workspace) -> Path:
    """Where a program starts."""
    return Path(program.cwd).absolute() if program.cwd else workspace.work


def _fresh(folder: Path, run: str, attempt: int) -> Workspace:
    """A workspace for an attempt; what is left of the attempt before is killed and removed first."""
    reap(Workspace.folder(folder, run))
    return Workspace.make(folder, run, attempt)


@contextlib.asynccontextmanager
async def _ending(work: Any) -> Any:
    """A task that ends with the block."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _as_json(data: bytes) -> bytes:
    """``data`` if it is JSON, else its text as a JSON string."""
    try:
        msgspec.json.decode(data)
    except msgspec.DecodeError:
        return msgspec.json.encode(data.decode(errors="replace"))
    return data


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as found:
        found.bind((HOST, 0))
        port: int = found.getsockname()[1]
        return port


def _absolute(path: str) -> str:
    return str(Path(path).absolute())
