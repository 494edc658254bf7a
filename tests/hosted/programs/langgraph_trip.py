"""An ordinary LangGraph agent with tools by langchain-mcp-adapters. Nothing in it knows of Perdure."""

import asyncio
import datetime
import os
import uuid

from langchain.agents import create_agent
from langchain_mcp_adapters.client import MultiServerMCPClient

system = "You book trips."
if os.getenv("NONDET"):
    system += f" Now: {datetime.datetime.now().isoformat()} session {uuid.uuid4()} n={os.getpid()}"
server = {
    "transport": "streamable_http",
    "url": os.environ["PERDURE_MCP_URL"],
    "headers": {"Authorization": f"Bearer {os.environ['PERDURE_MCP_TOKEN']}"},
}


async def main():
    tools = await MultiServerMCPClient({"trip": server}).get_tools()
    agent = create_agent("openai:" + os.environ.get("MODEL", "seq"), tools, system_prompt=system)
    asked = {"messages": [("user", "Book a trip to Rome.")]}
    if os.getenv("STREAM"):
        async for kind, part in agent.astream(asked, stream_mode=["messages", "values"]):
            result = part if kind == "values" else None
    else:
        result = await agent.ainvoke(asked)
    print("FINAL", result["messages"][-1].content)


asyncio.run(main())
