"""The runtime's side of a worker's connection."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from perdure.core.errors import PerdureError, RequestInvalidError
from perdure.engines.isolated import wire

if TYPE_CHECKING:
    from perdure.engines.isolated.process import WorkerProcess

log = logging.getLogger("perdure.workers")
HELLO_S = 5.0  # from a connection to its hello; the import of the app comes before it connects
_CREDENTIALS = struct.Struct("3i")


class Link(wire.FrameReader):
    """The runtime's side of one connection. Nothing is heard before a valid hello.

    Args:
        greet: finds the worker of a hello's token; gives the answer to it.
    """

    def __init__(self, greet: Callable[[Link, wire.Hello], wire.Welcome]) -> None:
        super().__init__(wire.HELLO_BYTES_MAX)
        self.worker: WorkerProcess | None = None
        self._greet = greet

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody is there, who must say hello soon."""
        super().connection_made(transport)
        asyncio.get_running_loop().call_later(HELLO_S, self._must_have_greeted)

    def _must_have_greeted(self) -> None:
        if self.worker is None:
            self.fail("no hello came")

    def take(self, data: bytes) -> None:
        """A frame; one that breaks the protocol ends the connection and its worker."""
        run: int | None = None
        try:
            frame = wire.read_upward(data)
            run = getattr(frame, "run", None)
            if self.worker is not None:
                self.worker.take(frame)
            elif isinstance(frame, wire.Hello):
                welcome = self._greet(self, frame)
                self.bytes_max = welcome.frame_bytes_max
                self.send(welcome)
            else:
                raise RequestInvalidError("expected `hello` first")
        except PerdureError as error:
            self._break(str(error), run)
        except (
            Exception
        ) as error:  # a bug of ours that a frame has found: the worker ends, the runtime goes on
            log.exception("a frame of a worker could not be handled")
            self._break(f"{type(error).__name__}: {error}", run)

    def _break(self, why: str, run: int | None) -> None:
        if self.worker is not None:
            self.worker.blame(run)
        self.fail(f"the worker does not keep to the protocol: {why}")

    def lose(self, why: str) -> None:
        """The connection has ended, so the worker has."""
        if self.worker is not None:
            self.worker.kill(why)

    def peer(self) -> tuple[int, int]:
        """The process and user at the other end, as the kernel knows them."""
        if self.transport is None:
            return 0, -1
        found: socket.socket = self.transport.get_extra_info("socket")
        data = found.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(data)
        return pid, uid
