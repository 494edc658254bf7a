"""A program around our MCP client, as the conformance suite starts it: the address of a server is its last argument.

It does what the gateway does: lists the tools and uses them. The suite says in the environment what it wants beyond.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from perdure.core.errors import PerdureError, ToolFailedError
from perdure.core.tools import ToolUse
from perdure.tools.mcp_client import McpToolset

VALUES = {"string": "text", "integer": 2, "number": 2, "boolean": True, "object": {}, "array": []}


def arguments(schema: dict[str, Any]) -> dict[str, Any]:
    """Something that fits a simple schema."""
    properties = schema.get("properties", {})
    return {name: VALUES.get(properties[name].get("type"), "text") for name in properties}


async def main() -> int:
    context = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT") or "{}")
    tools = McpToolset("suite", url=sys.argv[-1], timeout_ms=10_000)
    failed = 0
    try:
        await tools.open()
        known = {tool.spec.name: tool for tool in await tools.tools()}
        wanted = [(call["name"], call.get("arguments", {})) for call in context.get("toolCalls", [])]
        wanted = wanted or [(name, arguments(tool.spec.parameters)) for name, tool in known.items()]
        schemas = [tool.spec.parameters for tool in known.values()]
        wanted = [
            (name, {**given, "schema": schemas[0]} if "schema" in given else given) for name, given in wanted
        ]
        for number, (name, given) in enumerate(wanted):
            if name not in known:
                continue
            try:
                output = await known[name].call(ToolUse(run="run", key=f"run/{number}", arguments=given))
                print(name, output.value)
            except ToolFailedError as error:
                print(name, error)
    except PerdureError as error:
        print(error, file=sys.stderr)
        failed = 1
    finally:
        await tools.close()
    return failed


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
