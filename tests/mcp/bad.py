"""An MCP server over stdio that misbehaves as its first argument says. Speaks 2025-11-25 by hand, so that nothing helps it."""

import json
import os
import subprocess
import sys
import time

HOW = sys.argv[1]


def write(data):
    sys.stdout.write(data + "\n")
    sys.stdout.flush()


def answer(number, result):
    write(json.dumps({"jsonrpc": "2.0", "id": number, "result": result}))


def tool(name, **annotations):
    return {"name": name, "inputSchema": {"type": "object"}, "annotations": annotations}


TOOLS = [
    tool("go"),
    tool("look", readOnlyHint=True),
    tool("put", idempotentHint=True),
    {"name": "a bad name", "inputSchema": {"type": "object"}},
]


def use(number, params):
    """One call, in the way that is asked for."""
    meta = params.get("_meta", {})
    if HOW == "die":
        sys.stderr.write("out of luck\n")
        sys.stderr.flush()
        os._exit(3)
    if HOW == "once" and not os.path.exists(sys.argv[2]):
        open(sys.argv[2], "w").close()
        os._exit(4)
    if HOW == "flood":
        while True:
            sys.stdout.write("x" * 1_000_000)
    if HOW == "noise":
        while True:
            write("this is not JSON")
    if HOW == "silent":
        return
    if HOW == "deaf":
        time.sleep(60)
    if HOW == "wrong":
        answer(number, {"content": "not a list"})
        return
    if HOW == "refuse":
        write(
            json.dumps({"jsonrpc": "2.0", "id": number, "error": {"code": -32602, "message": "unknown tool"}})
        )
        return
    if HOW == "error":
        answer(number, {"content": [{"type": "text", "text": "no such order"}], "isError": True})
        return
    if HOW in ("elicit", "sample"):
        method = {"elicit": "elicitation/create", "sample": "sampling/createMessage"}[HOW]
        asked = {
            "message": "approve?",
            "requestedSchema": {"type": "object", "properties": {}},
            "mode": "form",
        }
        if HOW == "sample":
            asked = {"messages": [], "maxTokens": 5}
        write(json.dumps({"jsonrpc": "2.0", "id": "ask-1", "method": method, "params": asked}))
        told = json.loads(sys.stdin.readline())
        answer(number, {"content": [{"type": "text", "text": json.dumps(told)}]})
        return
    if HOW == "env":
        answer(number, {"content": [], "structuredContent": dict(os.environ)})
        return
    if HOW == "child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        answer(number, {"content": [{"type": "text", "text": str(child.pid)}]})
        return
    text = json.dumps({"key": meta.get("dev.perdure/idempotency-key"), "arguments": params.get("arguments")})
    answer(number, {"content": [{"type": "text", "text": text}, {"type": "text", "text": "and more"}]})


def main():
    if HOW == "stillborn":
        sys.stderr.write("no configuration\n")
        sys.exit(7)
    if HOW == "mute":
        time.sleep(60)
    if HOW == "chatty":
        for number in range(50):
            write(f"starting up, step {number}")
            sys.stderr.write("x" * 5_000 + "\n")
    if HOW == "stubborn":
        import signal

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for line in sys.stdin:
        message = json.loads(line)
        method, number = message.get("method"), message.get("id")
        if method == "initialize":
            told = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}}
            answer(number, {**told, "serverInfo": {"name": "bad", "version": "0"}})
        elif method == "tools/list":
            answer(number, {"tools": TOOLS})
        elif method == "tools/call":
            use(number, message["params"])
        elif number is not None and method is not None:
            error = {"code": -32601, "message": "method not found"}
            write(json.dumps({"jsonrpc": "2.0", "id": number, "error": error}))
    if HOW == "stubborn":
        time.sleep(60)


main()
