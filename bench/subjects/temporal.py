"""Rival: Temporal's dev server on a database file, with a worker in this process; regular activities."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from pathlib import Path

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from bench import servers
from bench.workload import token

QUEUE = "bench"
SLOTS = 512  # more than the runs in flight, so that the worker's own limits are never the bottleneck
TIMEOUT = timedelta(seconds=60)


@activity.defn
async def token_activity(i: int) -> str:
    """The step."""
    return token(i)


@workflow.defn(sandboxed=False)
class Regular:
    """The run, with steps as activities."""

    @workflow.run
    async def run(self, steps: int) -> list[str]:
        """Activities one after the other."""
        return [
            await workflow.execute_activity(token_activity, i, start_to_close_timeout=TIMEOUT)
            for i in range(steps)
        ]


@workflow.defn(sandboxed=False)
class Local:
    """The run, with steps as local activities: recorded only when the workflow task completes."""

    @workflow.run
    async def run(self, steps: int) -> list[str]:
        """Local activities one after the other."""
        return [
            await workflow.execute_local_activity(token_activity, i, start_to_close_timeout=TIMEOUT)
            for i in range(steps)
        ]


class Bench:
    """A fresh server for each measurement."""

    workflow: type[Regular] | type[Local] = Regular

    async def setup(self, directory: Path) -> None:
        """Start server and worker."""
        port, http, metrics = servers.free_ports(3)
        command = [
            servers.executable("temporal"),
            "server",
            "start-dev",
            "--headless",
            "--log-level",
            "error",
        ]
        command += [
            "--ip",
            "127.0.0.1",
            "--port",
            str(port),
            "--http-port",
            str(http),
            "--metrics-port",
            str(metrics),
        ]
        self._server = servers.Server([*command, "--db-filename", str(directory / "temporal.db")], directory)
        await self._server.wait_for_port(port)
        self._client = await _connect(port)
        self._worker = Worker(
            self._client,
            task_queue=QUEUE,
            workflows=[Regular, Local],
            activities=[token_activity],
            workflow_runner=UnsandboxedWorkflowRunner(),
            max_concurrent_activities=SLOTS,
            max_concurrent_local_activities=SLOTS,
            max_concurrent_workflow_tasks=SLOTS,
        )
        self._task = asyncio.create_task(self._worker.run())

    async def run(self, steps: int) -> list[str]:
        """One workflow."""
        work = self.workflow.run
        return await self._client.execute_workflow(work, steps, id=uuid.uuid4().hex, task_queue=QUEUE)

    async def teardown(self) -> None:
        """End the server first: what is in flight is of no interest any more."""
        self._server.stop()
        self._task.cancel()


async def _connect(port: int) -> Client:
    for _ in range(100):
        try:
            return await Client.connect(f"127.0.0.1:{port}")
        except RuntimeError:
            await asyncio.sleep(0.1)
    raise RuntimeError("the Temporal dev server took no connection within 10 s")
