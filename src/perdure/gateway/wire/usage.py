"""Usage of chat streams: upstreams tell it only when asked, and clients that did not ask do not expect to be told."""

from __future__ import annotations

import re
from typing import Any

import msgspec

_EVENT_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_encode = msgspec.json.Encoder().encode


def asking_for_usage(endpoint: str, body: bytes, data: dict[str, Any]) -> bytes | None:
    """The body of a streamed chat request with ``stream_options.include_usage``; ``None`` if it asks already or need not."""
    if endpoint != "chat/completions" or not data.get("stream"):
        return None
    options = data.get("stream_options")
    if options is not None and (not isinstance(options, dict) or "include_usage" in options):
        return None
    kept: dict[str, Any] = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    kept["stream_options"] = {**(options or {}), "include_usage": True}
    return _encode(kept)


def without_usage(tail: bytes) -> bytes:
    """The end of a chat stream without the event that only tells the usage: as if it had not been asked for."""
    kept: list[bytes] = []
    at = 0
    for found in [*_EVENT_END.finditer(tail), None]:
        end = len(tail) if found is None else found.end()
        event = tail[at:end]
        at = end
        if not _only_tells_usage(event):
            kept.append(event)
    return b"".join(kept)


def _only_tells_usage(event: bytes) -> bool:
    data = event.strip()
    if not data.startswith(b"data:") or b'"usage"' not in data:
        return False
    try:
        found = msgspec.json.decode(data[5:])
    except msgspec.DecodeError:
        return False
    return isinstance(found, dict) and found.get("choices") == [] and bool(found.get("usage"))
