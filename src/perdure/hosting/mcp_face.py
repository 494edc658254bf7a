"""The face of the gateway for programs that speak MCP: one virtual server for each run, over streamable HTTP.

It keeps no sessions: a run token says who asks, so a request of either protocol can be answered by itself. What a
client puts into ``_meta`` or a session id never reaches a tool.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from perdure.core.errors import PerdureError, TokenRefusedError
from perdure.core.tools import ToolSpec
from perdure.hosting import mcp_envelope as envelope
from perdure.hosting import mcp_guard as guard
from perdure.hosting import mcp_wire as wire
from perdure.hosting.mcp_calls import Call, Caller, Calls, Task
from perdure.hosting.mcp_wire import Fault
from perdure.ports import Clock, Entropy

STREAM_AFTER_MS = 500  # a call that takes longer is answered as a stream, which can be kept alive
TASK_AFTER_MS = 5_000  # a call that takes longer becomes a task where the client can deal with it
PING_S = 15  # proxies and clients give up on connections that are silent for longer

Trace = Callable[[Mapping[str, str]], AbstractContextManager[Any]]


class McpFace:
    """An ASGI application that answers at whatever path it is mounted on.

    Args:
        find: the caller that a request's token stands for; raises ``TokenRefusedError``.
        clock: dates tasks.
        entropy: names tasks.
        hosts: names, besides those of this machine, that a ``Host`` or ``Origin`` header may have.
        trace: what to enter while a use begins, given its ``traceparent`` and ``tracestate``.
        task_after_ms: how long a call may take before it becomes a task for clients that know tasks.
    """

    def __init__(
        self,
        find: Callable[[Request], Caller],
        clock: Clock,
        entropy: Entropy,
        *,
        hosts: Sequence[str] = (),
        trace: Trace | None = None,
        task_after_ms: int = TASK_AFTER_MS,
    ) -> None:
        self._find = find
        self._hosts = {*guard.LOOPBACK, *hosts}
        self._trace = trace
        self._task_after_ms = task_after_ms
        self._server = {"name": "perdure", "version": importlib.metadata.version("perdure")}
        self.calls = Calls(clock, entropy)
        self._with_headers: WeakKeyDictionary[Caller, Sequence[ToolSpec]] = WeakKeyDictionary()
        self._handshake: dict[str, _Handler] = {
            "initialize": self._initialize,
            "ping": self._ping,
            "tools/list": self._list,
            "tasks/get": self._task_get,
            "tasks/list": self._task_list,
            "tasks/cancel": self._task_cancel,
        }
        self._modern: dict[str, _Handler] = {
            "server/discover": self._discover,
            "tools/list": self._list,
            "tasks/get": self._task_get,
            "tasks/update": self._task_update,
            "tasks/cancel": self._task_cancel,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        try:
            response = await self._answer(request)
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    async def close(self) -> None:
        """Stop every use that is under way and wait until it has stopped."""
        await self.calls.close()

    # -- HTTP
    async def _answer(self, request: Request) -> Response:
        refused = guard.foreign(request.headers, self._hosts)
        if refused is not None:
            return refused
        if request.method != "POST":
            return Response(status_code=405, headers={"allow": "POST"})
        if not request.headers.get("content-type", "").lower().startswith("application/json"):
            return guard.refusal(415, "content-type", "expected content type `application/json`")
        try:
            caller = self._find(request)
        except TokenRefusedError as error:
            return guard.refusal(401, error.code, str(error), {"www-authenticate": "Bearer"})
        body = await guard.body_of(request)
        if isinstance(body, Response):
            return body
        number: Any = None
        is_modern = True
        try:
            message = guard.decoded(body)
            if envelope.is_answer(message):
                return Response(status_code=202)  # nothing is ever asked here, so no answer is waited for
            if isinstance(message, dict) and wire.is_id(message.get("id")):
                number = message["id"]
            method, number, params = envelope.parsed(message)
            is_modern = envelope.is_modern(method, params, request.headers)
            if number is None:
                return _noted(is_modern, request.headers)
            ask = _Ask(caller, method, number, params, request.headers, is_modern)
            return await self._dispatch(ask)
        except Fault as fault:
            is_broken = number is None or fault.code in (wire.PARSE_ERROR, wire.INVALID_REQUEST)
            status = wire.STATUSES.get(fault.code, 200) if is_modern or is_broken else 200
            return guard.json_answer(wire.refusal(number, fault), status)

    # -- methods
    async def _dispatch(self, ask: _Ask) -> Response:
        if ask.is_modern:
            ask.capabilities = envelope.check(ask.method, ask.params, ask.headers)
            if ask.method.startswith("tasks/") and ask.method in self._modern:
                _need_tasks(ask.capabilities)
        if ask.method == "tools/call":
            return await self._call(ask)
        if ask.method == "tasks/result" and not ask.is_modern:
            return await self._task_result(ask)
        handler = (self._modern if ask.is_modern else self._handshake).get(ask.method)
        if handler is None:
            raise Fault(wire.METHOD_NOT_FOUND, f"method `{ask.method:.80}` is not served here")
        try:
            result = await handler(ask)
        except PerdureError as error:
            raise Fault(wire.INTERNAL_ERROR, str(error), {"code": error.code}) from error
        return guard.json_answer(wire.reply(ask.number, self._complete(ask, result)))

    def _complete(self, ask: _Ask, result: Mapping[str, Any]) -> Mapping[str, Any]:
        """A result with what 2026-07-28 wants to see in each."""
        if not ask.is_modern:
            return result
        meta = {wire.META_SERVER: self._server, **result.get("_meta", {})}
        return {"resultType": "complete", **result, "_meta": meta}

    async def _initialize(self, ask: _Ask) -> dict[str, Any]:
        wanted = ask.params.get("protocolVersion")
        version = wanted if wanted in wire.HANDSHAKES else wire.HANDSHAKES[0]
        capabilities: dict[str, Any] = {"tools": {}}
        if version == wire.HANDSHAKES[0]:
            capabilities["tasks"] = {"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}}}
        return {"protocolVersion": version, "capabilities": capabilities, "serverInfo": self._server}

    async def _ping(self, ask: _Ask) -> dict[str, Any]:
        del ask
        return {}

    async def _discover(self, ask: _Ask) -> dict[str, Any]:
        del ask
        return {
            "supportedVersions": [wire.MODERN, *wire.HANDSHAKES],
            "capabilities": {"tools": {}, "extensions": {wire.TASKS: {}}},
            "ttlMs": wire.CATALOGUE_TTL_MS,
            "cacheScope": "private",
        }

    async def _list(self, ask: _Ask) -> dict[str, Any]:
        if ask.params.get("cursor") is not None:
            raise Fault(wire.INVALID_PARAMS, "no page has that cursor; all tools come on one page")
        specs = await ask.caller.specs()
        is_newest = ask.headers.get(envelope.VERSION_HEADER) == wire.HANDSHAKES[0]
        tools = {"tools": wire.listed(specs, can_be_task=is_newest)}
        if ask.is_modern:
            return {**tools, "ttlMs": wire.CATALOGUE_TTL_MS, "cacheScope": "private"}
        return tools

    async def _call(self, ask: _Ask) -> Response:
        name, arguments = ask.params.get("name"), ask.params.get("arguments")
        if not isinstance(name, str) or not isinstance(arguments, dict | None):
            raise Fault(wire.INVALID_PARAMS, "expected `name`, a string, and `arguments`, an object")
        arguments = arguments or {}
        if ask.is_modern and arguments:
            envelope.check_parameters(await self._headed(ask.caller), name, arguments, ask.headers)
        meta = envelope.meta_of(ask.params)
        trace = wire.trace_of(meta, ask.headers)
        within = self._trace(trace) if self._trace is not None and trace else None
        call = self.calls.start(ask.caller, name, arguments, within, wire.confidence_of(meta))
        if ask.is_modern and envelope.has_tasks(ask.capabilities):
            if not await _ends(call, self._task_after_ms):
                task = self.calls.keep(call)
                result = {**task.shown(is_modern=True), "resultType": "task"}
                return guard.json_answer(wire.reply(ask.number, self._complete(ask, result)))
        elif not ask.is_modern and isinstance(ask.params.get("task"), dict):
            task = self.calls.keep(call)
            return guard.json_answer(wire.reply(ask.number, {"task": task.shown(is_modern=False)}))
        token = meta.get("progressToken")
        return await self._deliver(ask, call, lambda: call.outcome, token if wire.is_id(token) else None)

    async def _headed(self, caller: Caller) -> Sequence[ToolSpec]:
        """The tools whose arguments are repeated in headers; a run's catalogue is pinned, so it is asked once."""
        found = self._with_headers.get(caller)
        if found is None:
            try:
                specs = await caller.specs()
            except PerdureError:
                return ()  # the use itself says what is wrong
            found = self._with_headers[caller] = envelope.with_headers(specs)
        return found

    async def _deliver(self, ask: _Ask, call: Call, outcome: _Outcome, token: str | int | None) -> Response:
        """Answer with the outcome of a call: at once if it ends soon, else as a stream with its progress."""

        def message(found: dict[str, Any] | Fault) -> bytes:
            if isinstance(found, Fault):
                return wire.refusal(ask.number, found)
            return wire.reply(ask.number, self._complete(ask, found))

        can_stream = "text/event-stream" in ask.headers.get("accept", "")
        is_ended = await _ends(call, STREAM_AFTER_MS, or_progress=token is not None) if can_stream else False
        if can_stream and not is_ended and outcome() is None:
            headers = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
            stream = _stream(call, outcome, token, message)
            return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
        while (found := outcome()) is None:
            await call.wait()
        if isinstance(found, Fault):
            raise found
        return guard.json_answer(message(found))

    # -- tasks
    async def _task_get(self, ask: _Ask) -> dict[str, Any]:
        task = self.calls.find(ask.caller, ask.params.get("taskId"))
        shown = task.shown(is_modern=ask.is_modern)
        outcome = task.call.outcome
        if ask.is_modern and task.status == "completed":
            shown["result"] = outcome
        elif ask.is_modern and isinstance(outcome, Fault) and task.status == "failed":
            shown["error"] = outcome.body()
        return shown

    async def _task_list(self, ask: _Ask) -> dict[str, Any]:
        return {"tasks": [task.shown(is_modern=False) for task in self.calls.of(ask.caller)]}

    async def _task_cancel(self, ask: _Ask) -> dict[str, Any]:
        task = self.calls.find(ask.caller, ask.params.get("taskId"))
        if not ask.is_modern and task.status != "working":
            raise Fault(
                wire.INVALID_PARAMS, f"task `{task.task_id}` is {task.status} and cannot be cancelled"
            )
        self.calls.cancel(task)
        return {} if ask.is_modern else task.shown(is_modern=False)

    async def _task_update(self, ask: _Ask) -> dict[str, Any]:
        """Nothing is ever asked of a client, so its answers are for nothing and are dropped."""
        self.calls.find(ask.caller, ask.params.get("taskId"))
        return {}

    async def _task_result(self, ask: _Ask) -> Response:
        task = self.calls.find(ask.caller, ask.params.get("taskId"))
        return await self._deliver(ask, task.call, lambda: _related(task), None)


