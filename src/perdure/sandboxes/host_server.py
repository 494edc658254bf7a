"""A sandbox host: executes jobs of clients that it knows, in sandboxes of its own, and stops those of clients that are gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Mapping

import msgspec

from perdure.core.errors import BrokenInvariantError, InputInvalidError, PerdureError, SandboxUnavailableError
from perdure.core.sandbox import SandboxJob, SandboxLimits, SandboxOutcome, Tier
from perdure.ports import Door, Sandboxes
from perdure.sandboxes.host_keys import peer_name
from perdure.sandboxes.host_link import (
    ON_THEIR_WAY_BYTES,
    PROTOCOL,
    STALL_S,
    VERSION,
    Kind,
    Link,
    LinkError,
    Refusal,
    Size,
)

HANDSHAKE_S = 10.0  # for TLS, and again for the first frame
STRANGERS_MAX = 64  # connections that have not shown who they are; beyond them the oldest is dropped
CONNECTIONS_MAX = 256
OF_ONE_CLIENT_MAX = 64
AT_ONCE = 16
TRANSFER_S = 120.0  # for a job to arrive
WAIT_S = 300.0  # for the next job on a connection
CODE_BYTES_MAX = 16 << 20
FILE_OVERHEAD_BYTES = 5_000
DOORS_MAX = 64
MESSAGE_LENGTH_MAX = 2_000
BACKLOG = 128

_log = logging.getLogger(__name__)


class Greeting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The payload of ``HELLO``: of a client only its version; of a host also what it has."""

    version: int
    tier: Tier = "none"
    parts: Mapping[str, str] = {}


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the body of a ``JOB`` is, in MessagePack."""

    job: SandboxJob
    limits: SandboxLimits
    doors: tuple[int, ...] = ()


class SandboxHost:
    """Serves sandboxes of this machine.

    Args:
        sandboxes: opened ones; theirs is the wall.
        limits: those of the sandboxes: jobs and files beyond them are refused before they are taken.
        tls: who this is (see :func:`perdure.sandboxes.host_keys.context`).
        clients: whose certificates count, by name.
        at_once: jobs at the same time; more are told to go elsewhere.
    """

    def __init__(
        self,
        sandboxes: Sandboxes,
        limits: SandboxLimits,
        tls: ssl.SSLContext,
        *,
        clients: tuple[str, ...],
        at_once: int = AT_ONCE,
    ) -> None:
        self._sandboxes = sandboxes
        self._tls = tls
        self._clients = frozenset(clients)
        self._free = at_once
        self._most = (
            CODE_BYTES_MAX + limits.disk_bytes + limits.files * FILE_OVERHEAD_BYTES
        )  # of a job with everything
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._strangers: dict[asyncio.Task[None], socket.socket] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._of: Counter[str] = Counter()

    async def listen(self, address: str, port: int) -> int:
        """Take connections from now on; gives the port.

        Raises:
            SandboxUnavailableError: the address cannot be had.
        """
        try:
            self._listener = socket.create_server((address, port), backlog=BACKLOG)
        except OSError as error:
            raise SandboxUnavailableError(
                f"{address}:{port} cannot be listened at: {error.strerror}"
            ) from error
        self._listener.setblocking(False)  # noqa: FBT003 - the standard library's own
        self._accepting = asyncio.get_running_loop().create_task(self._accept(self._listener))
        return int(self._listener.getsockname()[1])

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError:  # no descriptors left: those that are served give some back
                await asyncio.sleep(0.1)
                continue
            if len(self._serving) >= CONNECTIONS_MAX:
                connection.close()
                continue
            if len(self._strangers) >= STRANGERS_MAX:  # who is slow on purpose keeps nobody else out
                next(iter(self._strangers)).cancel()
            task = loop.create_task(self._greet(connection))
            self._strangers[task] = connection
            self._serving.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._serving.discard(task)
        connection = self._strangers.pop(task, None)
        if connection is not None:
            connection.close()
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a connection of a sandbox host failed: %r", error)

    # -- one connection
    async def _greet(self, connection: socket.socket) -> None:
        """TLS first: who cannot show a certificate of the authority gets no further."""
        loop = asyncio.get_running_loop()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                transport, _ = await loop.connect_accepted_socket(
                    lambda: protocol,
                    connection,
                    ssl=self._tls,
                    ssl_handshake_timeout=HANDSHAKE_S,
                    ssl_shutdown_timeout=1,
                )
        except (OSError, TimeoutError) as error:
            _log.info("a connection was refused: %s", error)
            return
        peer = transport.get_extra_info("ssl_object")
        name = peer_name(peer)
        if name not in self._clients or peer.selected_alpn_protocol() != PROTOCOL:
            _log.warning("a connection of `%s` was refused: it is not among the clients", name)
            transport.abort()
            return
        self._strangers.pop(asyncio.current_task(), None)  # type: ignore[arg-type]
        if self._of[name] >= OF_ONE_CLIENT_MAX:
            transport.abort()
            return
        self._of[name] += 1
        link = Link(reader, asyncio.StreamWriter(transport, protocol, reader, loop))
        try:
            await self._serve(link)
        except LinkError as error:
            _log.info("the connection of `%s` ended: %s", name, error)
        finally:
            self._of[name] -= 1
            await link.close()

    async def _serve(self, link: Link) -> None:
        theirs = (await link.receive(Kind.HELLO, within_s=HANDSHAKE_S)).read(Greeting)
        if theirs.version != VERSION:
            await link.tell(
                Kind.REFUSED,
                Refusal("version", f"this host speaks version {VERSION}, found {theirs.version}"),
            )
            with contextlib.suppress(TimeoutError):  # until it was read
                async with asyncio.timeout(HANDSHAKE_S):
                    await link.gone.wait()
            return
        await link.tell(Kind.HELLO, Greeting(VERSION, self._sandboxes.tier, self._sandboxes.parts))
        while True:
            asked = (await link.receive(Kind.JOB, within_s=WAIT_S)).read(Size)
            if not 0 < asked.size <= self._most:
                words = f"the job has {asked.size} bytes and {self._most} is the limit of this host"
                await link.tell(Kind.REFUSED, Refusal("input-invalid", words))
            elif self._free <= 0:
                await link.tell(Kind.REFUSED, Refusal("busy", "this host has as many jobs as it may"))
            else:
                self._free -= 1
                try:
                    await self._job(link, asked.size)
                finally:
                    self._free += 1

    async def _job(self, link: Link, size: int) -> None:
        """Take it whole, and only on the client's word begin: before that word nothing is executed."""
        await link.send(Kind.ACCEPT)
        body = await link.receive_body(size, self._most, TRANSFER_S)
        await link.receive(Kind.GO, within_s=STALL_S)
        try:
            order = msgspec.msgpack.decode(body, type=Order)
            del body
            if len(order.doors) > DOORS_MAX:
                raise SandboxUnavailableError(f"a job may have {DOORS_MAX} doors, found {len(order.doors)}")
            _check(order.limits)
            outcome = await self._executed(link, order)
        except msgspec.MsgspecError as error:
            await link.tell(Kind.REFUSED, Refusal("input-invalid", f"the job cannot be read: {error}"))
        except BrokenInvariantError:
            raise
        except PerdureError as error:
            await link.tell(Kind.REFUSED, Refusal(error.code, error.message[:MESSAGE_LENGTH_MAX]))
        else:
            body = msgspec.msgpack.encode(outcome)
            await link.tell(Kind.OUTCOME, Size(len(body)))
            await link.send_parts(body)

    async def _executed(self, link: Link, order: Order) -> SandboxOutcome:
        """Execute it; if the client goes away it is stopped."""
        doors: dict[int, Door] = {port: _carried(link, port) for port in order.doors}
        link.carried_bytes, link.carried_max = 0, order.limits.network_bytes + ON_THEIR_WAY_BYTES
        running = asyncio.ensure_future(self._sandboxes.run(order.job, order.limits, doors=doors))
        gone = asyncio.ensure_future(link.gone.wait())
        try:
            await asyncio.wait((running, gone), return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                raise LinkError("the client is gone; its job was stopped")
            return await running
        finally:
            for task in (running, gone):
                task.cancel()
            await asyncio.gather(running, gone, return_exceptions=True)

    async def close(self) -> None:
        """Stop taking connections, and stop every job."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        serving = list(self._serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


def _check(limits: SandboxLimits) -> None:
    """Below zero there is no limit for the kernel, and the smaller one of two would be none."""
    if unfit := [name for name in limits.__struct_fields__ if not getattr(limits, name) > 0]:
        raise InputInvalidError(
            f"the limits of a job are above zero; found `{unfit[0]}` {getattr(limits, unfit[0])}"
        )


def _carried(link: Link, port: int) -> Door:
    """A door whose other side is with the client."""

    async def door(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(LinkError):  # the job is stopped with its link
            channel = await link.open_channel(port)
            try:
                await channel.carry(reader, writer)
            finally:
                await channel.close()

    return door
