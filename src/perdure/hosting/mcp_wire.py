"""What MCP messages look like: tools, results and errors as plain data. No I/O.

Two protocols are spoken: 2026-07-28, where each request carries everything, and those before it, which begin with a
handshake.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from perdure.core.errors import ArgumentsInvalidError, PerdureError, UsageError
from perdure.core.tools import ToolOutput, ToolSpec

MODERN = "2026-07-28"
HANDSHAKES = ("2025-11-25", "2025-06-18", "2025-03-26")  # the newest first: it is offered to unknown clients
TASKS = "io.modelcontextprotocol/tasks"
META_VERSION = "io.modelcontextprotocol/protocolVersion"
META_CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"
META_CONFIDENCE = "dev.perdure/confidence"
META_SERVER = "io.modelcontextprotocol/serverInfo"

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
PERCENT_MAX = 100
INTERNAL_ERROR = -32603
HEADER_MISMATCH = -32020
CAPABILITY_MISSING = -32021
VERSION_UNSUPPORTED = -32022
STATUSES = {
    PARSE_ERROR: 400,
    INVALID_REQUEST: 400,
    INVALID_PARAMS: 400,
    HEADER_MISMATCH: 400,
    CAPABILITY_MISSING: 400,
    VERSION_UNSUPPORTED: 400,
    METHOD_NOT_FOUND: 404,
}
CATALOGUE_TTL_MS = (
    60_000  # a run's catalogue is pinned, so this only bounds how long a withdrawn tool is shown
)

_encoder = msgspec.json.Encoder()


class Fault(Exception):
    """A request that is answered with a JSON-RPC error; it never leaves the face."""

    def __init__(self, code: int, message: str, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data

    def body(self) -> dict[str, Any]:
        """The ``error`` object."""
        told: dict[str, Any] = {"code": self.code, "message": self.message}
        return told if self.data is None else {**told, "data": dict(self.data)}


def is_id(value: Any) -> bool:
    """Whether a request can be called that: a string or an integer."""
    return isinstance(value, str | int) and not isinstance(value, bool)


def reply(number: Any, result: Mapping[str, Any]) -> bytes:
    """A response with a result."""
    return _encoder.encode({"jsonrpc": "2.0", "id": number, "result": result})


def refusal(number: Any, fault: Fault) -> bytes:
    """A response with an error; ``None`` where the request's id could not be read."""
    return _encoder.encode({"jsonrpc": "2.0", "id": number, "error": fault.body()})


def notification(method: str, params: Mapping[str, Any]) -> bytes:
    """A message that nobody answers."""
    return _encoder.encode({"jsonrpc": "2.0", "method": method, "params": params})


def progressed(token: str | int, done: float, total: float | None, message: str) -> bytes:
    """A notification of progress."""
    told: dict[str, Any] = {"progressToken": token, "progress": done}
    if total is not None:
        told["total"] = total
    if message:
        told["message"] = message
    return notification("notifications/progress", told)


def listed(specs: Sequence[ToolSpec], *, can_be_task: bool) -> list[dict[str, Any]]:
    """The tools of a catalogue, with hints made of what they declare.

    An output schema is not shown: an output may be replaced by a reference when it is too long or holds a secret, and
    clients break on a result that does not fit the schema.
    """
    tools: list[dict[str, Any]] = []
    for spec in specs:
        tool: dict[str, Any] = {"name": spec.name}
        if spec.description:
            tool["description"] = spec.description
        tool["inputSchema"] = {"type": "object", **spec.parameters}
        tool["annotations"] = {
            "readOnlyHint": spec.effect == "read",
            "destructiveHint": spec.effect in ("compensable", "irreversible"),
            "idempotentHint": spec.recovery in ("pure", "idempotent"),
        }
        if can_be_task:
            tool["execution"] = {"taskSupport": "optional"}
        tools.append(tool)
    return tools


def answered(output: ToolOutput) -> dict[str, Any]:
    """A tool's answer as a result of ``tools/call``."""
    result: dict[str, Any] = {"content": output.blocks(), "isError": output.is_error}
    if isinstance(output.value, dict):
        result["structuredContent"] = output.value
    return result


def failed(error: PerdureError) -> dict[str, Any] | Fault:
    """How a use that raised is answered: most are told to the model as a result, so that it can do something else.

    Wrong arguments are such a result too, as the protocol asks since 2025-11-25; other mistakes of the program are
    errors of the protocol.
    """
    if isinstance(error, UsageError) and not isinstance(error, ArgumentsInvalidError):
        return Fault(INVALID_PARAMS, str(error), {"code": error.code})
    return {
        "content": [{"type": "text", "text": str(error)}],
        "isError": True,
        "_meta": {"dev.perdure/error": {"code": error.code}},
    }


def confidence_of(meta: Mapping[str, Any]) -> int | None:
    """How sure the program is, in percent, if it says so: it can only make the gates stricter.

    Raises:
        Fault: it is no percentage.
    """
    value = meta.get(META_CONFIDENCE)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= PERCENT_MAX:
        raise Fault(INVALID_PARAMS, f"expected `{META_CONFIDENCE}` to be a whole number from 0 to 100")
    return value


def trace_of(meta: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, str]:
    """The trace that a request belongs to: ``traceparent`` and ``tracestate`` of ``_meta``, else of the headers."""
    found: dict[str, str] = {}
    for name in ("traceparent", "tracestate"):
        value = meta.get(name, headers.get(name))
        if isinstance(value, str) and 0 < len(value) <= TRACE_LENGTH_MAX:
            found[name] = value
    return found if "traceparent" in found else {}


TRACE_LENGTH_MAX = 512  # characters; what the W3C asks to carry at least
