"""One connection to an MCP server, held open by a task of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from mcp.client.client import Client
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp_types import Implementation

from perdure.core.errors import PerdureError, ToolUnreachableError
from perdure.tools.mcp_http import EVENT_BYTES_MAX, client
from perdure.tools.mcp_stdio import StdioPipe

CLIENT = Implementation(name="perdure", version="1")
CLOSE_S = 8  # more than a process gets to end in the polite way

T = TypeVar("T")


class Link:
    """A connection. The SDK wants it opened and closed by the same task, so it gets one.

    Args:
        name: the toolset, for messages.
        pipe: a server to start here; ``None`` for one behind ``url``.
        url: where the server is.
        headers: for each request.
    """

    def __init__(
        self, name: str, pipe: StdioPipe | None, url: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.pipe = pipe
        self._url = url
        self._headers = dict(headers or {})
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_open = False
        self.is_gone = False  # the server has forgotten the session

    @property
    def is_usable(self) -> bool:
        """Whether something can be asked."""
        is_open = self._is_open and self._task is not None and not self._task.done()
        return is_open and not self.is_gone and not (self.pipe is not None and self.pipe.is_broken)

    def why(self) -> str:
        """What is wrong with it."""
        return self.pipe.why() if self.pipe is not None else "the connection was closed"

    async def open(self, timeout_ms: int) -> ClientSession:
        """Connect and agree on a protocol.

        Raises:
            ToolUnreachableError: it cannot be done, or not in time.
        """
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[ClientSession] = loop.create_future()
        self._task = loop.create_task(self._hold(ready))
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await ready
        except PerdureError:
            await self.close()
            raise
        except TimeoutError:
            found = f"it did not answer within {timeout_ms} ms"
        except Exception as error:  # noqa: BLE001
            # Whatever the SDK makes of the server's answers: no tool was asked for anything yet.
            found = str(_first(error)) or type(error).__name__
        except BaseException:
            await self.close()
            raise
        if self.pipe is not None:
            self.pipe.break_down(found)
            found = self.pipe.why()
        await self.close()
        raise ToolUnreachableError(f"server `{self.name}` cannot be used: {found}", toolset=self.name)

    async def _hold(self, ready: asyncio.Future[ClientSession]) -> None:
        try:
            async with AsyncExitStack() as stack:
                session = await self._enter(stack)
                if not ready.done():
                    self._is_open = True
                    ready.set_result(session)
                await self._stop.wait()
        except Exception as error:  # noqa: BLE001
            # Told to whoever opens it; later, those who wait for answers notice that this task is done.
            if not ready.done():
                ready.set_exception(error)
        finally:
            ready.cancel()

    async def _enter(self, stack: AsyncExitStack) -> ClientSession:
        if self.pipe is not None:
            sdk = Client(self.pipe, client_info=CLIENT, cache=None)
        else:
            http = await stack.enter_async_context(client(self._headers))
            transport = streamable_http_client(
                self._url, http_client=http, max_sse_event_size=EVENT_BYTES_MAX
            )
            sdk = Client(transport, client_info=CLIENT, cache=None)
        return (await stack.enter_async_context(sdk)).session

    async def ask(self, work: Coroutine[Any, Any, T], timeout_ms: int) -> T:
        """Wait for an answer, but no longer than the connection lives.

        Raises:
            TimeoutError: it did not come in time.
            ConnectionError: the connection ended first.
        """
        if self._task is None:
            raise ConnectionError("the connection is not open")
        asked = asyncio.get_running_loop().create_task(work)
        try:
            either: set[asyncio.Task[Any]] = {asked, self._task}
            await asyncio.wait(either, timeout=timeout_ms / 1000, return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                return asked.result()
            if self._task.done():
                raise ConnectionError("the connection ended")
            raise TimeoutError
        finally:
            if not asked.done():
                asked.cancel()
                await asyncio.gather(asked, return_exceptions=True)

    async def close(self) -> None:
        """Let go; never raises."""
        if self._task is None:
            return
        self._stop.set()
        await asyncio.wait({self._task}, timeout=CLOSE_S if self.is_usable else 0)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def _first(error: BaseException) -> BaseException:
    """What is inside of groups of exceptions."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
