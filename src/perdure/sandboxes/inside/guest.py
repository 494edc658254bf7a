"""Does one job inside a machine or kernel of its own, and talks with the outside over one stream of bytes (see ``frames``).

It is the first process there and root of nothing but this guest. A worker without privileges is forked ahead of the job; a keeper beside
it waits for its end, ends what it has left behind, and reads its files. Everything here is thrown away after one job.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import execute  # noqa: F401 - for the worker, which has no path to it any more
import frames
import linux
import preloaded
import sandbox
from link import Link

READ_BYTES = 65_536
POLL_S = 0.1  # between looks at what all processes have used together
ADD_ENTROPY, RESEED = 0x40085203, 0x5207  # ioctls of /dev/random: linux/random.h
CONNECTIONS_MAX = 64  # open at once through all doors
ENDED = b""
LIMITS = ("memory_bytes", "processes", "disk_bytes", "files", "cpu_share")  # of all processes together


class Limits:
    """What all processes of a job have together; here no more than the machine itself has.

    Attributes:
        missing: resource limits that this kernel has not.
    """

    missing: tuple[int, ...] = ()

    def enter(self) -> None:
        """Put this process, and what it forks, under it."""

    def narrow(self, job: dict[str, Any]) -> None:
        """Take the limits of this job."""

    def met(self, job: dict[str, Any]) -> str:
        """Which limit it has met, if it must be stopped for it."""
        del job
        return ""

    def begin(self) -> None:
        """What was used before does not count."""

    def found(self) -> dict[str, Any]:
        """What is told of it at the end."""
        return {}


class Guest:
    """One guest.

    Args:
        config: the limits that it is made for.
        limits: of all processes together.
    """

    def __init__(self, config: dict[str, Any], limits: Limits) -> None:
        self._config = config
        self._limits = limits
        self._selector = selectors.DefaultSelector()
        self._channel, theirs = socket.socketpair()
        self._connections: dict[int, _Connection] = {}
        self._numbers = 0
        self._told = bytearray()
        self._stopped = ""
        self._outputs = 2
        self._next_look = 0.0
        os.makedirs("/workspace", exist_ok=True)
        keeper = os.fork()
        if keeper == 0:
            os.closerange(3, theirs.fileno())
            os.closerange(theirs.fileno() + 1, sandbox.DESCRIPTORS_MAX)
            _keep(theirs, config, limits)
        theirs.close()

    def serve(self, link: Link, prepare: Callable[[dict[str, Any]], None]) -> None:
        """Do one job, tell how it ended."""
        self._link = link
        job, given = self._take()
        prepare(job)
        self._limits.begin()
        if any(job[name] != self._config[name] for name in LIMITS):
            self._limits.narrow(job)
        out, err = os.pipe(), os.pipe()
        descriptors = [given[frames.INPUT], out[1], err[1]]
        if job["has_files"]:
            descriptors.append(given[frames.ARCHIVE])
        data = json.dumps(job).encode()
        linux.send(self._channel, sandbox.HEAD.pack(len(data)), descriptors)
        self._channel.sendall(data)
        for descriptor in (*given.values(), out[1], err[1]):
            os.close(descriptor)
        if job["doors"]:
            self._take_listeners(job["doors"])
        self._watch(link.source, self._hear)
        self._watch(out[0], lambda: self._pass_on(out[0], frames.OUT))
        self._watch(err[0], lambda: self._pass_on(err[0], frames.ERROR))
        self._watch(self._channel.fileno(), lambda: self._listen(job))
        self._next_look = time.monotonic() + POLL_S
        while self._outputs or self._channel.fileno() >= 0:
            for key, _ in self._selector.select(POLL_S):
                if key.fd in self._selector.get_map():
                    key.data()
            if time.monotonic() >= self._next_look:
                self._look(job)
        self._tell()

    # -- from outside
    def _take(self) -> tuple[dict[str, Any], dict[bytes, int]]:
        """The job, its input and its files."""
        given: dict[bytes, int] = {}
        job: dict[str, Any] = {}
        while True:
            kind, _, data = self._link.frame()
            if kind == frames.JOB:
                job = json.loads(data)
            elif kind == frames.GO:
                break
            else:
                if kind not in given:
                    given[kind] = os.memfd_create("given")
                os.write(given[kind], data)
        for descriptor in given.values():
            os.lseek(descriptor, 0, os.SEEK_SET)
        if frames.INPUT not in given:
            given[frames.INPUT] = os.open("/dev/null", os.O_RDONLY)
        return job, given

    def _hear(self) -> None:
        """What comes through the doors, from the far side."""
        self._link.read()
        while (found := self._link.held()) is not None:
            kind, number, data = found
            connection = self._connections.get(number)
            if connection is not None:
                connection.give(data if kind == frames.DATA else ENDED)

    # -- from the job
    def _pass_on(self, descriptor: int, kind: bytes) -> None:
        data = os.read(descriptor, READ_BYTES)
        if data:
            self._link.send(kind, data)
            return
        self._forget(descriptor)
        os.close(descriptor)
        self._outputs -= 1

    def _listen(self, job: dict[str, Any]) -> None:
        """The keeper: a line about the end, then the files if they are wanted."""
        data = self._channel.recv(READ_BYTES)
        if not data:
            self._forget(self._channel.fileno())
            self._channel.close()
            return
        if b"\n" in self._told:
            self._link.send(frames.FILES, data)
            return
        self._told += data
        place = self._told.find(b"\n") + 1
        if place:
            rest = bytes(self._told[place:])
            del self._told[place:]
            if rest:
                self._link.send(frames.FILES, rest)
            try:
                self._channel.sendall(b"C" if job["collects"] else b"N")
            except BrokenPipeError:  # the keeper has ended already; the end of the channel tells
                pass

    def _look(self, job: dict[str, Any]) -> None:
        self._next_look = time.monotonic() + POLL_S
        met = "" if self._stopped else self._limits.met(job)
        if met:
            self._stopped = met
            os.kill(-1, signal.SIGUSR1)  # the keeper ends the others; none of them can end it

    def _tell(self) -> None:
        told = json.loads(self._told) if b"\n" in self._told else {}
        told.update(self._limits.found())
        if self._stopped:
            told["stopped"] = self._stopped
        self._link.send(frames.TOLD, json.dumps(told).encode())

    # -- doors
    def _take_listeners(self, ports: list[int]) -> None:
        data, found = linux.receive(self._channel, 1, len(ports))
        if data != b"D" or len(found) != len(ports):
            self._link.send(frames.TOLD, b'{"doors": "they could not be opened"}')
            os._exit(0)
        for port, descriptor in zip(ports, found, strict=True):
            listener = socket.socket(fileno=descriptor)
            listener.setblocking(False)  # noqa: FBT003 - the standard library's own
            self._watch(descriptor, partial(self._accept, port, listener))

    def _accept(self, port: int, listener: socket.socket) -> None:
        if len(self._connections) >= CONNECTIONS_MAX:
            return  # more wait
        made, _ = listener.accept()
        self._numbers = self._numbers % 0xFFFF + 1
        while self._numbers in self._connections:
            self._numbers = self._numbers % 0xFFFF + 1
        number = self._numbers
        self._connections[number] = _Connection(self, self._link, number, made)
        self._link.send(frames.KNOCK, struct.pack("<H", port), number)

    def let_go(self, number: int) -> None:
        """A connection is over."""
        del self._connections[number]

    # -- the loop
    def _watch(self, descriptor: int, act: Callable[[], None]) -> None:
        self._selector.register(descriptor, selectors.EVENT_READ, act)

    def watch(self, descriptor: int, events: int, act: Callable[[], None]) -> None:
        """Call it when something is there; no events: never."""
        known = descriptor in self._selector.get_map()
        if not events:
            if known:
                self._selector.unregister(descriptor)
        elif known:
            self._selector.modify(descriptor, events, act)
        else:
            self._selector.register(descriptor, events, act)

    def _forget(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)


class _Connection:
    """One connection through a door, seen from inside."""

    def __init__(self, guest: Guest, link: Link, number: int, opened: socket.socket) -> None:
        self._guest, self._link, self._number, self._socket = guest, link, number, opened
        self._left = bytearray()
        self._is_ended_outside = self._is_ended_inside = False
        opened.setblocking(False)  # noqa: FBT003 - the standard library's own
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._arm()

    def give(self, data: bytes) -> None:
        """Bytes from outside; none at their end."""
        if data:
            self._left += data
        else:
            self._is_ended_outside = True
        self._flush()

    def _arm(self) -> None:
        events = 0 if self._is_ended_inside else selectors.EVENT_READ
        if self._left:
            events |= selectors.EVENT_WRITE
        self._guest.watch(self._socket.fileno(), events, self._act)

    def _act(self) -> None:
        if self._left:
            self._flush()
        if self._socket.fileno() < 0 or self._is_ended_inside:
            return
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._link.send(frames.DATA, data, self._number)
            return
        self._is_ended_inside = True
        self._link.send(frames.END, b"", self._number)
        self._flush()

    def _flush(self) -> None:
        try:
            while self._left:
                del self._left[: self._socket.send(self._left)]
        except BlockingIOError:
            pass
        except OSError:  # nobody reads it any more
            self._left.clear()
            self._is_ended_outside = True
        if self._is_ended_outside and not self._left:
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            if self._is_ended_inside:
                self._guest.watch(self._socket.fileno(), 0, self._act)
                self._socket.close()
                self._guest.let_go(self._number)
                return
        self._arm()


def warm() -> None:
    """Import what jobs will want."""
    for name in preloaded.PRELOADED:
        __import__(name)
    gc.collect()
    gc.freeze()  # what is there now is shared with the worker, and never touched by its collector


def _keep(channel: socket.socket, config: dict[str, Any], limits: Limits) -> None:
    """The keeper: forks the worker, waits for it, tells."""
    signal.signal(signal.SIGUSR1, _end_the_others)
    worker = os.fork()
    if worker == 0:
        try:
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)
            limits.enter()
            _drop(config, limits.missing)
            sys.path[:] = [*config["packages"], *(path for path in sys.path if path != config["inside"])]
            sandbox.work(channel)
        finally:
            os._exit(127)
    sandbox.wait(channel, worker, config)


def _end_the_others(*_: object) -> None:
    try:
        os.kill(-1, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _drop(config: dict[str, Any], missing: tuple[int, ...]) -> None:
    os.chdir("/workspace")
    os.umask(0o077)
    sandbox.limit(config, missing)
    os.setgroups([])
    os.setresgid(sandbox.UID, sandbox.UID, sandbox.UID)
    os.setresuid(sandbox.UID, sandbox.UID, sandbox.UID)
    linux.control(linux.NO_NEW_PRIVILEGES, 1)


def reseed(entropy: bytes) -> None:
    """Chance of its own: guests that are copies of one state would draw the same numbers."""
    device = os.open("/dev/random", os.O_WRONLY | os.O_CLOEXEC)
    fcntl.ioctl(device, ADD_ENTROPY, struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy)
    fcntl.ioctl(device, RESEED)
    os.close(device)


def set_clock(now_ns: int) -> None:
    """The time of day: it stood still while the state was kept."""
    time.clock_settime_ns(time.CLOCK_REALTIME, now_ns)
