"""Values on their way into and out of a journal: JSON, digests, payloads."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from perdure.core.errors import InputInvalidError, PayloadTooLargeError
from perdure.core.labels import Labels
from perdure.core.limits import BLOB_BYTES_MIN


class Payload(msgspec.Struct, frozen=True, omit_defaults=True):
    """A JSON value in an entry: inline, or the SHA-256 of a blob when it is over 64 KiB.

    ``labels`` says where its parts come from, where that is tracked.
    """

    inline: msgspec.Raw = msgspec.Raw(b"")
    blob: str = ""
    size: int = 0
    labels: Labels = ()


NULL = Payload(inline=msgspec.Raw(b"null"))
_encoder = msgspec.json.Encoder(order="sorted")


def digest(data: bytes) -> str:
    """The first 16 hexadecimal digits of SHA-256: enough to notice a changed input, short in a journal."""
    return hashlib.sha256(data).hexdigest()[:16]


def pack(data: bytes, limit: int) -> tuple[Payload, dict[str, bytes]]:
    """A payload for ``data`` and the blobs it needs (none up to 64 KiB).

    Raises:
        PayloadTooLargeError: ``data`` is over ``limit`` bytes.
    """
    size = len(data)
    if size <= BLOB_BYTES_MIN and size <= limit:
        return Payload(inline=msgspec.Raw(data)), {}
    if size > limit:
        raise too_large(size, limit)
    name = hashlib.sha256(data).hexdigest()
    return Payload(blob=name, size=size), {name: data}


def too_large(size: int, limit: int) -> PayloadTooLargeError:
    """The error for a payload over the limit, in bytes."""
    message = (
        f"a payload of {size} bytes is over the limit of {limit}; store it elsewhere and pass a reference, "
        "or raise the setting `payload_bytes_max`"
    )
    return PayloadTooLargeError(message, size_bytes=size, limit_bytes=limit)


def encode(value: Any) -> bytes:
    """``value`` as JSON with sorted keys.

    Raises:
        InputInvalidError: ``value`` has a part that JSON cannot hold.
    """
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        message = f"a value of type `{type(value).__name__}` cannot be written as JSON: {error}"
        raise InputInvalidError(f"{message}; pass plain data, a dataclass or a msgspec struct") from error


def decode(data: bytes | msgspec.Raw) -> Any:
    """Plain data from JSON."""
    return msgspec.json.decode(data)
