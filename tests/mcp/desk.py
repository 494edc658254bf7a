"""A caller with the tools that the conformance suite asks for, and a server to put it behind."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.requests import Request

from perdure.core.errors import (
    ArgumentsInvalidError,
    BudgetExhaustedError,
    PerdureError,
    RunEndedError,
    TokenRefusedError,
    ToolFailedError,
    ToolUnknownError,
    ToolUnreachableError,
)
from perdure.core.tools import ToolOutput, ToolSpec
from perdure.hosting.mcp_calls import Progress
from perdure.hosting.mcp_face import McpFace

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WAV = base64.b64encode(
    b"RIFF$\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0@\x1f\0\0@\x1f\0\0\1\0\x08\0data\0\0\0\0"
).decode()
ERRORS: dict[str, PerdureError] = {
    "refused": BudgetExhaustedError("the run has used up its budget"),
    "unavailable": ToolUnreachableError("the tool does not answer"),
    "failed": ToolFailedError("the tool said no"),
    "arguments": ArgumentsInvalidError("expected `a`"),
    "ended": RunEndedError("the attempt is over"),
}
STRICT = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}
HEADED = {
    "type": "object",
    "properties": {
        "region": {"type": "string", "x-mcp-header": "Region"},
        "query": {"type": "string"},
    },
}


def text(value: str) -> ToolOutput:
    return ToolOutput(value=value)


def block(*blocks: dict[str, Any]) -> ToolOutput:
    return ToolOutput(content=blocks)


IMAGE = {"type": "image", "data": PNG, "mimeType": "image/png"}
RESOURCE = {
    "type": "resource",
    "resource": {
        "uri": "test://embedded-resource",
        "mimeType": "text/plain",
        "text": "This is an embedded resource.",
    },
}
SIMPLE: dict[str, ToolOutput] = {
    "test_simple_text": text("This is a simple text response for testing."),
    "test_image_content": block(IMAGE),
    "test_audio_content": block({"type": "audio", "data": WAV, "mimeType": "audio/wav"}),
    "test_embedded_resource": block(RESOURCE),
    "test_multiple_content_types": block(
        {"type": "text", "text": "Multiple content types test:"}, IMAGE, RESOURCE
    ),
    "test_error_handling": ToolOutput(
        value="This tool intentionally returns an error for testing", is_error=True
    ),
    "json_schema_2020_12_tool": text("fits"),
    "test_x_mcp_header": text("routed"),
    "test_logging_tool": text("nothing is logged to clients"),
    "test_streaming_elicitation": text("nothing is asked of clients"),
    "structured": ToolOutput(value={"sum": 3}),
}
SLOW = (
    "greet",
    "slow_compute",
    "failing_job",
    "protocol_error_job",
    "test_tool_with_progress",
    "wait",
    "raise",
    "bug",
)


class Desk:
    """A caller that remembers what it was asked for; ``wait`` ends when ``go`` is set."""

    def __init__(self) -> None:
        self.used: list[tuple[str, dict[str, Any]]] = []
        self.done: list[str] = []
        self.go = asyncio.Event()
        self.begun = asyncio.Event()
        self.finished = asyncio.Event()

    async def specs(self) -> Sequence[ToolSpec]:
        schemas = {"json_schema_2020_12_tool": STRICT, "test_x_mcp_header": HEADED}
        return [
            ToolSpec(
                name=name,
                description=f"The tool {name}.",
                parameters=schemas.get(name, {"type": "object"}),
                recovery="pure" if name in SIMPLE else "opaque",
                effect="read" if name in SIMPLE else "irreversible",
            )
            for name in (*SIMPLE, *SLOW)
        ]

    async def use(
        self,
        name: str,
        arguments: dict[str, Any],
        *,
        progress: Progress | None = None,
        confidence: int | None = None,
    ) -> ToolOutput:
        del confidence
        self.used.append((name, arguments))
        if name in SIMPLE:
            return SIMPLE[name]
        assert progress is not None
        match name:
            case "greet":
                return text(f"Hello, {arguments.get('name')}!")
            case "slow_compute":
                await asyncio.sleep(arguments.get("seconds", 0))
                return text("computed")
            case "failing_job":
                await asyncio.sleep(0.5)
                raise ToolFailedError("it always does")
            case "protocol_error_job":
                await asyncio.sleep(0.5)
                raise RuntimeError("a bug")
            case "test_tool_with_progress":
                for done in (0, 50, 100):
                    progress(done, 100, f"at {done}")
                    await asyncio.sleep(0.05)
                return text("done")
            case "wait":
                self.begun.set()
                progress(1, None, "waiting")
                await self.go.wait()
                self.done.append(name)
                self.finished.set()
                return text("waited")
            case "raise":
                raise ERRORS[arguments["error"]]
            case "bug":
                raise RuntimeError("secret insides")
        raise ToolUnknownError(f"no tool is called `{name}`")


class Clock:
    def now_ms(self) -> int:
        return 1_800_000_000_000


class Entropy:
    def __init__(self) -> None:
        self.count = 0

    def bits(self, count: int) -> int:
        self.count += 1
        return self.count


def face(desk: Desk, **settings: Any) -> McpFace:
    desks = {"desk": desk}

    def find(request: Request) -> Desk:
        token = request.headers.get("authorization", "Bearer desk").removeprefix("Bearer ")
        if token not in desks and token != "other":
            raise TokenRefusedError("the run token is not known here")
        return desks.setdefault(token, Desk())

    return McpFace(find, Clock(), Entropy(), **settings)


@asynccontextmanager
async def serving(app: Any, port: int = 0) -> AsyncIterator[str]:
    """A server on a free port; its address without a path."""
    server = uvicorn.Server(
        uvicorn.Config(
            app, host="127.0.0.1", port=port, log_level="warning", lifespan="off", timeout_graceful_shutdown=1
        )
    )
    started = asyncio.Event()
    startup = server.startup

    async def tell(sockets: Any = None) -> None:
        await startup(sockets)
        started.set()

    server.startup = tell  # type: ignore[method-assign]
    task = asyncio.create_task(server._serve())
    await started.wait()
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def served(desk: Desk, **settings: Any) -> AsyncIterator[str]:
    """A face for a desk; the address of its endpoint."""
    app = face(desk, **settings)
    async with serving(app) as base:
        try:
            yield f"{base}/mcp"
        finally:
            desk.go.set()
            await app.close()


async def main() -> None:
    async with served(Desk(), task_after_ms=200) as url:
        print(url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
