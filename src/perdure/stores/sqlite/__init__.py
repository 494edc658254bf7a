"""The SQLite store: one writer thread with group commit, numbered migrations, backup and integrity check."""

from perdure.stores.sqlite.maintenance import backup, integrity, sizes
from perdure.stores.sqlite.schema import open_connection
from perdure.stores.sqlite.store import SqliteStore
from perdure.stores.sqlite.transaction import SqliteTransaction

__all__ = ["SqliteStore", "SqliteTransaction", "backup", "integrity", "open_connection", "sizes"]
