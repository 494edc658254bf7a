"""Rival: the Restate server (binary from npm) with a Python service under hypercorn in this process."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import restate
from hypercorn.asyncio import serve
from hypercorn.config import Config

from bench import servers
from bench.poster import Poster
from bench.workload import token

service = restate.Service("bench")


@service.handler("run")
async def run_handler(context: restate.Context, steps: int) -> list[str]:
    """The run: ``ctx.run`` is Restate's durable step."""
    return [await context.run_typed("token", token_step, i=i) for i in range(steps)]


async def token_step(i: int) -> str:
    """The step."""
    return token(i)


class Bench:
    """A fresh server for each measurement, with its defaults; only ports, data and telemetry are set."""

    async def setup(self, directory: Path) -> None:
        """Start the server and the service, and make them known to each other."""
        node, ingress, admin, app, tokio = servers.free_ports(5)
        environment = {
            "RESTATE_BASE_DIR": str(directory / "restate"),
            "RESTATE_LISTEN_MODE": "tcp",
            "RESTATE_BIND_ADDRESS": f"127.0.0.1:{node}",
            "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{ingress}",
            "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{admin}",
            "RESTATE_TOKIO_CONSOLE__BIND_ADDRESS": f"127.0.0.1:{tokio}",
            "RESTATE_DISABLE_TELEMETRY": "true",
            "RESTATE_LOG_FILTER": "error",
            "DO_NOT_TRACK": "1",
        }
        binary = await asyncio.to_thread(servers.restate_binary)
        self._server = servers.Server([binary, "--no-logo"], directory, environment)
        config = Config()
        config.bind = [f"127.0.0.1:{app}"]
        config.accesslog = config.errorlog = None
        self._stopping = asyncio.Event()
        self._app = asyncio.create_task(
            serve(restate.app([service]), config, shutdown_trigger=self._stopping.wait)
        )
        for port in (app, ingress, admin):
            await self._server.wait_for_port(port)
        self._ingress = Poster(ingress)
        await self._register(Poster(admin), app)

    async def _register(self, admin: Poster, app: int) -> None:
        for _ in range(100):
            status, answer = await admin.post(
                "/deployments", {"uri": f"http://127.0.0.1:{app}", "force": True}
            )
            if status < 300:
                admin.close()
                return
            await asyncio.sleep(0.1)
        raise RuntimeError(f"Restate refused the deployment: {status} {answer[:200]!r}")

    async def run(self, steps: int) -> list[str]:
        """One invocation."""
        status, answer = await self._ingress.post("/bench/run", steps)
        if status != 200:
            raise RuntimeError(f"Restate answered {status} {answer[:200]!r}")
        return list(json.loads(answer))

    async def teardown(self) -> None:
        """End the server first, then the service."""
        self._server.stop()
        self._stopping.set()
        self._ingress.close()
