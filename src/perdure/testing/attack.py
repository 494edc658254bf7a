"""``python -m perdure.testing.attack [TIER ...]``: runs the attack programs behind the walls of this machine, and tells what got through.

Defensive: each program is executed inside the sandbox under test and nowhere else.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import tempfile
from pathlib import Path

from perdure.core.errors import SandboxUnavailableError
from perdure.core.sandbox import SandboxJob, Tier
from perdure.ports import Sandboxes
from perdure.runtime.walls import ConfiguredWalls, SandboxRules
from perdure.testing.conformance.sandbox_attacks import ATTACKS, PRELUDE

USUAL: tuple[Tier, ...] = ("namespace", "gvisor", "microvm")


async def attacked(sandboxes: Sandboxes) -> list[str]:
    """The names of the attacks that got through."""
    through: list[str] = []
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        secret = Path(folder, "secret")
        secret.write_text("host-secret")  # noqa: ASYNC240 - a few bytes, once
        abstract = f"perdure-attack-{os.getpid()}"
        env = {
            "HOST_FILE": str(secret), "HOST_PORT": str(server.getsockname()[1]), "HOST_PID": str(os.getpid()),
            "HOST_ABSTRACT": abstract,
        }  # fmt: skip
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"\0{abstract}")
            listener.listen()
            for name, code in ATTACKS.items():
                found = await sandboxes.run(SandboxJob(code=f"{PRELUDE}\n{code}", env=env))
                if b"ESCAPED" in found.stdout + found.stderr:
                    through.append(name)
    return through


async def _attack(tier: Tier) -> bool:
    """Whether a tier that can be had lets something through."""
    walls = ConfiguredWalls(SandboxRules(tiers=(tier,)))
    try:
        through = await attacked(await walls.at_least())
    except SandboxUnavailableError as error:
        print(f"{tier}: not here: {error.message}")
        return False
    finally:
        await walls.close()
    print(f"{tier}: {len(ATTACKS) - len(through)} of {len(ATTACKS)} attacks got nowhere")
    for name in through:
        print(f"  got through: {name}")
    return bool(through)


def main() -> int:
    """Attack the tiers that are named, or all."""
    tiers = [tier for tier in USUAL if tier in sys.argv[1:]] or list(USUAL)
    results = [asyncio.run(_attack(tier)) for tier in tiers]
    return 1 if any(results) else 0


if __name__ == "__main__":
    sys.exit(main())