class _Ask:
    """One request."""

    def __init__(
        self,
        caller: Caller,
        method: str,
        number: str | int,
        params: dict[str, Any],
        headers: Headers,
        is_modern: bool,  # noqa: FBT001
    ) -> None:
        self.caller = caller
        self.method = method
        self.number = number
        self.params = params
        self.headers = headers
        self.is_modern = is_modern
        self.capabilities: Mapping[str, Any] = {}


_Handler = Callable[[_Ask], Awaitable[dict[str, Any]]]
_Outcome = Callable[[], dict[str, Any] | Fault | None]


def _related(task: Task) -> dict[str, Any] | Fault | None:
    """What ``tasks/result`` answers, when there is something."""
    if task.cancelled_ms is not None:
        return Fault(wire.INVALID_PARAMS, f"task `{task.task_id}` was cancelled, so it has no result")
    outcome = task.call.outcome
    if outcome is None or isinstance(outcome, Fault):
        return outcome
    related = {"io.modelcontextprotocol/related-task": {"taskId": task.task_id}}
    return {**outcome, "_meta": {**outcome.get("_meta", {}), **related}}


async def _ends(call: Call, within_ms: int, *, or_progress: bool = False) -> bool:
    """Wait for a call's end for so long; whether it came. ``or_progress``: give up as soon as there is some."""
    try:
        async with asyncio.timeout(within_ms / 1000):
            while not call.ended.is_set():
                if or_progress and call.progress:
                    return False
                await call.wait()
    except TimeoutError:
        return False
    return True


