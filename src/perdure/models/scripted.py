"""Answers from a script, in this process: for tests, demonstrations and machines without a key.

A script is a JSON file::

    {
      "turns": [
        {"calls": [{"name": "lookup", "arguments": {"q": "hotel"}}]},
        {"text": "The hotel is booked, reference {random}."}
      ],
      "ids": "random",
      "latency_ms": 0,
      "chunk_ms": 0
    }

``turns`` are what the model says, in order; a turn has ``text``, ``calls``, or both. Which turn a request gets is read
from the request alone, so the same request gets the same turn, whoever asks and after any crash: a turn with calls is
past when the request holds their results, a turn of text when the request holds it as a message of the assistant. After
the end the last text is said again. A request that offers no tools gets text.

``ids`` is ``random`` (as a real model's: a repeated request gets other ids) or ``counted`` (always the same).
``{random}`` in a text or an argument is replaced in the same manner. ``name`` may leave out a prefix that a program puts
before its tools' names. ``latency_ms`` is the wait before an answer, ``chunk_ms`` the one between the parts of a stream.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Self

import msgspec

from perdure.core.errors import DefinitionError
from perdure.core.models import ModelRequest, Upstream
from perdure.models import formats
from perdure.ports import Answer, Entropy

SCRIPT_BYTES_MAX = 1024 * 1024  # a script is written by hand
TURNS_MAX = 1_000  # and read by people
WAIT_MS_MAX = 60_000  # a longer latency would only run into the time-outs of clients
ID_BITS = 96
BYTES_PER_TOKEN = 4  # about what English text has
LAST_WORDS = "The script has no more to say."


class ScriptedCall(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tool call of a script."""

    name: str
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)


class Turn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One answer of a script: text, tool calls, or both."""

    text: str = ""
    calls: tuple[ScriptedCall, ...] = ()


class Script(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a scripted model says; see the module for the meaning of each field."""

    turns: tuple[Turn, ...]
    ids: Literal["random", "counted"] = "random"
    latency_ms: int = 0
    chunk_ms: int = 0

    def turn(self, results: int, said: int, *, has_tools: bool) -> Turn:
        """The answer to a request that holds so many tool results and texts of the assistant."""
        texts = [turn for turn in self.turns if not turn.calls]
        last = texts[-1] if texts else Turn(text=LAST_WORDS)
        if not has_tools:
            return texts[min(said, len(texts) - 1)] if texts else last
        for turn in self.turns:
            if turn.calls and results >= len(turn.calls):
                results -= len(turn.calls)
            elif not turn.calls and said > 0:
                said -= 1
            else:
                return turn
        return last


