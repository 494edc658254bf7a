"""The sandboxes of a runtime: which tiers are configured, and one pool of each, opened when it is first needed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec

from perdure.core.audit import AuditRecord
from perdure.core.egress import EgressRules
from perdure.core.errors import DefinitionError, SandboxUnavailableError, StoreUnavailableError
from perdure.core.sandbox import SandboxLimits, Tier
from perdure.core.verdicts import TIERS
from perdure.gateway.gates.walls import is_as_strong
from perdure.ports import Sandboxes, Secrets, Store, Toolset
from perdure.runtime.egress import Egress, Record
from perdure.runtime.secrets import LocalSecrets
from perdure.runtime.wall_makers import Make, makers

SANDBOX = "sandbox"  # the toolset of code and files
ONLINE = "sandbox-online"  # the one that reaches hosts
WORKSPACES = "workspaces"  # the folder of the runs' files, in the data directory
Narrowed = Callable[[SandboxLimits, str], SandboxLimits | None]


class SandboxRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[sandbox]`` of the configuration.

    Attributes:
        tiers: that may be used, the usual one first; ``none`` only where it is written here.
        limits: of every use.
        programs: the wall of hosted programs that do not say it themselves; ``process`` is a plain process of this user.
        egress: by agent, what its uses of ``python_online`` and ``shell_online`` may reach; ``*`` is every agent without rules of its own.
        options: by tier, what its sandboxes are made with.
    """

    tiers: tuple[Tier, ...] = ("namespace",)
    limits: SandboxLimits = SandboxLimits()
    programs: Literal["namespace", "process"] = "namespace"
    egress: Mapping[str, EgressRules] = msgspec.field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.tiers or len(set(self.tiers)) != len(self.tiers):
            raise DefinitionError("`tiers` of `[sandbox]` names each tier once, and at least one")
        if unknown := set(self.options) - set(TIERS):
            raise DefinitionError(f"`[sandbox.options]` names `{min(unknown)}`; tiers are {', '.join(TIERS)}")


class ConfiguredWalls:
    """Implements ``Walls``.

    Args:
        rules: which tiers, with what.
        make: how sandboxes of a tier are made.
        secrets: resolves the keys of services elsewhere.
    """

    def __init__(
        self, rules: SandboxRules, make: Mapping[str, Make] | None = None, *, secrets: Secrets | None = None
    ) -> None:
        self._rules = rules
        self._make = makers(secrets) if make is None else make
        self._open: dict[Tier, Sandboxes] = {}
        self._opening = asyncio.Lock()

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Those that may be asked for, the usual one first."""
        return self._rules.tiers

    async def at_least(self, tier: str = "") -> Sandboxes:
        """The usual sandboxes if they are strong enough, else the weakest ones that are; opened (see the port)."""
        usual = self.tiers[0]
        others = sorted(self.tiers[1:], key=TIERS.index)
        chosen = next((each for each in (usual, *others) if not tier or is_as_strong(each, tier)), None)
        if chosen is None:
            raise SandboxUnavailableError(
                f"tier `{tier}` or stronger is needed, and `[sandbox]` has {', '.join(self.tiers)}"
            )
        async with self._opening:
            if chosen not in self._open:
                self._open[chosen] = await self._opened(chosen)
        return self._open[chosen]

    async def _opened(self, tier: Tier) -> Sandboxes:
        made = self._make.get(tier)
        if made is None:
            raise SandboxUnavailableError(f"there are no sandboxes of tier `{tier}`")
        try:
            sandboxes = made(self._rules.limits, self._rules.options.get(tier, {}))
        except TypeError as error:
            raise DefinitionError(f"`[sandbox.options.{tier}]` cannot be used: {error}") from error
        await sandboxes.open()
        return sandboxes

    async def close(self) -> None:
        """Let go of all that were opened."""
        while self._open:
            _, sandboxes = self._open.popitem()
            with contextlib.suppress(SandboxUnavailableError):
                await sandboxes.close()


class Recorder:
    """Writes records to the audit log once there is a store: toolsets are made before it is open."""

    def __init__(self) -> None:
        self.store: Store | None = None

    async def __call__(self, record: AuditRecord) -> None:
        """Write one; durable on return.

        Raises:
            StoreUnavailableError: nothing can be written.
        """
        if self.store is None:
            raise StoreUnavailableError("the audit log is not open")
        await self.store.transact(lambda tx: tx.audit(record))


def built_in(
    rules: SandboxRules,
    folder: Path,
    toolsets: Sequence[Toolset],
    secrets: Secrets | None = None,
    record: Record | None = None,
    limits_of: Narrowed = lambda *_: None,
) -> list[Toolset]:
    """The toolsets ``sandbox`` and, where something may be reached, ``sandbox-online``; unless one of the configuration has its name.

    Args:
        rules: where code is executed.
        folder: the data directory.
        toolsets: those of the configuration.
        secrets: resolves the keys of services elsewhere, and the credentials of hosts that may be reached.
        record: writes to the audit log; without it nothing is reached.
        limits_of: narrower limits of an agent, from those of all and its name.
    """
    if any(toolset.name == SANDBOX for toolset in toolsets):
        return []
    from perdure.tools.sandbox import SandboxToolset
    from perdure.tools.workspaces import Workspaces

    secrets = secrets or LocalSecrets.default(folder)
    walls = ConfiguredWalls(rules, secrets=secrets)
    files, own = Workspaces(folder / WORKSPACES), partial(limits_of, rules.limits)
    offline = SandboxToolset(walls, files, limits=rules.limits, limits_of=own)
    if not rules.egress:
        return [offline]
    doors = Egress(rules.egress, secrets, record).doors
    online = SandboxToolset(
        walls,
        files,
        limits=rules.limits,
        limits_of=own,
        doors=doors,
        has_doors=True,
        name=ONLINE,
        beside=offline,
    )
    return [offline, online]


def with_built_in(
    toolsets: Sequence[Toolset], rules: SandboxRules, folder: Path, secrets: Secrets | None = None
) -> list[Toolset]:
    """Toolsets of the configuration, and the built-in one."""
    return [*toolsets, *built_in(rules, folder, toolsets, secrets)]
