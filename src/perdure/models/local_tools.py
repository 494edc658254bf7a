"""Tools for models that know no tool-call format: what they are told, what they may say, what it means. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.models.formats import Call

TOOLS_MAX = 64  # more do not fit into the context of a small model


def constrained(body: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The instruction and the JSON schema for a request that offers tools; ``None`` where it offers none.

    ``tool_choice`` is kept: ``none``, ``required``, or one tool by name.
    """
    choice = body.get("tool_choice")
    if choice == "none":
        return None
    wanted = choice.get("function", {}).get("name") if isinstance(choice, dict) else None
    tools = [function for function in _functions(body.get("tools")) if wanted in (None, function["name"])]
    if not tools:
        return None
    kinds = [_object(tool={"const": tool["name"]}, arguments=_parameters(tool)) for tool in tools]
    is_forced = wanted is not None or choice == "required"
    if not is_forced:
        kinds.append(_object(answer={"type": "string"}))
    lines = ["You can use these tools:"]
    for tool in tools:
        schema = msgspec.json.encode(_parameters(tool)).decode()
        lines.append(f"- {tool['name']}: {tool.get('description') or ''} Arguments: {schema}")
    lines.append('To use one, write {"tool": its name, "arguments": {...}}.')
    if not is_forced:
        lines.append('When you know the answer, write {"answer": "..."}.')
    return "\n".join(lines), {"anyOf": kinds}


def understood(text: str) -> tuple[str, tuple[Call, ...]]:
    """What a constrained answer means: text, or a call. One that was cut short is text as it is."""
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text, ()
    match value:
        case {"tool": str(name), "arguments": dict(arguments)}:
            return "", (Call(name, msgspec.json.encode(arguments).decode()),)
        case {"answer": str(answer)}:
            return answer, ()
        case _:
            return text, ()


def plain_messages(messages: Any) -> Any:
    """Messages with text only: calls and results of tools in the words in which the model was told to write them."""
    if not isinstance(messages, list):
        return messages
    return [_plain(message) if isinstance(message, dict) else message for message in messages]


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    role, text = message.get("role"), _text(message.get("content"))
    if role == "tool":
        return {"role": "user", "content": f"The tool answered: {text}"}
    calls = message.get("tool_calls")
    if role == "assistant" and isinstance(calls, list):
        written = [_written(call["function"]) for call in calls if isinstance(call.get("function"), dict)]
        return {"role": role, "content": "\n".join([text, *written] if text else written)}
    return {"role": "system" if role == "developer" else role, "content": text}


def _written(function: dict[str, Any]) -> str:
    name = msgspec.json.encode(function.get("name")).decode()
    return f'{{"tool": {name}, "arguments": {function.get("arguments") or "{}"}}}'


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _functions(tools: Any) -> list[dict[str, Any]]:
    found = (
        [tool.get("function") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    )
    named = [item for item in found if isinstance(item, dict) and isinstance(item.get("name"), str)]
    return named[:TOOLS_MAX]


def _parameters(tool: dict[str, Any]) -> dict[str, Any]:
    parameters = tool.get("parameters")
    return parameters if isinstance(parameters, dict) and parameters else {"type": "object"}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
