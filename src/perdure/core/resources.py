"""What an agent asks of a machine, and what it may take of it at most."""

from __future__ import annotations

import math

import msgspec

from perdure.core.errors import DefinitionError
from perdure.core.sandbox import SandboxLimits

CPU_MAX = 4_096.0  # processors; a larger number is a mistake
MEMORY_BYTES_MIN = 16 << 20  # less holds no interpreter
CPU_MIN = 0.05  # of a processor: the least share that the kernel gives in each of its periods


class Requests(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a run is counted with while it executes: it starts only if that much is free.

    Attributes:
        cpu: processors; ``0.5`` is half of one.
        memory_bytes: memory.
    """

    cpu: float = 0.0
    memory_bytes: int = 0

    @property
    def is_nothing(self) -> bool:
        """Whether it asks for nothing."""
        return not self.cpu and not self.memory_bytes


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What each sandbox, and each attempt of a hosted program, may take at most; ``None`` leaves it to the configuration.

    Attributes:
        cpu: processors.
        memory_bytes: of all its processes together.
        processes: at once, threads included.
        disk_bytes: of its workspace (of a program: of its ``/tmp``).
        wall_ms: until it is stopped.
    """

    cpu: float | None = None
    memory_bytes: int | None = None
    processes: int | None = None
    disk_bytes: int | None = None
    wall_ms: int | None = None

    def within(self, base: SandboxLimits) -> SandboxLimits:
        """``base``, where this is not smaller."""
        named = {
            "cpu_share": self.cpu, "memory_bytes": self.memory_bytes, "processes": self.processes,
            "disk_bytes": self.disk_bytes, "wall_ms": self.wall_ms,
        }  # fmt: skip
        smaller = {
            name: min(value, getattr(base, name)) for name, value in named.items() if value is not None
        }
        return msgspec.structs.replace(base, **smaller)


class Resources(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The resources of an agent.

    Attributes:
        requests: what must be free for a run to start.
        limits: what its code and programs may take.

    Raises:
        DefinitionError: a number cannot be meant, or a request is over its limit.
    """

    requests: Requests = Requests()
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        _check("requests.cpu", self.requests.cpu, 0, CPU_MAX)
        _check("requests.memory_bytes", self.requests.memory_bytes, 0, math.inf)
        least = {"cpu": CPU_MIN, "memory_bytes": MEMORY_BYTES_MIN}
        for name in Limits.__struct_fields__:
            value = getattr(self.limits, name)
            if value is not None:
                _check(f"limits.{name}", value, least.get(name, 1), CPU_MAX if name == "cpu" else math.inf)
        for name in Requests.__struct_fields__:
            asked, most = getattr(self.requests, name), getattr(self.limits, name)
            if most is not None and asked > most:
                raise DefinitionError(
                    f"`requests.{name}` is {asked} and `limits.{name}` is {most}; a request is at most the limit"
                )


def merged(own: Resources | None, given: Resources | None) -> Resources:
    """What counts of an agent's own resources and the operator's: his requests where he names any, of each limit the smaller."""
    own, given = own or Resources(), given or Resources()
    requests = own.requests if given.requests.is_nothing else given.requests
    limits = {}
    for name in Limits.__struct_fields__:
        named = [value for part in (own, given) if (value := getattr(part.limits, name)) is not None]
        limits[name] = min(named, default=None)
    return Resources(requests=requests, limits=Limits(**limits))


def _check(name: str, value: float, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        upper = "" if most == math.inf else f" and at most {most:g}"
        raise DefinitionError(f"`{name}` of the resources is {value!r}; expected at least {least:g}{upper}")
    if not name.endswith("cpu") and not isinstance(value, int):
        raise DefinitionError(f"`{name}` of the resources is {value!r}; expected a whole number")
