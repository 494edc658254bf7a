"""An ordinary Pydantic AI program. Nothing in it knows of Perdure."""

import asyncio
import datetime
import os
import uuid

from pydantic_ai import Agent
from pydantic_ai.mcp import MCPToolset

system = "You book trips."
if os.getenv("NONDET"):
    system += f" Now: {datetime.datetime.now().isoformat()} session {uuid.uuid4()} n={os.getpid()}"
headers = {"Authorization": f"Bearer {os.environ['PERDURE_MCP_TOKEN']}"}
tools = MCPToolset(os.environ["PERDURE_MCP_URL"], headers=headers)
agent = Agent("openai-chat:" + os.environ.get("MODEL", "seq"), instructions=system, toolsets=[tools])


async def main():
    if os.getenv("STREAM"):
        async with agent.run_stream("Book a trip to Rome.") as result:
            print("FINAL", (await result.get_output()).strip())
    else:
        print("FINAL", (await agent.run("Book a trip to Rome.")).output.strip())


asyncio.run(main())
