"""AgentCore's container contract, from both sides, with real processes."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from perdure import ProgramFailedError, Runtime, process

PROGRAM = """
import http.server, json, os, sys, urllib.request

class Handler(http.server.BaseHTTPRequestHandler):
    def reply(self, data, kind="application/json", status=200):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.reply(b'{"status": "Healthy"}')

    def do_POST(self):
        payload = json.loads(self.rfile.read(int(self.headers["content-length"])))
        session = self.headers["X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"]
        if payload.get("how") == "stream":
            self.reply(b'data: "one"\\n\\ndata: {"last": 2}\\n\\n', "text/event-stream")
        elif payload.get("how") == "fail":
            self.reply(b'{"error": "no"}', status=500)
        elif payload.get("how") == "die":
            sys.stderr.write("dying words\\n"); sys.stderr.flush()
            os._exit(3)
        else:
            self.reply(json.dumps({"echo": payload, "session": len(session)}).encode())

    def log_message(self, *_):
        pass

http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


async def run(folder: Path, payload: object) -> object:
    path = folder / "container.py"
    path.write_text(PROGRAM)
    agent = process("container", [sys.executable, str(path)], kind="agentcore", restarts_max=1, backoff=0.01)
    async with Runtime.open(folder / "data", agents=[agent]) as runtime:
        handle = await runtime.start("container", payload)
        return await handle.result(60)


async def test_a_container_made_for_agentcore_is_a_hosted_program(tmp_path: Path) -> None:
    answer = await run(tmp_path, {"prompt": "hello"})
    assert answer == {"echo": {"prompt": "hello"}, "session": 33}


async def test_the_last_event_of_a_stream_is_its_result(tmp_path: Path) -> None:
    assert await run(tmp_path, {"how": "stream"}) == {"last": 2}


@pytest.mark.parametrize(("how", "told"), [("fail", "status 500"), ("die", "dying words")])
async def test_a_container_that_fails_says_how(tmp_path: Path, how: str, told: str) -> None:
    with pytest.raises(ProgramFailedError, match=told):
        await run(tmp_path, {"how": how})


APP = """
from perdure import Run, agent

@agent("echo")
async def echo(run: Run, prompt: str) -> dict:
    if prompt == "fail":
        raise ValueError("no")
    return {"said": prompt}
"""


def test_an_app_of_ours_answers_there(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    worker = subprocess.Popen(
        [sys.executable, "-m", "perdure.cli", "work", "app.py", "--agentcore", "127.0.0.1:0", "--json"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert worker.stdout is not None
        worker.stdout.readline()
        place = json.loads(worker.stdout.readline())["agentcore"]

        def ask(path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
            request = urllib.request.Request(f"http://{place}{path}", body, headers)
            try:
                with urllib.request.urlopen(request, timeout=30) as response:
                    return response.status, response.read()
            except urllib.error.HTTPError as error:
                return error.code, error.read()

        assert ask("/ping") == (200, b'{"status":"Healthy"}')
        assert ask("/invocations", b'{"prompt": "hi"}') == (200, b'{"said":"hi"}')
        assert ask("/invocations", b'"hi"') == (200, b'{"said":"hi"}')
        status, body = ask("/invocations", b'"hi"', accept="text/event-stream")
        assert (status, body) == (200, b'data: {"result":{"said":"hi"}}\n\n')
        status, body = ask("/invocations", b"{")
        assert (status, json.loads(body)["error"]["code"]) == (400, "request-invalid")
        status, body = ask("/invocations", b'{"wrong": 1, "more": 2}')
        assert (status, json.loads(body)["error"]["code"]) == (400, "input-invalid")
        status, body = ask("/invocations", b'"fail"')
        assert (status, json.loads(body)["error"]["code"]) == (500, "agent-failed")
    finally:
        worker.terminate()
        worker.communicate()
