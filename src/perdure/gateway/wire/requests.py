"""Requests: what the gateway has to know of one before it sends it, and how it says no in the words of the protocol."""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.core.errors import RequestInvalidError
from perdure.kernel.identity import tool_names

# Where each protocol says how long an answer may get; the first that is there counts.
_OUTPUT_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class RequestFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a request says.

    Attributes:
        data: the whole body, decoded.
        model: the model it asks for.
        is_stream: whether it wants its answer as server-sent events.
        output_tokens_max: the most tokens that it lets the model write; ``None`` where it sets no limit.
        tools: the names of the tools that it offers, in their order.
        input_bytes: the size of the body.
    """

    data: dict[str, Any]
    model: str
    is_stream: bool
    output_tokens_max: int | None
    tools: tuple[str, ...]
    input_bytes: int


def read_request(endpoint: str, body: bytes) -> RequestFacts:
    """The facts of a request to ``endpoint``.

    Raises:
        RequestInvalidError: it is not a JSON object, names no model, or a field that the gateway reads has a wrong type.
    """
    try:
        data = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(endpoint, f"is not JSON: {error}", "send one JSON object") from error
    if not isinstance(data, dict):
        raise _invalid(endpoint, f"is {_kind(data)}, expected an object", "send one JSON object")
    model = data.get("model")
    if not isinstance(model, str) or not model.strip():
        found = "nothing" if "model" not in data else _kind(model)
        raise _invalid(endpoint, f"names no model (found {found})", "set `model` to the name of a model")
    stream = data.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise _invalid(
            endpoint, f"has {_kind(stream)} in `stream`, expected a boolean", "send `true` or `false`"
        )
    for name in ("tools", "messages"):
        if data.get(name) is not None and not isinstance(data[name], list):
            raise _invalid(
                endpoint, f"has {_kind(data[name])} in `{name}`, expected a list", f"send `{name}` as a list"
            )
    return RequestFacts(
        data=data,
        model=model,
        is_stream=bool(stream),
        output_tokens_max=_output_limit(endpoint, data),
        tools=tuple(tool_names(data)),
        input_bytes=len(body),
    )


def error_body(endpoint: str, code: str, message: str, status: int) -> bytes:
    """An error as clients of ``endpoint`` understand it; ``code`` is a stable code of Perdure, ``status`` the HTTP status."""
    if endpoint.startswith("messages"):
        kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return msgspec.json.encode(
            {"type": "error", "error": {"type": kind, "message": f"{code}: {message}"}}
        )
    kind = _OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": code}})


def _output_limit(endpoint: str, data: dict[str, Any]) -> int | None:
    for name in _OUTPUT_LIMITS:
        value = data.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            found = f"`{value}`" if isinstance(value, int | float) else _kind(value)
            raise _invalid(
                endpoint, f"has {found} in `{name}`, expected a number of tokens", "send a whole number"
            )
        return value
    return None


def _invalid(endpoint: str, problem: str, advice: str) -> RequestInvalidError:
    return RequestInvalidError(
        f"the body of a request to `{endpoint}` {problem}; {advice}", endpoint=endpoint
    )


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, str):
        return "a string" if value.strip() else "an empty string"
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), "something else")
