"""An API server with claims, the controller's answers, the router, and the runtime of the project's Python image."""

from __future__ import annotations

import re
import shlex

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.sandboxes.services.machines import Machines

TOKEN = "service-account-token"
POOL = "python-pool"
POLLS = 2
CLAIMS = "/apis/extensions.agents.x-k8s.io/v1beta1/namespaces/{namespace}/sandboxclaims"


def app(machines: Machines) -> Starlette:
    waiting: dict[str, int] = {}

    def claim(name: str) -> dict:
        waiting[name] -= 1
        pool = machines.orders[machines.made.index(name)]["spec"]["warmPoolRef"]["name"]
        if pool != POOL:
            condition = {
                "type": "Ready",
                "status": "False",
                "reason": "WarmPoolNotFound",
                "message": f"no {pool}",
            }
            return {"metadata": {"name": name}, "status": {"conditions": [condition]}}
        status: dict = {}
        if waiting[name] <= 0:
            ready = {"type": "Ready", "status": "True", "reason": "DependenciesReady"}
            status = {"conditions": [ready], "sandbox": {"name": f"pod-{name}", "podIPs": ["10.0.0.7"]}}
        return {"metadata": {"name": name}, "status": status}

    def is_known(request: Request) -> bool:
        return request.headers.get("authorization") == f"Bearer {TOKEN}"

    async def create(request: Request) -> Response:
        if not is_known(request):
            return JSONResponse({"kind": "Status", "message": "Unauthorized"}, 401)
        order = await request.json()
        lifecycle = order["spec"]["lifecycle"]
        assert order["kind"] == "SandboxClaim" and order["apiVersion"] == "extensions.agents.x-k8s.io/v1beta1"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", lifecycle["shutdownTime"])
        assert lifecycle["shutdownPolicy"] == "Delete" and order["metadata"]["generateName"] == "perdure-"
        name = machines.create(order)
        waiting[name] = POLLS
        return JSONResponse(claim(name), 201)

    async def one(request: Request) -> Response:
        name = request.path_params["name"]
        if not is_known(request) or name not in machines.files:
            return JSONResponse({"kind": "Status", "message": "not found"}, 404)
        if request.method == "DELETE":
            code = machines.delete(name)
            return JSONResponse({"kind": "Status", "status": "Success"}, 200 if code == 204 else code)
        return JSONResponse(claim(name))

    def box(request: Request) -> str | None:
        name = request.headers.get("x-sandbox-id", "").removeprefix("pod-")
        where = (request.headers.get("x-sandbox-namespace"), request.headers.get("x-sandbox-port"))
        return name if where == ("agents", "8888") and name in machines.files else None

    async def upload(request: Request) -> Response:
        name = box(request)
        if name is None:
            return JSONResponse({"detail": "no such sandbox"}, 502)
        async with request.form() as form:
            file = form["file"]
            machines.write(name, file.filename, await file.read())
        return JSONResponse({"message": "uploaded"})

    async def download(request: Request) -> Response:
        name = box(request)
        data = None if name is None else machines.read(name, request.path_params["path"])
        return JSONResponse({"message": "File not found"}, 404) if data is None else Response(data)

    async def execute(request: Request) -> Response:
        name = box(request)
        if name is None:
            return JSONResponse({"detail": "no such sandbox"}, 404)
        if machines.lose_commands:
            return JSONResponse({"detail": "bad gateway"}, 502)
        argv = shlex.split((await request.json())["command"])
        argv[0] = "/usr/bin/" + argv[0]
        found = await machines.command(name, tuple(argv))
        texts = [data.decode(errors="replace") for data in (found.stdout, found.stderr)]
        return JSONResponse({"stdout": texts[0], "stderr": texts[1], "exit_code": found.exit_code or 0})

    return Starlette(
        routes=[
            Route(CLAIMS, create, methods=["POST"]),
            Route(CLAIMS + "/{name}", one, methods=["GET", "DELETE"]),
            Route("/upload", upload, methods=["POST"]),
            Route("/download/{path:path}", download),
            Route("/execute", execute, methods=["POST"]),
        ]
    )
