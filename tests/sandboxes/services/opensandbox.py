"""What OpenSandbox's specifications say of its lifecycle API and of the daemon in a sandbox."""

from __future__ import annotations

import json

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.sandboxes.services.machines import Machines

KEY = "open-sandbox-key"
TOKEN = "execd-token"
POLLS = 2  # until a sandbox runs


def app(machines: Machines) -> Starlette:
    waiting: dict[str, int] = {}

    def about(name: str) -> dict:
        waiting[name] -= 1
        state = "Running" if waiting[name] <= 0 else "Pending"
        return {
            "id": name,
            "status": {"state": state},
            "createdAt": "2026-01-01T00:00:00Z",
            "entrypoint": ["tail"],
        }

    def is_known(request: Request) -> bool:
        return request.headers.get("open-sandbox-api-key") == KEY

    async def create(request: Request) -> Response:
        if not is_known(request):
            return JSONResponse({"code": "UNAUTHORIZED", "message": "no"}, 401)
        order = await request.json()
        if order["timeout"] < 60 or not order["image"]["uri"] or not order["entrypoint"]:
            return JSONResponse({"code": "INVALID", "message": "bad order"}, 400)
        name = machines.create(order)
        waiting[name] = POLLS
        return JSONResponse(about(name), 202)

    async def one(request: Request) -> Response:
        name = request.path_params["name"]
        if not is_known(request) or name not in machines.files:
            return JSONResponse({"code": "NOT_FOUND", "message": "no"}, 404)
        if request.method == "DELETE":
            return Response(status_code=machines.delete(name))
        return JSONResponse(about(name))

    async def endpoint(request: Request) -> Response:
        name = request.path_params["name"]
        where = f"{request.url.netloc}/v1/sandboxes/{name}/port/44772"
        return JSONResponse({"endpoint": where, "headers": {"X-EXECD-ACCESS-TOKEN": TOKEN}})

    def box(request: Request) -> str | None:
        name = request.path_params["name"]
        known = request.headers.get("x-execd-access-token") == TOKEN and is_known(request)
        return name if known and name in machines.files else None

    async def ping(request: Request) -> Response:
        return Response(status_code=200 if box(request) else 404)

    async def upload(request: Request) -> Response:
        name = box(request)
        if name is None:
            return JSONResponse({"message": "no"}, 404)
        async with request.form() as form:
            pairs = zip(form.getlist("metadata"), form.getlist("file"), strict=True)
            for metadata, file in pairs:  # both are files there
                machines.write(name, json.loads(await metadata.read())["path"], await file.read())
        return Response()

    async def download(request: Request) -> Response:
        name = box(request)
        data = None if name is None else machines.read(name, request.query_params["path"])
        return JSONResponse({"message": "no"}, 404) if data is None else Response(data)

    async def command(request: Request) -> Response:
        name = box(request)
        if name is None:
            return JSONResponse({"message": "no"}, 404)
        order = await request.json()

        async def events():
            yield b'{"type":"init","text":"cmd-1","timestamp":1}\n\n'
            if machines.lose_commands:
                return
            found = await machines.command(name, ("/bin/bash", "-c", order["command"]), order.get("envs"))
            for kind, data in (("stdout", found.stdout), ("stderr", found.stderr)):
                if data:
                    event = {"type": kind, "text": data.decode(errors="replace"), "timestamp": 2}
                    yield b"data: " + json.dumps(event).encode() + b"\n\n"
            if found.exit_code == 0:
                yield b'{"type":"execution_complete","execution_time":1,"timestamp":3}\n\n'
            else:
                error = {"ename": "CommandExecError", "evalue": str(found.exit_code), "traceback": []}
                yield json.dumps({"type": "error", "error": error, "timestamp": 3}).encode() + b"\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    inside = "/v1/sandboxes/{name}/port/44772"
    return Starlette(
        routes=[
            Route("/v1/sandboxes", create, methods=["POST"]),
            Route("/v1/sandboxes/{name}", one, methods=["GET", "DELETE"]),
            Route("/v1/sandboxes/{name}/endpoints/44772", endpoint),
            Route(inside + "/ping", ping),
            Route(inside + "/files/upload", upload, methods=["POST"]),
            Route(inside + "/files/download", download),
            Route(inside + "/command", command, methods=["POST"]),
        ]
    )
