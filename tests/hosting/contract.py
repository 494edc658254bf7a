"""A program that keeps the AgentCore contract with the standard library alone; what it does is chosen by its input."""

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SESSION = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"
answers = (
    iter(sys.argv[1].split(",")) if len(sys.argv) > 1 else iter(())
)  # what the first pings are answered with
is_busy = threading.Event()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status = next(answers, "HealthyBusy" if is_busy.is_set() else "Healthy")
        if status == "drop":
            return
        if status == "garbage":
            self.send(200, b"<html>starting</html>")
        elif status == "list":
            self.send(200, b"[]")
        elif status == "latin":
            self.send(200, b'{"status": "\xe9"}')
        else:
            self.send(503 if status == "503" else 200, json.dumps({"status": status}).encode())

    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = given.get("prompt", "echo")
        if prompt == "events":
            self.stream(
                [
                    b'data: "Hel"\n\n',
                    b'data: {"n"',
                    b": 1}\r\n\r\n",
                    b": comment\n\ndata: plain text\n\ndata: 2",
                ]
            )
        elif prompt == "failing events":
            self.stream([b'data: 1\n\ndata: {"error": "no luck", "error_type": "ValueError"}\n\n'])
        elif prompt == "broken":
            self.send_response(200)
            self.send_header("content-length", "100")
            self.end_headers()
            self.wfile.write(b"half")
        elif prompt == "die":
            os._exit(4)
        elif prompt == "error":
            self.send(500, b'{"error": "it went wrong"}')
        elif prompt == "text":
            self.send(200, b"plain \xff text", "text/plain")
        elif prompt == "large":
            self.send(200, b'"' + b"x" * 1024 * 1024 + b'"')
        elif prompt == "large event":
            self.stream([b"data: ", b"x" * 1024 * 1024, b"x\n\n"])
        elif prompt == "lines":
            self.stream([b'data: {"a":\ndata: 1}\n\n'])
        elif prompt == "separator":
            self.stream(['data: "a\u2028b"\n\n'.encode()])
        elif prompt == "not UTF-8":
            self.send(200, b'"\xff"')
        elif prompt == "moved":
            self.send(307, b"")
        elif prompt == "background":
            is_busy.set()
            threading.Timer(0.3, is_busy.clear).start()
            self.send(200, b'{"status": "started"}')
        elif prompt == "for ever":
            threading.Event().wait()
        else:
            seen = {"given": given, "session": self.headers[SESSION], "type": self.headers["content-type"]}
            self.send(200, json.dumps(seen).encode())

    def send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, chunks: list[bytes]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.end_headers()
        for chunk in chunks:
            self.wfile.write(chunk)
            self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
