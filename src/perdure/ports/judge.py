"""Judges: how the gateway reaches an external judge of actions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeAnswer:
    """What came back, as it came.

    Attributes:
        status: of HTTP.
        content_type: as it was sent; empty if it was not.
        encoding: ``content-encoding`` as it was sent; nothing is decoded.
        body: at most as many bytes as were allowed.
        is_whole: false if there were more.
    """

    status: int
    content_type: str
    encoding: str
    body: bytes
    is_whole: bool


class JudgeLink(Protocol):
    """A way to one judge."""

    async def post(
        self, path: str, headers: Mapping[str, str], body: bytes, *, limit_bytes: int
    ) -> JudgeAnswer:
        """Ask once. Follows no redirect, keeps no cookie, tries nothing again. Waits for as long as the caller does.

        Args:
            path: below the judge's address, beginning with ``/``.
            headers: as they are to be sent.
            body: JSON.
            limit_bytes: of the answer; the rest is not read.

        Raises:
            UnavailableError: no whole answer came. Its message holds neither headers nor the path.
        """
        ...

    async def close(self) -> None:
        """Let go; never raises."""
        ...
