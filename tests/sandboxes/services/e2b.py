"""What E2B's SDK needs of its service: lifecycle, files, processes."""

from __future__ import annotations

import asyncio
import base64
import json
import struct

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.sandboxes.services.machines import Machines

KEY = "e2b_0123456789abcdef"
TOKEN = "token-of-a-sandbox"


def message(flags: int, body: dict) -> bytes:
    data = json.dumps(body).encode()
    return struct.pack(">BI", flags, len(data)) + data


def app(machines: Machines) -> Starlette:
    async def create(request: Request) -> Response:
        machines.calls += 1
        if request.headers.get("x-api-key") != KEY:
            return JSONResponse({"code": 401, "message": f"bad key {request.headers.get('x-api-key')}"}, 401)
        order = await request.json()
        name = machines.create(order)
        await asyncio.sleep(machines.create_delay_s)
        made = {
            "templateID": order["templateID"], "sandboxID": name, "clientID": "c", "envdVersion": "0.5.5",
            "envdAccessToken": TOKEN, "domain": None,
        }  # fmt: skip
        return JSONResponse(made, 201)

    async def delete(request: Request) -> Response:
        if request.headers.get("x-api-key") != KEY:
            return JSONResponse({"code": 401, "message": "no"}, 401)
        code = machines.delete(request.path_params["name"])
        return (
            Response(status_code=204) if code == 204 else JSONResponse({"code": code, "message": "no"}, code)
        )

    def box(request: Request) -> str | None:
        name = request.headers.get("e2b-sandbox-id", "")
        return name if request.headers.get("x-access-token") == TOKEN and name in machines.files else None

    async def put(request: Request) -> Response:
        name = box(request)
        if name is None:
            return JSONResponse({"message": "no such sandbox"}, 404)
        async with request.form() as form:
            written = []
            for _, file in form.multi_items():
                path = request.query_params.get("path") or file.filename
                machines.write(name, path, await file.read())
                written.append({"name": path.rsplit("/", 1)[-1], "type": "file", "path": path})
        return JSONResponse(written)

    async def get(request: Request) -> Response:
        name = box(request)
        data = None if name is None else machines.read(name, request.query_params["path"])
        return JSONResponse({"message": "no such file"}, 404) if data is None else Response(data)

    async def start(request: Request) -> Response:
        name = box(request)
        if name is None:
            return JSONResponse({"code": "not_found", "message": "no such sandbox"}, 404)
        body = await request.body()
        flags, length = struct.unpack_from(">BI", body)
        assert (flags, len(body)) == (0, 5 + length)
        process = json.loads(body[5:])["process"]
        argv = (process["cmd"], *process.get("args", ()))

        async def events():
            yield message(0, {"event": {"start": {"pid": 7}}})
            if machines.lose_commands:
                return
            found = await machines.command(name, argv, process.get("envs"))
            for stream, data in (("stdout", found.stdout), ("stderr", found.stderr)):
                if data:
                    yield message(0, {"event": {"data": {stream: base64.b64encode(data).decode()}}})
            code = found.exit_code
            end = {"exitCode": code, "exited": True, "status": f"exit status {code}"}
            if code is None or code < 0:
                end = {"exitCode": -1, "exited": False, "status": "signal: killed", "error": "signal: killed"}
            yield message(0, {"event": {"end": end}})
            yield message(2, {})

        return StreamingResponse(events(), media_type="application/connect+json")

    async def health(request: Request) -> Response:
        return Response(status_code=204)

    return Starlette(
        routes=[
            Route("/v2/sandboxes", create, methods=["POST"]),
            Route("/sandboxes/{name}", delete, methods=["DELETE"]),
            Route("/files", put, methods=["POST"]),
            Route("/files", get, methods=["GET"]),
            Route("/health", health),
            Route("/process.Process/Start", start, methods=["POST"]),
        ]
    )
