"""Baseline of the gateway: the same stack (Starlette, uvicorn, httpx2), the same passing through, and no journal at all.

``python -m bench.subjects.bare_proxy UPSTREAM`` prints its port and serves.
"""

from __future__ import annotations

import socket
import sys

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route


def application(upstream: str) -> Starlette:
    """Passes ``/v1/chat/completions`` on with a key of its own."""
    client = httpx2.AsyncClient(
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=128),
        timeout=httpx2.Timeout(None),
        trust_env=False,
    )
    headers = {
        "authorization": "Bearer key",
        "content-type": "application/json",
        "accept-encoding": "identity",
    }

    async def completions(request: Request) -> Response:
        body = await request.body()
        prepared = client.build_request("POST", f"{upstream}/chat/completions", content=body, headers=headers)
        answer = await client.send(prepared, stream=True)
        kind = answer.headers.get("content-type", "application/json")
        if "event-stream" in kind:
            closing = BackgroundTask(answer.aclose)
            return StreamingResponse(
                answer.aiter_bytes(), answer.status_code, {"content-type": kind}, background=closing
            )
        data = await answer.aread()
        await answer.aclose()
        return Response(data, answer.status_code, {"content-type": kind})

    return Starlette(routes=[Route("/v1/chat/completions", completions, methods=["POST"])])


def main() -> None:
    """Serve until killed, with the settings of the gateway's own server."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.bind(("127.0.0.1", 0))
    bound.listen(256)  # whoever reads the port may connect at once
    print(bound.getsockname()[1], flush=True)
    config = uvicorn.Config(
        application(sys.argv[1]), log_level="error", access_log=False, lifespan="off", timeout_keep_alive=75,
        ws="none", server_header=False, date_header=False,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[bound])


if __name__ == "__main__":
    main()
