"""Sandboxes of Linux namespaces: a pool of single-use ones, forked by a zygote and filled up in the background."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping

from perdure.core.errors import InputInvalidError, SandboxUnavailableError
from perdure.core.sandbox import SandboxJob, SandboxLimits, SandboxOutcome, Tier, narrower
from perdure.ports import Door
from perdure.sandboxes.cgroups import Cgroups, group_name
from perdure.sandboxes.use import Use
from perdure.sandboxes.zygotes import BUILT_IN, Made, NotBegunError, Zygote, interpreter

RECYCLED_AFTER = (
    2_000  # sandboxes: forks share the layout of memory and the seed of hashes, so no zygote lives for ever
)
TRIES = 3  # for sandboxes that end before they have their job
IDLE_S = 10.0  # after which a spare one that nobody needed is given up
CODE_BYTES_MAX = 16 << 20
PORT_MIN, PORT_MAX = 1_024, 65_535


class NamespaceSandboxes:
    """Implements ``Sandboxes`` with namespaces, a system call filter, Landlock, resource limits and control groups.

    Args:
        limits: of every sandbox; a job may have narrower ones.
        spare: how many are kept ready at least.
        spare_max: and at most, when they are asked for faster than they are made.
        at_once: how many have a job at the same time; further jobs wait.
        python: the interpreter inside; by default the system's.
        packages: directories that are shown for reading, and on the path of Python code.
    """

    tier: Tier = "namespace"

    def __init__(
        self,
        limits: SandboxLimits | None = None,
        *,
        spare: int = 4,
        spare_max: int = 16,
        at_once: int = 64,
        python: str | None = None,
        packages: tuple[str, ...] = (),
    ) -> None:
        self._limits = limits or SandboxLimits()
        self._least, self._most = spare, max(spare, spare_max)
        self._wanted = spare
        self._python = python
        self._packages = packages
        self._groups: Cgroups | None = None
        self._zygote: Zygote | None = None
        self._spare: deque[Made] = deque()
        self._making: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(at_once)
        self._starting = asyncio.Lock()
        self._shrinking: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._old: set[asyncio.Task[None]] = set()
        self.parts: Mapping[str, str] = {}

    async def open(self) -> None:
        """Start the zygote, and prove with a real job that its sandboxes work here.

        Raises:
            SandboxUnavailableError: they do not.
        """
        if sys.platform != "linux":
            raise SandboxUnavailableError(
                f"namespaces are a thing of Linux, this is {sys.platform}; use tier `remote`"
            )
        groups = Cgroups(group_name())
        self._groups = groups if await asyncio.to_thread(groups.open) else None
        try:
            found = await self.run(SandboxJob(code="print(6 * 7)"))
        except BaseException:
            await self.close()
            raise
        if found.stdout != b"42\n":
            await self.close()
            said = found.stderr.decode(errors="replace")[-300:]
            raise SandboxUnavailableError(f"a sandbox was made and did not work ({found.ending}): {said}")
        self.parts = self._found_parts()

    def _found_parts(self) -> dict[str, str]:
        landlock = 0 if self._zygote is None else self._zygote.landlock
        version = None if self._groups is None else 2 if self._groups.is_newer else 1
        return {
            "namespaces": "user, mount, pid, network, ipc, uts, cgroup",
            "system calls": "filtered (seccomp), default deny",
            "privileges": "no capabilities, no new privileges",
            "landlock": f"version {landlock}" if landlock else "missing: this kernel has none",
            "cgroups": f"version {version}" if version else "missing: none may be written; limits hold for each process alone",
        }  # fmt: skip

    # -- the pool
    async def _current(self) -> Zygote:
        """The zygote that forks; a new one where the old one is gone or has made enough."""
        async with self._starting:
            if self._is_closed:
                raise SandboxUnavailableError("no sandbox can be made: the pool is closed")
            old = self._zygote
            if old is not None and not old.is_gone and old.made < RECYCLED_AFTER:
                return old
            made = Zygote(
                self._limits, self._groups, python=self._python or interpreter(), packages=self._packages
            )
            try:
                await made.greeted()
            except BaseException:
                await made.close()
                raise
            self._zygote = made
            if old is not None:
                self._retire(old)
            return made

    def _retire(self, zygote: Zygote) -> None:
        """Let what it has made end, then end it."""
        task = asyncio.get_running_loop().create_task(self._retired(zygote))
        self._old.add(task)
        task.add_done_callback(self._old.discard)

    async def _retired(self, zygote: Zygote) -> None:
        try:
            if not zygote.is_gone:
                await asyncio.sleep(self._limits.wall_ms / 1000 + IDLE_S)
        finally:
            await zygote.close()

    async def _fork(self, limits: SandboxLimits) -> Made:
        zygote = await self._current()
        try:
            return await zygote.fork(limits)
        except SandboxUnavailableError:
            if not zygote.is_gone or self._is_closed:
                raise
        return await (await self._current()).fork(limits)  # it died; once more with a new one

    def _fill(self) -> None:
        while not self._is_closed and len(self._spare) + len(self._making) < self._wanted:
            task = asyncio.get_running_loop().create_task(self._make_spare())
            self._making.add(task)
            task.add_done_callback(self._making.discard)

    async def _make_spare(self) -> None:
        with contextlib.suppress(SandboxUnavailableError, TimeoutError):  # whoever needs one is told
            made = await self._fork(self._limits)
            if self._is_closed:
                self._let_go(made)
            else:
                self._spare.append(made)

    async def _take(self, limits: SandboxLimits) -> Made:
        """A sandbox that is ready."""
        is_usual = all(getattr(limits, name) == getattr(self._limits, name) for name in _STRUCTURAL)
        while is_usual and self._spare:
            made = self._spare.popleft()
            if not made.is_gone:
                return made
            self._let_go(made)
        if is_usual:
            self._wanted = min(self._most, max(1, self._wanted * 2)) if self._most else 0
        return await self._fork(limits)

    def _rest(self) -> None:
        """Give up one that nobody needed for a while."""
        self._shrinking = None
        if self._is_closed:
            return
        self._wanted = max(self._least, self._wanted - 1)
        if len(self._spare) > self._wanted:
            self._let_go(self._spare.popleft())
        if max(self._wanted, len(self._spare)) > self._least:
            self._shrinking = asyncio.get_running_loop().call_later(IDLE_S, self._rest)

    def _let_go(self, made: Made) -> None:
        made.close()
        if made.group is not None and self._groups is not None:
            self._groups.leave(made.group)

    async def close(self) -> None:
        """Stop the zygote and every sandbox."""
        self._is_closed = True
        if self._shrinking is not None:
            self._shrinking.cancel()
        for task in (*self._making, *self._old):
            task.cancel()
        await asyncio.gather(*self._making, *self._old, return_exceptions=True)
        while self._spare:
            self._let_go(self._spare.popleft())
        zygote, self._zygote = self._zygote, None
        if zygote is not None:
            await zygote.close()
        if self._groups is not None:
            await self._groups.close()

    # -- one job
    async def run(
        self, job: SandboxJob, limits: SandboxLimits | None = None, *, doors: Mapping[int, Door] | None = None
    ) -> SandboxOutcome:
        """Execute a job in a fresh sandbox (see the port)."""
        _check(job, doors or {})
        chosen = self._limits if limits is None else narrower(self._limits, limits)
        for again in range(TRIES, 0, -1):
            try:
                async with self._one(chosen) as made:
                    return await Use(made, job, chosen, doors or {}, self._fill).outcome()
            except NotBegunError:
                if again == 1:
                    raise
        raise SandboxUnavailableError("no sandbox could be made")

    @contextlib.asynccontextmanager
    async def _one(self, limits: SandboxLimits) -> AsyncIterator[Made]:
        async with self._room:
            made = await self._take(limits)
            try:
                yield made
            finally:
                self._let_go(made)
                self._fill()
                if self._shrinking is not None:
                    self._shrinking.cancel()
                if not self._is_closed:
                    self._shrinking = asyncio.get_running_loop().call_later(IDLE_S, self._rest)


_STRUCTURAL = (*BUILT_IN, "cpu_share")


def _check(job: SandboxJob, doors: Mapping[int, Door]) -> None:
    size = len(job.code.encode(errors="surrogatepass"))
    if size > CODE_BYTES_MAX:
        raise InputInvalidError(
            f"the code has {size} bytes and {CODE_BYTES_MAX} is the limit; put data into files of the workspace"
        )
    if any(not PORT_MIN <= port <= PORT_MAX for port in doors):
        raise InputInvalidError(f"doors are ports from {PORT_MIN} to {PORT_MAX}, found {sorted(doors)}")