async def _stream(
    call: Call,
    outcome: _Outcome,
    token: str | int | None,
    message: Callable[[dict[str, Any] | Fault], bytes],
) -> AsyncIterator[bytes]:
    """Progress, signs of life, and the outcome."""
    yield b": begun\n\n"
    while True:
        found = outcome()
        while token is not None and call.progress:
            yield _event(wire.progressed(token, *call.progress.popleft()))
        if found is not None:
            break
        try:
            async with asyncio.timeout(PING_S):
                await call.wait()
        except TimeoutError:
            yield b": still at work\n\n"
    yield _event(message(found))


def _event(message: bytes) -> bytes:
    return b"event: message\ndata: " + message + b"\n\n"


def _need_tasks(capabilities: Mapping[str, Any]) -> None:
    if not envelope.has_tasks(capabilities):
        needed: dict[str, Any] = {"extensions": {wire.TASKS: {}}}
        raise Fault(
            wire.CAPABILITY_MISSING,
            f"expected the client to declare extension `{wire.TASKS}`",
            {"requiredCapabilities": needed},
        )


def _noted(is_modern: bool, headers: Headers) -> Response:  # noqa: FBT001
    """A notification: there is none that changes anything here."""
    version = headers.get(envelope.VERSION_HEADER)
    if is_modern and version is not None and version != wire.MODERN:
        fault = envelope.unsupported(version)
        return guard.json_answer(wire.refusal(None, fault), wire.STATUSES[fault.code])
    return Response(status_code=202)
