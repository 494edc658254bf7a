# ruff: noqa
# mypy: ignore-errors
"""An ordinary agent program: a loop over the OpenAI API with tools over MCP. Nothing in it knows of Perdure."""

import datetime
import json
import os
import urllib.request
import uuid

MODEL_URL = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
TOOL_URL = os.environ["PERDURE_MCP_URL"]
KEY = os.environ["OPENAI_API_KEY"]
PROTOCOL = "2025-11-25"


def post(url, body):
    headers = {
        "authorization": f"Bearer {KEY}",
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": PROTOCOL,
    }
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=600) as response:
        text = response.read().decode()
    lines = [line[5:] for line in text.splitlines() if line.startswith("data:")]
    return json.loads(lines[-1] if lines else text)


def tool(method, **params):
    answer = post(TOOL_URL, {"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
    return answer["result"]


def main():
    offered = [
        {
            "type": "function",
            "function": {"name": t["name"], "description": t["description"], "parameters": t["inputSchema"]},
        }
        for t in tool("tools/list")["tools"]
    ]
    # The time and a random id in the prompt: no two starts of this program send the same bytes.
    system = (
        f"You book trips. It is {datetime.datetime.now()}, session {uuid.uuid4()}, process {os.getpid()}."
    )
    messages = [{"role": "system", "content": system}, {"role": "user", "content": input()}]
    while True:
        reply = post(MODEL_URL, {"model": "trip-planner", "messages": messages, "tools": offered})["choices"][
            0
        ]["message"]
        messages.append(reply)
        if not reply.get("tool_calls"):
            print(reply["content"])
            return
        for call in reply["tool_calls"]:
            print("calls", call["function"]["name"], call["function"]["arguments"], flush=True)
            result = tool(
                "tools/call",
                name=call["function"]["name"],
                arguments=json.loads(call["function"]["arguments"]),
            )
            text = result["content"][0]["text"]
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": text})


main()
