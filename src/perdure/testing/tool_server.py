"""An MCP server with tools to test against: real effects, each a line of a log. ``python -m perdure.testing.tool_server``."""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
from pathlib import Path

import uvicorn
from mcp.server import MCPServer
from mcp_types import ToolAnnotations

from perdure.testing.provider import listening


def server(log: Path, pause_s: float = 0.0, pause_before_s: float = 0.0) -> MCPServer:
    """The server: ``lookup`` only reads; ``book`` has an effect and must not be done twice; ``slow`` takes its time.

    Args:
        log: takes a line of JSON for each execution, and before it one (``asked``) for each booking that has come in.
        pause_s: between the first booking and its answer.
        pause_before_s: between the arrival of the first booking and its effect.
    """
    made = MCPServer("trip", log_level="ERROR")
    asked: list[str] = []

    def note(name: str, argument: str) -> None:
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"tool": name, "argument": argument}) + "\n")

    @made.tool(annotations=ToolAnnotations(read_only_hint=True))
    async def lookup(q: str) -> str:
        """Look something up."""
        note("lookup", q)
        return f"{q}: 42 EUR, quote {secrets.token_hex(4)}"

    @made.tool(annotations=ToolAnnotations(destructive_hint=True, idempotent_hint=False))
    async def book(item: str) -> str:
        """Book an item; this cannot be taken back."""
        asked.append(item)
        is_first = len(asked) == 1
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"asked": "book", "argument": item}) + "\n")
        if is_first:
            await asyncio.sleep(pause_before_s)  # a kill that comes now finds the effect not done
        note("book", item)
        if is_first:
            await asyncio.sleep(
                pause_s
            )  # a kill that comes now finds the effect done and the answer not sent
        return f"{item} booked as {secrets.token_hex(4)}"

    @made.tool(annotations=ToolAnnotations(read_only_hint=True))
    async def slow(seconds: float) -> str:
        """Take a while."""
        await asyncio.sleep(seconds)
        return "done"

    return made


def main() -> None:
    """Serve until killed, over streamable HTTP (the port is the first line of the output) or on stdin and stdout."""
    parser = argparse.ArgumentParser(prog="python -m perdure.testing.tool_server", description=__doc__)
    parser.add_argument("--log", type=Path, required=True, help="takes a line of JSON for each execution")
    parser.add_argument("--pause-s", type=float, default=0.0, help="between the first booking and its answer")
    parser.add_argument("--pause-before-s", type=float, default=0.0, help="before the first booking's effect")
    parser.add_argument("--stdio", action="store_true")
    asked = parser.parse_args()
    made = server(asked.log, asked.pause_s, asked.pause_before_s)
    if asked.stdio:
        made.run(transport="stdio")
        return
    bound = listening()
    print(bound.getsockname()[1], flush=True)
    config = uvicorn.Config(made.streamable_http_app(), log_level="critical", access_log=False)
    asyncio.run(uvicorn.Server(config).serve(sockets=[bound]))


if __name__ == "__main__":
    main()
