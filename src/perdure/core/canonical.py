"""Canonical JSON (RFC 8785, "JCS"): the same data gives the same bytes, whoever writes them.

Digests that two programs must agree on, and the identity of calls, are made from these bytes. What is written into a
journal comes from ``core.values``, which is faster and need not agree with anybody.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from json.encoder import encode_basestring
from math import isfinite
from typing import Any

import msgspec

from perdure.core.errors import InputInvalidError

INTEGER_MAX = 2**53 - 1  # larger ones are not the same number for every reader (RFC 7493)

_encoder = msgspec.json.Encoder(order="sorted")
# Numbers that msgspec and RFC 8785 may write differently: with an exponent, with `.0` at the end, below 1e-6, or with 16
# digits before the point. A hit inside a string costs time, never correctness. It begins with a class so that `re` skips fast.
_DOUBTFUL_NUMBER = re.compile(
    rb"[:,\[]-?[0-9]+(?:(?:\.[0-9]+)?e|\.0+(?![0-9])|(?<=[:,\[\-]0)\.000000|(?<=[0-9]{16}))"
)
_BEYOND_BMP = re.compile(rb"[\xf0-\xf4]")  # such a key sorts by UTF-16, not by code point


def canonical(value: Any, *, strict: bool = True) -> bytes:
    """``value`` as RFC 8785 JSON.

    Args:
        value: plain data, or anything that msgspec can write as JSON.
        strict: refuse what RFC 8785 cannot say. Otherwise integers keep all their digits, NaN and the infinities are
            ``null`` and lone surrogates stay: not RFC 8785, but still the same bytes for the same value.

    Raises:
        InputInvalidError: a part is not JSON; when strict also a number that is not finite or an integer of 2^53 or more,
            or a lone surrogate.
    """
    try:
        data = _encoder.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return _written(value, strict=strict)
    # msgspec writes NaN as `null`, so a strict reader has to look at the values.
    is_doubtful = (
        _DOUBTFUL_NUMBER.search(data)
        or isinstance(value, int | float)
        or (strict and b"null" in data)
        or (not data.isascii() and _BEYOND_BMP.search(data) and _has_wide_key(value))
    )
    return _written(value, strict=strict) if is_doubtful else data


def canonical_digest(value: Any, *, strict: bool = True) -> str:
    """SHA-256 of :func:`canonical`, 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value, strict=strict)).hexdigest()


def _has_wide_key(value: Any) -> bool:
    """Whether a key may have a character beyond U+FFFF; emoji in texts are common, in keys they are not."""
    if isinstance(value, dict):
        return any(not key.isascii() or _has_wide_key(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return any(_has_wide_key(item) for item in value)
    return not (value is None or isinstance(value, str | int | float))  # whatever it is, it may hold keys


def _written(value: Any, *, strict: bool) -> bytes:
    """The slow way, for every value."""
    parts: list[str] = []
    try:
        _write(msgspec.to_builtins(value, str_keys=True), parts.append, strict=strict)
        return "".join(parts).encode("utf-8", "strict" if strict else "surrogatepass")
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        message = f"a value of type `{type(value).__name__}` has no canonical JSON: {error}; pass plain data"
        raise InputInvalidError(message) from error


def _write(value: Any, put: Callable[[str], None], *, strict: bool) -> None:
    if isinstance(value, str):
        put(encode_basestring(value))
    elif value is None or value is True or value is False:
        put("null" if value is None else "true" if value else "false")
    elif isinstance(value, int):
        put(_integer(value, strict=strict))
    elif isinstance(value, float):
        put(_number(value, strict=strict))
    elif isinstance(value, dict):
        mark = "{"
        for key in sorted(value, key=_utf16):
            put(f"{mark}{encode_basestring(key)}:")
            _write(value[key], put, strict=strict)
            mark = ","
        put("}" if value else "{}")
    else:
        mark = "["
        for item in value:
            put(mark)
            _write(item, put, strict=strict)
            mark = ","
        put("]" if value else "[]")


def _utf16(key: str) -> bytes:
    return key.encode("utf-16-be", "surrogatepass")


def _integer(value: int, *, strict: bool) -> str:
    if strict and abs(value) > INTEGER_MAX:
        message = f"the integer `{value}` is beyond 2^53 and not the same number for every reader; pass it as a string"
        raise InputInvalidError(message, value=str(value))
    return str(value)


def _number(value: float, *, strict: bool) -> str:
    """As ECMAScript writes a number: the shortest digits that read back as the same double."""
    if not isfinite(value):
        if strict:
            message = f"the number `{value}` is not finite, so JSON cannot hold it; pass `null` or a string"
            raise InputInvalidError(message, value=str(value))
        return "null"
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    point = (
        len(digits) - len(fraction) + int(exponent or 0)
    )  # where the point is, counted from the first digit
    digits = digits.rstrip("0")
    count = len(digits)
    if count <= point <= 21:
        return sign + digits + "0" * (point - count)
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    more = f".{digits[1:]}" if count > 1 else ""
    return f"{sign}{digits[0]}{more}e{point - 1:+d}"
