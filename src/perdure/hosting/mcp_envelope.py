"""What a request says of itself: its protocol, its client's capabilities, and whether headers and body agree."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.datastructures import Headers

from perdure.core.tools import ToolSpec
from perdure.hosting.mcp_wire import (
    HANDSHAKES,
    HEADER_MISMATCH,
    INVALID_PARAMS,
    INVALID_REQUEST,
    META_CAPABILITIES,
    META_VERSION,
    MODERN,
    TASKS,
    VERSION_UNSUPPORTED,
    Fault,
    is_id,
)

VERSION_HEADER = "mcp-protocol-version"
METHOD_HEADER = "mcp-method"
NAME_HEADER = "mcp-name"
NAMED_BY = {  # the parameter that the header `Mcp-Name` repeats
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    "tasks/get": "taskId",
    "tasks/update": "taskId",
    "tasks/cancel": "taskId",
}
_ENCODED = re.compile(r"=\?base64\?(.*)\?=")


def parsed(message: Any) -> tuple[str, Any, dict[str, Any]]:
    """Method, id (``None``: a notification) and parameters of one JSON-RPC message.

    Raises:
        Fault: it is none, or a batch.
    """
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
        raise Fault(INVALID_REQUEST, "expected one JSON-RPC 2.0 request or notification, an object")
    method, number, params = message.get("method"), message.get("id"), message.get("params", {})
    if not isinstance(method, str) or ("id" in message and not is_id(number)):
        raise Fault(INVALID_REQUEST, "expected `method`, a string, and `id`, a string or an integer")
    if not isinstance(params, dict):
        raise Fault(INVALID_PARAMS, "expected `params` to be an object")
    return method, number, params


def is_answer(message: Any) -> bool:
    """Whether it is a response; nothing was asked here, so it is ignored."""
    return (
        isinstance(message, dict) and "method" not in message and ("result" in message or "error" in message)
    )


def is_modern(method: str, params: Mapping[str, Any], headers: Headers) -> bool:
    """Whether a request is of the protocol without a handshake."""
    version = headers.get(VERSION_HEADER)
    if version is not None:
        return version not in HANDSHAKES
    return method != "initialize" and META_VERSION in meta_of(params)


def meta_of(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """``_meta``; empty where there is none."""
    meta = params.get("_meta")
    return meta if isinstance(meta, dict) else {}


def check(method: str, params: Mapping[str, Any], headers: Headers) -> Mapping[str, Any]:
    """The capabilities of the client that sent a 2026-07-28 request.

    Raises:
        Fault: something is missing, headers and body differ, or the version is another.
    """
    meta = meta_of(params)
    missing = [key for key in (META_VERSION, META_CAPABILITIES) if key not in meta]
    if missing:
        raise Fault(
            INVALID_PARAMS, f"expected `params._meta` to have {' and '.join(f'`{key}`' for key in missing)}"
        )
    version, capabilities = meta[META_VERSION], meta[META_CAPABILITIES]
    _agree(headers, VERSION_HEADER, version, META_VERSION)
    _agree(headers, METHOD_HEADER, method, "method")
    key = NAMED_BY.get(method)
    if key is not None and params.get(key) is not None:
        _agree(headers, NAME_HEADER, params[key], f"params.{key}")
    if version != MODERN:
        raise unsupported(version)
    if not isinstance(capabilities, dict):
        raise Fault(INVALID_PARAMS, f"expected `{META_CAPABILITIES}` to be an object")
    return capabilities


def _agree(headers: Headers, name: str, value: Any, what: str) -> None:
    """Refuse a header that says something else than the body: whoever routes by it would be misled."""
    given = headers.getlist(name)
    if len(given) != 1:
        raise Fault(HEADER_MISMATCH, f"expected one header `{name}`, found {len(given)}")
    if _plain(given[0]) != value:
        raise Fault(HEADER_MISMATCH, f"header `{name}` differs from `{what}` of the body")


def _plain(value: str) -> str | None:
    """A header's value, out of base64 where it needed that; ``None`` where it is damaged."""
    match = _ENCODED.fullmatch(value)
    if match is None:
        return value
    try:
        return base64.b64decode(match[1], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


def unsupported(version: Any) -> Fault:
    """Another protocol was asked for."""
    data = {"supported": [MODERN, *HANDSHAKES], "requested": version}
    return Fault(VERSION_UNSUPPORTED, f"expected protocol version {MODERN} or {HANDSHAKES[0]}", data)


def has_tasks(capabilities: Mapping[str, Any]) -> bool:
    """Whether the client can deal with a task instead of a result."""
    extensions = capabilities.get("extensions")
    return isinstance(extensions, dict) and TASKS in extensions


def with_headers(specs: Sequence[ToolSpec]) -> Sequence[ToolSpec]:
    """The tools of whose arguments some are repeated in headers."""
    return [spec for spec in specs if "x-mcp-header" in str(spec.parameters)]


def check_parameters(
    specs: Sequence[ToolSpec], name: str, arguments: Mapping[str, Any], headers: Headers
) -> None:
    """Compare ``Mcp-Param-*`` headers with the arguments that the tool's schema says they repeat.

    Raises:
        Fault: they differ.
    """
    schema = next((spec.parameters for spec in specs if spec.name == name), None)
    if schema is None:
        return
    # Imported here: the SDK takes a second to load and few tools have such schemas.
    from mcp.shared.inbound import validate_mcp_param_headers

    found = validate_mcp_param_headers(schema, arguments, headers)
    if found is not None:
        raise Fault(HEADER_MISMATCH, found.message)
