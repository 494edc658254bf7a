"""The policies of a folder, loaded when they change; while they cannot be used, nothing is allowed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from perdure.core.audit import AuditRecord
from perdure.core.errors import PerdureError
from perdure.core.tools import ToolSpec
from perdure.gateway.catalogue import Catalogue
from perdure.governance.policy import PolicySet, load
from perdure.governance.policy_errors import PolicyInvalidError
from perdure.governance.undo import PREFIX
from perdure.ports import Store

log = logging.getLogger("perdure.policies")
LOOK_S = 1.0  # how often the folder is looked at
SUFFIX = ".cedar"
BYTES_MAX = 4_000_000
UNDO_PARAMETERS = {
    "type": "object",
    "properties": {"action": {"type": "string"}},
    "required": ["action"],
    "additionalProperties": False,
}


class FolderPolicies:
    """Implements ``Policies`` on a folder of ``.cedar`` files.

    Args:
        folder: the folder.
        tools: every tool that an agent may have.
        store: where a change of the policies is recorded.
        now_ms: the time of day.
    """

    def __init__(
        self,
        folder: Path,
        tools: Callable[[], Awaitable[Sequence[ToolSpec]]],
        store: Store,
        now_ms: Callable[[], int],
    ) -> None:
        self.folder = folder
        self._tools = tools
        self._store = store
        self._now_ms = now_ms
        self._known: PolicySet | None = None
        self._problem: PerdureError | None = None
        self._stamp: tuple[tuple[str, int, int], ...] | None = None
        self._looked_s = float("-inf")
        self._lock = asyncio.Lock()

    @property
    def digest(self) -> str:
        """The digest of the policies that were used last."""
        return "" if self._known is None else self._known.digest

    async def current(self) -> PolicySet:
        """The policies in force, loaded anew if a file has changed.

        Raises:
            PolicyInvalidError: they cannot be used.
        """
        if self._is_fresh() and self._known is not None:
            return self._known
        async with self._lock:
            if not self._is_fresh():
                await self._look()
        if self._problem is not None:
            raise self._problem
        if self._known is None:
            raise PolicyInvalidError(f"no policies were loaded from `{self.folder}`")
        return self._known

    def _is_fresh(self) -> bool:
        return self._problem is None and asyncio.get_running_loop().time() < self._looked_s + LOOK_S

    async def _look(self) -> None:
        try:
            stamp = stamp_of(self.folder)
            if stamp != self._stamp or self._problem is not None:
                await self._load()
                self._stamp = stamp
            self._looked_s = asyncio.get_running_loop().time()
        except PerdureError as error:
            if self._problem is None or self._problem.message != error.message:
                log.error("the policies cannot be used, so nothing is allowed: %s", error)
            self._problem, self._known = error, None

    async def _load(self) -> None:
        texts = read_folder(self.folder)
        made = await asyncio.to_thread(load, texts, await self._tools())
        if made.digest != self.digest:
            record = AuditRecord(
                kind="policy", at_ms=self._now_ms(), name=self.folder.name, policy=made.digest,
                refs={"files": ", ".join(sorted(texts)), "policies": str(len(made.policies))},
            )  # fmt: skip
            await self._store.transact(lambda tx: tx.audit(record))
        self._known, self._problem = made, None


def stamp_of(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """What changes when a file of a folder does.

    Raises:
        PolicyInvalidError: it cannot be read.
    """
    try:
        found = [(path.name, path.stat()) for path in sorted(folder.glob(f"*{SUFFIX}"))]
    except OSError as error:
        raise PolicyInvalidError(f"`{folder}` cannot be read: {error.strerror}") from error
    return tuple((name, status.st_mtime_ns, status.st_size) for name, status in found)


def read_folder(folder: Path) -> dict[str, str]:
    """The policies of a folder by the names of their files.

    Raises:
        PolicyInvalidError: there are none, or they cannot be read.
    """
    try:
        texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob(f"*{SUFFIX}"))}
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyInvalidError(f"a policy of `{folder}` cannot be read: {error}") from error
    if not texts:
        raise PolicyInvalidError(f"`{folder}` has no `*{SUFFIX}` file, so nothing would be allowed")
    if sum(len(text) for text in texts.values()) > BYTES_MAX:
        raise PolicyInvalidError(f"the policies of `{folder}` have more than {BYTES_MAX} characters")
    return texts


async def specs_of(catalogues: Mapping[str, Catalogue]) -> list[ToolSpec]:
    """Every tool that an agent may have, by the names that agents use, and the undoing of each that can be undone.

    Raises:
        PolicyInvalidError: two agents have different tools of one name.
        ToolUnreachableError: a toolset does not answer.
    """
    import msgspec

    found: dict[str, ToolSpec] = {}
    for catalogue in catalogues.values():
        for name, tool in (await catalogue.tools()).items():
            spec = tool.spec if tool.spec.name == name else msgspec.structs.replace(tool.spec, name=name)
            if name in found and found[name].digest != spec.digest:
                raise PolicyInvalidError(
                    f"two tools are called `{name}`; policies must tell them apart, so rename one"
                )
            found[name] = spec
    for spec in list(found.values()):
        if spec.undoable or spec.delay_ms:
            undoing = ToolSpec(name=f"{PREFIX}{spec.name}"[:128], parameters=UNDO_PARAMETERS)
            found[undoing.name] = undoing
    return list(found.values())
