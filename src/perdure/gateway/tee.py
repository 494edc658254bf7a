"""One upstream answer, many readers: each gets every chunk from the first, live, until the outcome is durable."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from perdure.core.errors import PerdureError


class Tee:
    """The body of an answer while it arrives."""

    def __init__(self) -> None:
        self.status = 0
        self.content_type = ""
        self.headers: tuple[tuple[str, str], ...] = ()
        self.error: PerdureError | None = None
        self.is_durable = False
        self.readers = 0
        self._chunks: list[bytes] = []
        self._released = 0
        self._news: asyncio.Future[None] | None = None
        self._has_head = False

    def head(self, status: int, content_type: str, headers: tuple[tuple[str, str], ...]) -> None:
        """The answer begins."""
        self.status, self.content_type, self.headers = status, content_type, headers
        self._has_head = True
        self._tell()

    def feed(self, chunk: bytes, is_finishing: bool) -> None:  # noqa: FBT001 - the second half of a pair
        """A chunk has arrived.

        Documents, and what ends a stream, wait for :meth:`end`, so that a program never acts on an answer that a crash
        could take back.
        """
        self._chunks.append(chunk)
        if "event-stream" in self.content_type and not is_finishing:
            self._released += 1
            self._tell()

    def end(self) -> None:
        """The outcome is durable."""
        self.is_durable = True
        self._released = len(self._chunks)
        self._tell()

    def fail(self, error: PerdureError) -> None:
        """There is no outcome that could be told."""
        self.error = error
        self._tell()

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.is_durable or self.error is not None

    async def wait_head(self) -> None:
        """Until the status is known.

        Raises:
            PerdureError: there will be none.
        """
        while not self._has_head:
            if self.error is not None:
                raise self.error
            await self._wait()

    async def read(self) -> AsyncIterator[bytes]:
        """Every chunk; ends when the outcome is durable.

        Raises:
            PerdureError: the answer broke off.
        """
        at = 0
        while True:
            while at < self._released:
                at += 1
                yield self._chunks[at - 1]
            if self.is_durable:
                return
            if self.error is not None:
                raise self.error
            await self._wait()

    async def _wait(self) -> None:
        if self._news is None:
            self._news = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._news)

    def _tell(self) -> None:
        news, self._news = self._news, None
        if news is not None:
            news.set_result(None)
