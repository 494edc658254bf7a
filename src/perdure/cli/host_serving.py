"""``worker --role sandbox`` and ``sandbox enrol``."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from perdure.cli.output import Out
from perdure.core.errors import UsageError
from perdure.runtime.config import world_from
from perdure.runtime.secrets import LocalSecrets
from perdure.runtime.system import SystemClock
from perdure.runtime.wall_makers import makers
from perdure.runtime.walls import ConfiguredWalls
from perdure.sandboxes.host_keys import Role, context
from perdure.sandboxes.host_keys import enrol as enrolled
from perdure.sandboxes.host_server import SandboxHost


@dataclass(frozen=True)
class HostOrder:
    """What a sandbox host is started with; see the command."""

    clients: tuple[str, ...]
    listen: str
    certificate: Path
    key: Path
    authority: Path
    at_once: int
    config: Path | None


def enrol(out: Out, name: str, *, role: Role, folder: Path, days: int) -> None:
    """Make a certificate, and say what goes where."""
    certificate, key, authority = enrolled(folder, name, role, clock=SystemClock(), days=days)
    if out.json:
        out.emit(
            {
                "name": name,
                "role": role,
                "certificate": str(certificate),
                "key": str(key),
                "authority": str(authority),
            }
        )
        return
    out.text(f"{certificate}\n{key}\n{authority}")
    out.note(f"these three go to `{name}`, and count for {days} days; {folder / 'authority.key'} stays here")


def host(order: HostOrder, out: Out) -> int:
    """Serve until a signal comes."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    address, _, port = order.listen.rpartition(":")
    if not address or not port.isdigit() or int(port) > 65_535:
        raise UsageError(f"`{order.listen}` is no address to listen at; expected ADDRESS:PORT")
    if order.at_once < 1:
        raise UsageError(f"`--at-once` is at least 1, found {order.at_once}")
    asyncio.run(_serve(order, out, address.strip("[]"), int(port)))
    return 0


async def _serve(order: HostOrder, out: Out, address: str, port: int) -> None:
    tls = context("host", order.certificate, order.key, order.authority)
    secrets = LocalSecrets.default(Path())
    rules = world_from(order.config, os.environ, secrets).sandboxes
    walls = ConfiguredWalls(rules, makers(secrets))
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    try:
        sandboxes = await walls.at_least()
        made = SandboxHost(sandboxes, rules.limits, tls, clients=order.clients, at_once=order.at_once)
        try:
            bound = await made.listen(address, port)
            if out.json:
                out.emit(
                    {
                        "listening": f"{address}:{bound}",
                        "tier": sandboxes.tier,
                        "parts": dict(sandboxes.parts),
                    }
                )
            else:
                out.text(
                    f"sandboxes of tier {sandboxes.tier} at {address}:{bound} for {', '.join(order.clients)}"
                )
            await stopped.wait()
        finally:
            await made.close()
    finally:
        await walls.close()
