"""A provider that counts and misbehaves on demand, small programs as they are written by hand, and a runtime for them."""

from __future__ import annotations

import json
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from perdure import Agent, Price, Upstream, process

PRICES = {"small": Price(input="2.00", output="10.00")}
CALLS = 10  # of the trip: five model requests and five uses of tools
TURNS: tuple[tuple[tuple[str, dict[str, str]], ...], ...] = (
    (("look", {"what": "hotels"}),),
    (("look", {"what": "flights"}), ("look", {"what": "weather"})),
    (("book", {"what": "flight"}),),
    (("book", {"what": "hotel"}),),
)

# What every program here begins with. Nothing in it knows of Perdure but the addresses.
KIT = """
import datetime, json, os, signal, sys, threading, time, urllib.error, urllib.request, uuid
KEY, MODEL_URL, TOOL_URL = os.environ["OPENAI_API_KEY"], os.environ["OPENAI_BASE_URL"], os.environ["PERDURE_MCP_URL"]

def send(url, data, timeout=60, **more):
    headers = {"authorization": "Bearer " + KEY, "content-type": "application/json",
               "accept": "application/json, text/event-stream", "mcp-protocol-version": "2025-11-25"}
    headers.update({name.replace("_", "-"): value for name, value in more.items()})
    headers = {name: value for name, value in headers.items() if value is not None}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=timeout) as response:
            return response.status, dict(response.headers), response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read().decode()

def ask(messages, timeout=60, model="small", headers={}, **more):
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    body = json.dumps({"model": model, "messages": messages, **more}).encode()
    return send(MODEL_URL + "/chat/completions", body, timeout, **headers)

def said(messages, **more):
    status, _, text = ask(messages, **more)
    if status != 200:
        sys.exit(text)
    return json.loads(text)["choices"][0]["message"]

def rpc(method, **params):
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    status, _, text = send(TOOL_URL, body)
    lines = [line[5:] for line in text.splitlines() if line.startswith("data:")]
    return json.loads(lines[-1] if lines else text)

def use(name, **arguments):
    return rpc("tools/call", name=name, arguments=arguments)["result"]["content"][0]["text"]

def give(value):
    with open("result.json", "w") as file:
        json.dump(value, file)
"""

TRIP = '''
made = 0
def boundary(where):
    """After each call: kill -9 whom the test says, once for each boundary."""
    global made
    made += 1
    mark = where + "/killed-" + str(made)
    if WHOM and not os.path.exists(mark):
        open(mark, "w").close()
        if WHOM == "program":
            os.kill(os.getpid(), signal.SIGKILL)
        open(os.path.join(WHERE, "kill-the-runtime"), "w").close()  # from in here nobody can
        time.sleep(60)
        time.sleep(30)
system = f"It is {datetime.datetime.now()}, session {uuid.uuid4()}, process {os.getpid()}."
messages = [{"role": "system", "content": system}, {"role": "user", "content": input()}]
while True:
    reply = said(messages)
    boundary(WHERE)
    messages.append(reply)
    if not reply.get("tool_calls"):
        break
    for call in reply["tool_calls"]:
        text = use(call["function"]["name"], **json.loads(call["function"]["arguments"]))
        boundary(WHERE)
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": text})
print(reply["content"])
'''


def trip_turn(body: dict[str, Any]) -> dict[str, Any]:
    """The trip's model: which turn it is can be read from the request; ids are as random as a real model's."""
    results = sum(message["role"] == "tool" for message in body["messages"])
    for turn in TURNS:
        if results < len(turn):
            calls = [
                {"id": uuid.uuid4().hex, "type": "function",
                 "function": {"name": name, "arguments": json.dumps(arguments)}}
                for name, arguments in turn
            ]  # fmt: skip
            return {"role": "assistant", "content": None, "tool_calls": calls}
        results -= len(turn)
    return {"role": "assistant", "content": f"Booked, reference {uuid.uuid4().hex[:8]}"}


class Provider:
    """Answers model requests; what each answer is can be planned ahead."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.plan: list[Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]] = []
        self.turn: Callable[[dict[str, Any]], dict[str, Any]] = lambda _: {
            "role": "assistant",
            "content": f"word {uuid.uuid4().hex[:8]}",
        }
        self.hold = threading.Event()
        self.port = 0

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        self.asked.append(body)
        self.headers.append({name.lower(): value for name, value in handler.headers.items()})
        act = self.plan.pop(0) if self.plan else self.well
        act(handler, body)

    def well(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        """As it should be."""
        message = self.turn(body)
        if body.get("stream"):
            stream(handler, body, message["content"])
            return
        told = {"id": uuid.uuid4().hex, "object": "chat.completion", "created": 1, "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": USAGE}  # fmt: skip
        reply(handler, 200, json.dumps(told).encode())

    def late(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        """Well, but not before the test says so."""
        self.hold.wait(30)
        self.well(handler, body)

    def upstream(self, **more: Any) -> Upstream:
        """The configuration to reach it."""
        base = f"http://127.0.0.1:{self.port}/v1"
        given: dict[str, Any] = {"models": ("small", "dear-*"), "prices": PRICES, "attempts": 1, **more}
        return Upstream(name="provider", base_url=base, **given)


USAGE = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}


def reply(handler: BaseHTTPRequestHandler, status: int, data: bytes, **headers: str) -> None:
    """One whole answer."""
    handler.send_response(status)
    for name, value in {"content-type": "application/json", **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("content-length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def stream(handler: BaseHTTPRequestHandler, body: dict[str, Any], text: str, *, breaks: bool = False) -> None:
    """One streamed answer; with ``breaks`` the connection closes in the middle."""
    handler.send_response(200)
    handler.send_header("content-type", "text/event-stream")
    handler.send_header("connection", "close")
    handler.end_headers()
    handler.close_connection = True
    common = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
    parts: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": word}}]} for word in text.split()
    ]
    if not breaks:
        parts.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        if body.get("stream_options", {}).get("include_usage"):
            parts.append({"choices": [], "usage": USAGE})
    for part in parts:
        handler.wfile.write(b"data: " + json.dumps({**common, **part}).encode() + b"\n\n")
    if not breaks:
        handler.wfile.write(b"data: [DONE]\n\n")


@contextmanager
def providing() -> Iterator[Provider]:
    """A provider on a free port."""
    provider = Provider()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            try:
                provider.answer(self)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    provider.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield provider
    finally:
        provider.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()


def program(folder: Path, text: str, *, tools: Any = (), name: str = "p", **more: Any) -> Agent:
    """An agent from the text of a program."""
    path = folder / f"{name}.py"
    path.write_text(KIT + text)
    given = {"backoff": 0.001, "hold": 0.2, **more}
    given.setdefault("writes", [str(path.parent)])  # where programs tell the tests how far they are
    return process(name, [sys.executable, "-S", str(path)], tools=list(tools), **given)
