"""Sandboxes on other machines: jobs go to sandbox hosts, their doors come back over the same connection."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import ssl
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from perdure.core.errors import InputInvalidError, SandboxUnavailableError
from perdure.core.sandbox import (
    Ending,
    SandboxJob,
    SandboxLimits,
    SandboxOutcome,
    Tier,
    check_file_name,
    narrower,
)
from perdure.ports import Door
from perdure.sandboxes.host_link import (
    HELLO_BYTES_MAX,
    ON_THEIR_WAY_BYTES,
    PROTOCOL,
    STALL_S,
    VERSION,
    Channel,
    Kind,
    Link,
    LinkError,
    Refusal,
    Size,
)
from perdure.sandboxes.host_server import FILE_OVERHEAD_BYTES, TRANSFER_S, Greeting, Order

CONNECT_S = 10.0
IDLE_MAX = 8  # connections to one host that are kept for the next job
AT_ONCE = 64
AVOIDED_S = 5.0  # for which a host that failed comes last
GRACE_S = 30.0  # after the wall time, for a host to say how a job ended
PROBLEM_LENGTH = 200
LEFT_OUT_BYTES = 1 << 20
OUTCOME_BYTES = 65_536

_log = logging.getLogger(__name__)


class HostAddress(NamedTuple):
    """Where a host is.

    Attributes:
        name: that its certificate must have.
        address: a name or a number of the network.
        port: TCP.
    """

    name: str
    address: str
    port: int

    @classmethod
    def parse(cls, text: str) -> HostAddress:
        """Read ``NAME@ADDRESS:PORT``.

        Raises:
            InputInvalidError: it is something else.
        """
        name, _, where = text.partition("@")
        address, _, port = where.rpartition(":")
        if not name or not address or not port.isdigit() or not 0 < int(port) < 65_536:
            raise InputInvalidError(f"`{text:.100}` is no sandbox host; expected NAME@ADDRESS:PORT")
        return cls(name, address.strip("[]"), int(port))


class _Busy(Exception):
    """A host did not take a job; nothing was executed."""


class _Host:
    """One host, with connections to it that wait for a job."""

    def __init__(self, where: HostAddress) -> None:
        self.where = where
        self.idle: deque[Link] = deque()
        self.avoided_until = 0.0


class SandboxHosts:
    """Implements ``Sandboxes`` with those of hosts elsewhere.

    Args:
        hosts: where they are.
        tls: who we are (see :func:`perdure.sandboxes.host_keys.context`).
        tier: the wall that every host must have; one with another wall is not used.
        limits: of every job, where the host's are wider.
    """

    def __init__(
        self,
        hosts: Sequence[HostAddress],
        tls: ssl.SSLContext,
        *,
        tier: Tier = "namespace",
        limits: SandboxLimits | None = None,
    ) -> None:
        if not hosts:
            raise InputInvalidError("there is no sandbox host; name at least one")
        self.tier: Tier = tier
        self._hosts = [_Host(where) for where in hosts]
        self._tls = tls
        self._limits = limits or SandboxLimits()
        self._turn = itertools.count()
        self._room = asyncio.Semaphore(AT_ONCE)
        self._in_use: set[Link] = set()
        self._is_closed = False
        self.parts: Mapping[str, str] = {}

    async def open(self) -> None:
        """Greet every host, and prove with a real job that one of them works; hosts that are missing are named in ``parts``."""
        parts: dict[str, str] = {}
        for host in self._hosts:
            try:
                link, greeting = await self._dial(host.where)
            except _Busy as error:
                parts[f"host {host.where.name}"] = f"missing: {error}"
            else:
                parts[f"host {host.where.name}"] = "; ".join(
                    f"{name}: {value}" for name, value in greeting.parts.items()
                )
                await self._keep(host, link)
        self.parts = parts
        found = await self.run(SandboxJob(code="print(6 * 7)"))
        if found.stdout != b"42\n":
            said = found.stderr.decode(errors="replace")[-300:]
            raise SandboxUnavailableError(
                f"a sandbox of {found.detail} did not work ({found.ending}): {said}"
            )

    # -- connections
    async def _dial(self, where: HostAddress) -> tuple[Link, Greeting]:
        try:
            async with asyncio.timeout(CONNECT_S):
                reader, writer = await asyncio.open_connection(
                    where.address, where.port, ssl=self._tls, server_hostname=where.name, ssl_handshake_timeout=CONNECT_S,
                    ssl_shutdown_timeout=1,
                )  # fmt: skip
        except (OSError, TimeoutError) as error:
            why = getattr(error, "verify_message", "") or getattr(error, "reason", "") or str(error)
            raise _Busy(f"cannot be reached: {why or 'it does not answer'}") from error
        peer = writer.get_extra_info("ssl_object")
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = Link(reader, writer)
        try:
            if peer.selected_alpn_protocol() != PROTOCOL:
                raise LinkError(f"it does not speak {PROTOCOL}")
            await link.tell(Kind.HELLO, Greeting(VERSION))
            frame = await link.receive(Kind.HELLO, Kind.REFUSED, within_s=CONNECT_S)
            if frame.kind is Kind.REFUSED:
                raise LinkError(frame.read(Refusal).message[:PROBLEM_LENGTH])
            if len(frame.data) > HELLO_BYTES_MAX:
                raise LinkError("its greeting is too long")
            greeting = frame.read(Greeting)
            if greeting.tier != self.tier:
                raise LinkError(f"its wall is `{greeting.tier}` and `{self.tier}` is asked for")
        except LinkError as error:
            await link.close()
            raise _Busy(
                f"refused the connection ({error}); does it know this client, and is its certificate in date?"
            ) from error
        except BaseException:
            await link.close()
            raise
        return link, greeting

    async def _keep(self, host: _Host, link: Link) -> None:
        if self._is_closed or link.gone.is_set() or len(host.idle) >= IDLE_MAX:
            await link.close()
        else:
            host.idle.append(link)

    async def _offered(self, host: _Host, size: int) -> Link:
        """A connection on which the host has accepted a job of that size; a kept one may be dead, a fresh one is tried then."""
        while host.idle:
            link = host.idle.pop()
            try:
                await self._offer(link, size)
            except LinkError:
                await link.close()
            except BaseException:
                await link.close()
                raise
            else:
                return link
        link, _ = await self._dial(host.where)
        try:
            await self._offer(link, size)
        except LinkError as error:
            await link.close()
            raise _Busy(str(error)) from error
        except BaseException:
            await link.close()
            raise
        return link

    async def _offer(self, link: Link, size: int) -> None:
        await link.tell(Kind.JOB, Size(size))
        frame = await link.receive(Kind.ACCEPT, Kind.REFUSED, within_s=STALL_S)
        if frame.kind is Kind.REFUSED:
            raise _refused(frame.read(Refusal))

    def _in_order(self) -> list[_Host]:
        """All hosts in turn, those that failed just now last."""
        now = asyncio.get_running_loop().time()
        first = next(self._turn) % len(self._hosts)
        turned = [*self._hosts[first:], *self._hosts[:first]]
        return sorted(turned, key=lambda host: host.avoided_until > now)

    # -- one job
    async def run(
        self, job: SandboxJob, limits: SandboxLimits | None = None, *, doors: Mapping[int, Door] | None = None
    ) -> SandboxOutcome:
        """Execute a job at a host (see the port). One that cannot be reached, or is busy, is passed over before the job began."""
        chosen = self._limits if limits is None else narrower(self._limits, limits)
        try:
            body = msgspec.msgpack.encode(Order(job, chosen, tuple(doors or ())))
        except UnicodeEncodeError as error:
            raise InputInvalidError(
                "the code of a job has a lone surrogate; expected text that UTF-8 can hold"
            ) from error
        problems: list[str] = []
        async with self._room:
            for host in self._in_order():
                if self._is_closed:
                    break
                try:
                    return await self._at(host, body, chosen, doors or {})
                except _Busy as error:
                    host.avoided_until = asyncio.get_running_loop().time() + AVOIDED_S
                    problems.append(f"{host.where.name} {str(error)[:PROBLEM_LENGTH]}")
        raise SandboxUnavailableError(
            f"no sandbox host takes the job: {'; '.join(problems) or 'they are closed'}"
        )

    async def _at(
        self, host: _Host, body: bytes, limits: SandboxLimits, doors: Mapping[int, Door]
    ) -> SandboxOutcome:
        link = await self._offered(host, len(body))
        self._in_use.add(link)
        try:
            await link.send_parts(body)
        except LinkError as error:
            self._in_use.discard(link)
            await link.close()
            raise _Busy(str(error)) from error  # without our word nothing is executed
        except BaseException:
            self._in_use.discard(link)
            await link.close()
            raise
        served = _Served(link, doors, limits)
        loop = asyncio.get_running_loop()
        began = loop.time()
        is_clean = False
        try:
            await link.send(Kind.GO)
            outcome = await self._outcome(host, link, limits)
            is_clean = True
            return outcome
        except _Busy:
            is_clean = True
            raise
        except InputInvalidError:
            is_clean = True
            raise
        except (LinkError, msgspec.MsgspecError) as error:
            wall_ms = (loop.time() - began) * 1000
            late = wall_ms >= limits.wall_ms + GRACE_S * 1000
            return self._ended(host, "wall-time" if late else "lost", wall_ms, str(error))
        finally:
            self._in_use.discard(link)
            await served.close()
            if is_clean:
                await self._keep(host, link)
            else:
                await link.close()

    async def _outcome(self, host: _Host, link: Link, limits: SandboxLimits) -> SandboxOutcome:
        within_s = limits.wall_ms / 1000 + GRACE_S
        frame = await link.receive(Kind.OUTCOME, Kind.REFUSED, within_s=within_s)
        if frame.kind is Kind.REFUSED:
            raise _refused(frame.read(Refusal))
        files = limits.disk_bytes + limits.files * FILE_OVERHEAD_BYTES + LEFT_OUT_BYTES
        most = OUTCOME_BYTES + 2 * limits.output_bytes + files
        body = await link.receive_body(frame.read(Size).size, most, TRANSFER_S)
        found = msgspec.msgpack.decode(body, type=SandboxOutcome)
        if found.tier != self.tier or max(len(found.stdout), len(found.stderr)) > limits.output_bytes:
            raise LinkError("the outcome is not one of the job that was given")
        _check_files(found, limits)
        where = f"host {host.where.name}"
        return msgspec.structs.replace(found, detail=f"{found.detail}; {where}" if found.detail else where)

    def _ended(self, host: _Host, ending: Ending, wall_ms: float, why: str) -> SandboxOutcome:
        return SandboxOutcome(
            ending=ending, exit_code=None, stdout=b"", stderr=why.encode(), cpu_ms=0.0, memory_peak_bytes=0, wall_ms=wall_ms,
            tier=self.tier, detail=f"host {host.where.name}",
        )  # fmt: skip

    async def close(self) -> None:
        """Let go of all connections; hosts stop what still runs."""
        self._is_closed = True
        for link in list(self._in_use):
            await link.close()
        for host in self._hosts:
            while host.idle:
                await host.idle.popleft().close()


class _Served:
    """The doors of one job, on our side."""

    def __init__(self, link: Link, doors: Mapping[int, Door], limits: SandboxLimits) -> None:
        self._link = link
        self._doors = doors
        self._tasks: set[asyncio.Task[None]] = set()
        link.carried_bytes, link.carried_max = 0, limits.network_bytes + ON_THEIR_WAY_BYTES
        link.opened = self._opened if doors else None

    def _opened(self, port: int, channel: Channel) -> None:
        door = self._doors.get(port)
        if door is None:
            raise LinkError(f"a door was opened at port {port}, where there is none")
        task = asyncio.get_running_loop().create_task(self._serve(door, channel))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("a door of a sandbox failed: %r", error)

    async def _serve(self, door: Door, channel: Channel) -> None:
        ours, theirs = socket.socketpair()
        writers: list[asyncio.StreamWriter] = []
        carrying: asyncio.Future[None] | None = None
        try:
            near = await asyncio.open_connection(sock=ours)
            writers.append(near[1])
            far = await asyncio.open_connection(sock=theirs)
            writers.append(far[1])
            carrying = asyncio.ensure_future(channel.carry(*near))
            await door(*far)
            far[1].close()
            with contextlib.suppress(ConnectionError):
                await far[1].wait_closed()
            channel.finish()
            await carrying
        finally:
            if carrying is not None:
                carrying.cancel()
                await asyncio.gather(carrying, return_exceptions=True)
            for writer in writers:
                writer.transport.abort()
            for one in (ours, theirs):
                one.close()
            await channel.close()

    async def close(self) -> None:
        """Cut what is open."""
        self._link.opened = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _check_files(found: SandboxOutcome, limits: SandboxLimits) -> None:
    """A host may be anybody's by now: names that lead out are not believed."""
    if len(found.files) > limits.files or sum(len(file.data) for file in found.files) > limits.disk_bytes:
        raise LinkError("more files came back than a job may have")
    try:
        for file in found.files:
            check_file_name(file.name)
    except InputInvalidError as error:
        raise LinkError(error.message) from error


def _refused(refusal: Refusal) -> Exception:
    words = refusal.message[:PROBLEM_LENGTH]
    if refusal.code == "input-invalid":
        return InputInvalidError(words)
    return _Busy(f"refused it ({refusal.code[:40]}): {words}")
