"""Opening a data directory: its lock, its store, and what its runs go by."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from perdure.core.limits import Settings
from perdure.gateway.governance import Governance
from perdure.gateway.vault import Vault
from perdure.ports import Store
from perdure.runtime.approvals import RUNTIME_ID, runtime_id
from perdure.runtime.datadir import DataDirLock, database_of, prepare
from perdure.runtime.log_keys import LogKeys, origin_of
from perdure.runtime.system import SystemEntropy
from perdure.stores.sqlite import SqliteStore

ID_BITS = 80


@asynccontextmanager
async def opened(folder: Path, settings: Settings, *, beside: bool) -> AsyncIterator[Store]:
    """The store of a data directory, closed on leaving.

    Raises:
        DataDirLockedError: another process drives this directory.
        DataDirInvalidError, CorruptError, StoreReadOnlyError: the directory cannot be used.
    """
    prepare(folder)
    lock = None if beside else DataDirLock(folder).acquire()
    try:
        store = SqliteStore(database_of(folder), durability=settings.durability)
        try:
            yield store
        finally:
            await store.close()
    finally:
        if lock is not None:
            lock.release()


async def governance_of(store: Store, folder: Path) -> tuple[Governance, LogKeys]:
    """What a runtime on this store goes by, still without gates, and the keys of its audit log.

    Raises:
        DataDirInvalidError: the keys cannot be read or made.
    """
    entropy = SystemEntropy()
    audience = store.read(lambda tx: tx.fact(RUNTIME_ID))
    if audience is None:
        fresh = f"{entropy.bits(ID_BITS):020x}"
        audience = await store.transact(lambda tx: runtime_id(tx, fresh))
    keys = LogKeys(folder, origin_of(audience))
    return Governance(audience=audience, vault=Vault(keys.master, entropy)), keys