class ScriptedUpstream:
    """An upstream that speaks every wire format and says what its script says.

    Args:
        upstream: its configuration; ``path`` is the script.
        entropy: for random ids.

    Raises:
        DefinitionError: the script cannot be read.
    """

    def __init__(self, upstream: Upstream, entropy: Entropy) -> None:
        self._upstream = upstream
        self._entropy = entropy
        self._script = read_script(upstream.path)

    @classmethod
    def of(cls, upstream: Upstream, script: Script, entropy: Entropy) -> Self:
        """With a script that is at hand."""
        made = cls.__new__(cls)
        made._upstream, made._script, made._entropy = upstream, script, entropy
        return made

    @contextlib.asynccontextmanager
    async def open(self, request: ModelRequest, model: str) -> AsyncIterator[Answer]:
        """Answer a request; a malformed one gets status 400, as a real upstream would say."""
        await asyncio.sleep(self._script.latency_ms / 1000)
        try:
            body = msgspec.json.decode(request.body, type=dict[str, Any])
        except msgspec.DecodeError as error:
            parts = [formats.problem(request.endpoint, f"the request is no JSON object: {error}")]
            status, is_stream = 400, False
        else:
            is_stream = body.get("stream") is True and request.endpoint not in (
                "embeddings",
                "messages/count_tokens",
            )
            status, parts = 200, list(self._parts(request, body, model, is_stream=is_stream))
        chunks = self._paced(parts, self._script.chunk_ms if is_stream else 0)
        try:
            yield Answer(
                status=status,
                content_type=formats.STREAM_TYPE if is_stream else formats.JSON_TYPE,
                headers=(),
                chunks=chunks,
                upstream=self._upstream.name,
                model=model,
            )
        finally:
            await chunks.aclose()

    async def close(self) -> None:
        """Nothing is held."""

    def _parts(
        self, request: ModelRequest, body: dict[str, Any], model: str, *, is_stream: bool
    ) -> Iterable[bytes]:
        tokens = max(1, len(request.body) // BYTES_PER_TOKEN)
        if request.endpoint == "messages/count_tokens":
            return [formats.token_count(tokens)]
        if request.endpoint == "embeddings":
            return [_embeddings(body, model, tokens)]
        said = self._said(body, model, tokens)
        match request.endpoint:
            case "responses":
                return formats.responses_stream(said) if is_stream else [formats.responses(said)]
            case "messages":
                return formats.messages_stream(said) if is_stream else [formats.messages(said)]
            case _:
                options = body.get("stream_options")
                with_usage = isinstance(options, dict) and options.get("include_usage") is True
                return formats.chat_stream(said, with_usage=with_usage) if is_stream else [formats.chat(said)]

    def _said(self, body: dict[str, Any], model: str, tokens: int) -> formats.Said:
        results, said = held(body)
        names = offered_tools(body)
        turn = self._script.turn(results, said, has_tools=bool(names))
        new_id = self._ids(f"{results}_{said}")
        text = turn.text.replace("{random}", new_id("")) if "{random}" in turn.text else turn.text
        calls = []
        for call in turn.calls:
            arguments = msgspec.json.encode(call.arguments).decode()
            if "{random}" in arguments:
                arguments = arguments.replace("{random}", new_id(""))
            calls.append(formats.Call(_full_name(call.name, names), arguments))
        size = len(text) + sum(len(call.name) + len(call.arguments) for call in calls)
        return formats.Said(
            model=model,
            text=text,
            calls=tuple(calls),
            input_tokens=tokens,
            output_tokens=max(1, size // BYTES_PER_TOKEN),
            new_id=new_id,
        )

    def _ids(self, position: str) -> Callable[[str], str]:
        """Makes ids: random, or counted from where in the script this is."""
        count = 0

        def new_id(prefix: str) -> str:
            nonlocal count
            count += 1
            if self._script.ids == "random":
                tail = f"{self._entropy.bits(ID_BITS):024x}"
            else:
                tail = f"{position}_{count}"
            return f"{prefix}_{tail}" if prefix else tail

        return new_id

    async def _paced(self, parts: list[bytes], wait_ms: int) -> AsyncGenerator[bytes, None]:
        for index, part in enumerate(parts):
            if index and wait_ms:
                await asyncio.sleep(wait_ms / 1000)
            yield part


def read_script(path: str) -> Script:
    """The script in a file.

    Raises:
        DefinitionError: there is none, or it is not what the format asks for.
    """
    try:
        data = Path(path).read_bytes()
        script = msgspec.json.decode(data, type=Script)
    except (OSError, msgspec.DecodeError) as error:
        message = f"the script `{path}` cannot be read: {error}; see `perdure.models.scripted` for its format"
        raise DefinitionError(message, path=path) from error
    if len(data) > SCRIPT_BYTES_MAX or len(script.turns) > TURNS_MAX:
        message = (
            f"the script `{path}` has {len(data)} bytes and {len(script.turns)} turns; expected at most "
            f"{SCRIPT_BYTES_MAX} and {TURNS_MAX}"
        )
        raise DefinitionError(message, path=path)
    if not all(0 <= wait_ms <= WAIT_MS_MAX for wait_ms in (script.latency_ms, script.chunk_ms)):
        message = f"the script `{path}` waits too long; expected `latency_ms` and `chunk_ms` from 0 to {WAIT_MS_MAX}"
        raise DefinitionError(message, path=path)
    return script


def held(body: dict[str, Any]) -> tuple[int, int]:
    """How many tool results, and how many texts of the assistant without a call, a request of any wire format holds."""
    results = said = 0
    for item in _dicts(body.get("messages")) + _dicts(body.get("input")):
        blocks = _dicts(item.get("content"))
        kinds = [block.get("type") for block in blocks]
        results += kinds.count("tool_result")
        if item.get("role") == "tool" or item.get("type") == "function_call_output":
            results += 1
        elif item.get("role") == "assistant" and not item.get("tool_calls") and "tool_use" not in kinds:
            said += 1
    return results, said


def offered_tools(body: dict[str, Any]) -> list[str]:
    """The names of the tools that a request of any wire format offers."""
    names = []
    for tool in _dicts(body.get("tools")):
        function = tool.get("function")
        name = function.get("name") if isinstance(function, dict) else tool.get("name")
        if isinstance(name, str):
            names.append(name)
    return names


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _full_name(name: str, offered: list[str]) -> str:
    """Programs may put a server's name before a tool's, such as ``mcp__shop__lookup``."""
    if name in offered:
        return name
    ending = tuple(f"{mark}{name}" for mark in "_-.")
    return next((item for item in offered if item.endswith(ending)), name)


def _embeddings(body: dict[str, Any], model: str, tokens: int) -> bytes:
    given = body.get("input", "")
    # A list of numbers is one text as tokens; a list of anything else is many texts.
    is_many = isinstance(given, list) and not all(isinstance(item, int) for item in given)
    dimensions = body.get("dimensions")
    return formats.embeddings(
        model,
        given if is_many else [given],
        dimensions=dimensions if isinstance(dimensions, int) else None,
        as_base64=body.get("encoding_format") == "base64",
        input_tokens=tokens,
    )
