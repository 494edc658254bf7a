"""What is kept of an answer: model answers as they came, tool outputs bounded, with the excess as an artifact."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import msgspec

from perdure.core.errors import ResultInvalidError
from perdure.core.tools import ToolOutput
from perdure.gateway.redact import Redactor

_encode = msgspec.json.Encoder(order="sorted").encode


class Exchange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model's answer as it came over the wire; ``base64`` where it is not UTF-8."""

    status: int
    content_type: str
    text: str = ""
    base64: str = ""

    @property
    def body(self) -> bytes:
        """The bytes."""
        return base64.b64decode(self.base64) if self.base64 else self.text.encode()


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of an output that was too long, kept as a blob."""

    sha256: str
    size_bytes: int


class Kept(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A tool's output in a journal."""

    value: Any = None
    content: tuple[dict[str, Any], ...] = ()
    is_error: bool = False
    artifact: Artifact | None = None

    def output(self) -> ToolOutput:
        """As the agent gets it."""
        return ToolOutput(value=self.value, content=self.content, is_error=self.is_error)


_SHAPE = frozenset({"value", "content", "is_error"})  # of an output that a person gives whole
_exchange = msgspec.json.Decoder(Exchange).decode
_kept = msgspec.json.Decoder(Kept).decode


def exchange(status: int, content_type: str, body: bytes) -> bytes:
    """A model's answer as JSON."""
    try:
        return _encode(Exchange(status=status, content_type=content_type, text=body.decode()))
    except UnicodeDecodeError:
        return _encode(
            Exchange(status=status, content_type=content_type, base64=base64.b64encode(body).decode())
        )


def read_exchange(data: bytes | msgspec.Raw) -> Exchange:
    """What :func:`exchange` wrote."""
    return _exchange(data)


def read_kept(data: bytes | msgspec.Raw) -> Kept:
    """What :func:`bounded` wrote; plain data that a human gave as the result counts as a value."""
    try:
        return _kept(data)
    except msgspec.ValidationError:
        return Kept(value=msgspec.json.decode(data))


def stated(result: Any) -> bytes:
    """What a person says that a tool returned, as :func:`bounded` would have written it.

    An object with ``value``, ``content`` or ``is_error`` and nothing else is the whole output; anything else is its value.
    """
    is_whole = isinstance(result, dict) and bool(result) and result.keys() <= _SHAPE
    return _encode(result if is_whole else {"value": result})


def bounded(output: ToolOutput, limit: int, redactor: Redactor) -> tuple[bytes, dict[str, bytes]]:
    """An output as JSON of about ``limit`` bytes at most, and the artifact that holds the whole of a longer one.

    Raises:
        ResultInvalidError: JSON cannot hold it.
    """
    try:
        data = _encode(Kept(value=output.value, content=output.content, is_error=output.is_error))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ResultInvalidError(f"the output of the tool cannot be written as JSON: {error}") from error
    data, _ = redactor.clean(data)
    if len(data) <= limit:
        return data, {}
    name = hashlib.sha256(data).hexdigest()
    head = _shown(data)[:limit]
    text = (
        f"{head}\n[cut: the whole output has {len(data)} bytes and is kept as artifact {name}; "
        "ask for less; a person finds it with `perdure actions show --output`]"
    )
    short = Kept(value=text, is_error=output.is_error, artifact=Artifact(sha256=name, size_bytes=len(data)))
    return _encode(short), {name: data}


def _shown(data: bytes) -> str:
    """The text of an output: its text blocks, else its value as JSON."""
    kept = _kept(data)
    texts = [block["text"] for block in kept.content if isinstance(block.get("text"), str)]
    if texts:
        return "\n".join(texts)
    return kept.value if isinstance(kept.value, str) else _encode(kept.value).decode()
