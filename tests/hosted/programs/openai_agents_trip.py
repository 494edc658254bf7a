"""An ordinary OpenAI Agents SDK program (Responses API). Nothing in it knows of Perdure."""

import asyncio
import datetime
import os
import uuid

from agents import Agent, Runner, set_tracing_disabled
from agents.mcp import MCPServerStreamableHttp

set_tracing_disabled(True)
system = "You book trips."
if os.getenv("NONDET"):
    system += f" Now: {datetime.datetime.now().isoformat()} session {uuid.uuid4()} n={os.getpid()}"
server = {
    "url": os.environ["PERDURE_MCP_URL"],
    "headers": {"Authorization": f"Bearer {os.environ['PERDURE_MCP_TOKEN']}"},
}


async def main():
    async with MCPServerStreamableHttp(params=server, name="trip") as tools:
        agent = Agent(
            name="trip", instructions=system, model=os.environ.get("MODEL", "seq"), mcp_servers=[tools]
        )
        if os.getenv("STREAM"):
            result = Runner.run_streamed(agent, "Book a trip to Rome.")
            async for _ in result.stream_events():
                pass
        else:
            result = await Runner.run(agent, "Book a trip to Rome.")
        print("FINAL", result.final_output)


asyncio.run(main())
