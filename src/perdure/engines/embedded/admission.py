"""Admission: runs start only while what they ask for fits into what the machine has left; the others wait in the queue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perdure.core.approvals import Containment
from perdure.core.errors import ResourcesTooLargeError
from perdure.core.records import RunFilter, RunRecord, Status
from perdure.core.resources import Requests
from perdure.engines.embedded.worker import SUSPECT_RECOVERIES
from perdure.kernel.quarantine import QUARANTINE, is_in_force
from perdure.ports import Transaction

PATIENCE_MS = 10_000  # how long smaller runs may go past one that does not fit; then they leave it its room
NOTHING = Requests()
ROUNDING = 1e-9  # of sums of fractions of processors
UNBOUNDED = 1 << 30  # runs: as good as without end


class Admission:
    """Counts what executing runs have asked for.

    Args:
        capacity: what all of them may ask for together; ``None`` is without limit.
        requests: by agent; who is not named asks for nothing.

    Raises:
        ResourcesTooLargeError: one run asks for more than there is: it could never start.
    """

    def __init__(
        self, capacity: Requests | None = None, requests: Mapping[str, Requests] | None = None
    ) -> None:
        self.capacity = capacity
        self.requests = {
            name: each
            for name, each in (requests or {}).items()
            if capacity is not None and not each.is_nothing
        }
        self._short_since_ms: dict[str, int] = {}
        self._now_ms = 0
        for name, each in self.requests.items():
            if capacity is not None and not _count(capacity.cpu, capacity.memory_bytes, each):
                raise ResourcesTooLargeError(
                    f"each run of agent `{name}` asks for {_shown(each)} and the machine has {_shown(capacity)}; ask for less, or "
                    "raise `cpu` and `memory_bytes` of `[resources]`",
                    agent=name,
                )

    def used(self, active: Mapping[str, int]) -> Requests:
        """What executing runs have asked for, together."""
        return Requests(
            cpu=sum(each.cpu * active.get(name, 0) for name, each in self.requests.items()),
            memory_bytes=sum(each.memory_bytes * active.get(name, 0) for name, each in self.requests.items()),
        )

    def room(self, agent: str, active: Mapping[str, int]) -> int:
        """How many more runs of an agent fit now."""
        wanted = self.requests.get(agent)
        if wanted is None or self.capacity is None:
            return UNBOUNDED
        used = self.used(active)
        cpu, memory = self.capacity.cpu - used.cpu, self.capacity.memory_bytes - used.memory_bytes
        waiting = next(iter(self._short_since_ms), None)
        if waiting is not None and waiting != agent and self._is_patience_over(waiting):
            cpu -= self.requests[waiting].cpu
            memory -= self.requests[waiting].memory_bytes
        return _count(cpu, memory, wanted)

    def _is_patience_over(self, agent: str) -> bool:
        return self._now_ms - self._short_since_ms[agent] >= PATIENCE_MS

    def claim(
        self,
        tx: Transaction,
        worker: str,
        now_ms: int,
        *,
        room: Mapping[str, int],
        active: Mapping[str, int],
        limit: int,
        suspects: bool,
    ) -> list[RunRecord]:
        """Claim queued runs as ``Transaction.claim`` does, one by one where they ask for something.

        Args:
            tx: the transaction of the claim.
            worker: who takes them.
            now_ms: the time.
            room: how many runs of each agent there is room for otherwise.
            active: how many of each execute.
            limit: how many at most.
            suspects: whether one run that was in flight at crashes may be among them.
        """
        held = quarantined(tx, now_ms)
        room = {name: free for name, free in room.items() if name not in held}
        if not self.requests:
            return tx.claim(worker, now_ms, room=room, limit=limit, suspects=suspects)
        self._look_who_waits(tx, now_ms, room, active)
        counts, left = dict(active), dict(room)
        claimed: list[RunRecord] = []
        while len(claimed) < limit:
            fitting = {name: min(free, self.room(name, counts)) for name, free in left.items()}
            found = tx.claim(worker, now_ms, room=fitting, limit=1, suspects=suspects)
            if not found:
                break
            claimed += found
            suspects = suspects and found[0].recoveries < SUSPECT_RECOVERIES
            counts[found[0].agent] = counts.get(found[0].agent, 0) + 1
            left[found[0].agent] -= 1
            self._short_since_ms.pop(found[0].agent, None)  # its turn came: whoever waits longer is next
        return claimed

    def _look_who_waits(
        self, tx: Transaction, now_ms: int, room: Mapping[str, int], active: Mapping[str, int]
    ) -> None:
        """Note since when no run of an agent could start for want of resources alone, in the order in which that began."""
        self._now_ms = now_ms
        for name in self.requests:
            wants = RunFilter(agent=name, status=(Status.QUEUED,), limit=1)
            is_full = name in self._short_since_ms or self.room(name, active) < 1
            if not (is_full and room.get(name, 0) > 0 and tx.runs(wants)):
                self._short_since_ms.pop(name, None)
            else:
                self._short_since_ms.setdefault(name, now_ms)

    @property
    def is_short(self) -> bool:
        """Whether runs were left in the queue for want of resources at the last look."""
        return bool(self._short_since_ms)

    def facts(self, active: Mapping[str, int]) -> dict[str, Any]:
        """What there is, what is taken, and who waits: for whoever looks."""
        capacity, used = self.capacity or NOTHING, self.used(active)
        return {
            "cpu": capacity.cpu, "cpu_requested": round(used.cpu, 3), "memory_bytes": capacity.memory_bytes,
            "memory_bytes_requested": used.memory_bytes, "short": sorted(self._short_since_ms),
        }  # fmt: skip


def quarantined(tx: Transaction, now_ms: int) -> frozenset[str]:
    """The agents whose runs are held."""
    return frozenset(_agent(item) for item in tx.containments() if is_in_force(item, now_ms))


def _agent(item: Containment) -> str:
    return item.scope.removeprefix(QUARANTINE)


def _count(cpu: float, memory_bytes: int, each: Requests) -> int:
    """How many of them fit into that."""
    found = UNBOUNDED
    if each.cpu:
        found = min(found, int(cpu / each.cpu + ROUNDING))
    if each.memory_bytes:
        found = min(found, memory_bytes // each.memory_bytes)
    return max(0, found)


def _shown(amount: Requests) -> str:
    return f"{amount.cpu:g} processors and {amount.memory_bytes >> 20} MiB"
