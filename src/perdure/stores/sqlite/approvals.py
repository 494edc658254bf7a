"""Approvers' keys, grants and containments in SQL."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from perdure.core.approvals import Containment, GrantRecord, KeyRecord
from perdure.stores.sqlite.side import SideTables

_KEY = "kid, person, roles, kind, jwk, created_ms, revoked_ms, sign_count"
_CONTAINMENT = "scope, level, by, reason, at_ms, until_ms"


class ApprovalTables(SideTables):
    """The part of ``Transaction`` about approval and containment."""

    # -- keys
    def put_key(self, key: KeyRecord) -> None:
        """Add or replace a key."""
        self._execute(
            f"INSERT INTO approver_keys ({_KEY}) VALUES (?,?,?,?,?,?,?,?) ON CONFLICT (kid) DO UPDATE SET "
            "person = excluded.person, roles = excluded.roles, revoked_ms = excluded.revoked_ms, sign_count = excluded.sign_count",
            (
                key.kid, key.person, json.dumps(key.roles), key.kind, key.jwk, key.created_ms, key.revoked_ms,
                key.sign_count,
            ),
        )  # fmt: skip

    def approver_keys(self) -> list[KeyRecord]:
        """Every key, also the revoked ones, oldest first."""
        rows = self._execute(f"SELECT {_KEY} FROM approver_keys ORDER BY created_ms, kid").fetchall()
        return [_key(row) for row in rows]

    # -- grants
    def put_grant(self, grant: GrantRecord) -> None:
        """Add a grant, or replace one that was not used (another signature was added to it)."""
        self._execute(
            "INSERT INTO grants SELECT ?1, key, ?3, ?4, ?5, ?6 FROM runs WHERE id = ?2 ON CONFLICT (jti) DO UPDATE SET "
            "token = excluded.token, at_ms = excluded.at_ms WHERE used_ms IS NULL AND run = excluded.run AND call = excluded.call",
            (grant.jti, grant.run, grant.call, grant.token, grant.at_ms, grant.used_ms),
        )

    def grants(self, run_id: str, call: int) -> list[GrantRecord]:
        """What was signed about one action, oldest first."""
        rows = self._execute(
            "SELECT jti, token, at_ms, used_ms FROM grants WHERE run = (SELECT key FROM runs WHERE id = ?) AND call = ? "
            "ORDER BY at_ms, jti",
            (run_id, call),
        ).fetchall()
        return [
            GrantRecord(jti=jti, run=run_id, call=call, token=token, at_ms=at_ms, used_ms=used_ms)
            for jti, token, at_ms, used_ms in rows
        ]

    def run_grants(self, run_id: str) -> list[GrantRecord]:
        """What was signed about actions of a run, oldest first."""
        rows = self._execute(
            "SELECT jti, call, token, at_ms, used_ms FROM grants WHERE run = (SELECT key FROM runs WHERE id = ?) "
            "ORDER BY at_ms, jti",
            (run_id,),
        ).fetchall()
        return [
            GrantRecord(jti=jti, run=run_id, call=call, token=token, at_ms=at_ms, used_ms=used_ms)
            for jti, call, token, at_ms, used_ms in rows
        ]

    def use_group(self, jti: str, run_id: str, call: int, more: int, now_ms: int) -> bool:
        """Use a group grant for one action more, if fewer than ``more`` were released with it."""
        cursor = self._execute(
            "INSERT OR IGNORE INTO grant_uses SELECT ?1, key, ?3, ?5 FROM runs WHERE id = ?2 AND "
            "(SELECT count(*) FROM grant_uses WHERE jti = ?1) < ?4",
            (jti, run_id, call, more, now_ms),
        )
        return bool(cursor.rowcount == 1)

    def grant(self, jti: str) -> GrantRecord | None:
        """One grant."""
        row = self._execute(
            "SELECT jti, runs.id, call, token, at_ms, used_ms FROM grants JOIN runs ON runs.key = grants.run WHERE jti = ?",
            (jti,),
        ).fetchone()
        return (
            None if row is None else GrantRecord(**dict(zip(GrantRecord.__struct_fields__, row, strict=True)))
        )

    def use_grant(self, jti: str, now_ms: int) -> bool:
        """Use a grant up; whether it was still to be had."""
        cursor = self._execute(
            "UPDATE grants SET used_ms = ? WHERE jti = ? AND used_ms IS NULL", (now_ms, jti)
        )
        return bool(cursor.rowcount == 1)

    # -- facts
    def fact(self, name: str) -> str | None:
        """What is known under a name."""
        row = self._execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_fact(self, name: str, value: str) -> None:
        """Set what is known under a name."""
        self._execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    # -- containment
    def contain(self, containment: Containment) -> None:
        """Set the containment of a scope."""
        self._execute(
            f"INSERT OR REPLACE INTO containments ({_CONTAINMENT}) VALUES (?,?,?,?,?,?)",
            msgspec.structs.astuple(containment),
        )

    def lift(self, scope: str) -> bool:
        """Take the containment of a scope away; whether there was one."""
        return bool(self._execute("DELETE FROM containments WHERE scope = ?", (scope,)).rowcount)

    def containments(self) -> list[Containment]:
        """What is contained, by scope."""
        rows = self._execute(f"SELECT {_CONTAINMENT} FROM containments ORDER BY scope").fetchall()
        return [Containment(**dict(zip(Containment.__struct_fields__, row, strict=True))) for row in rows]


def _key(row: tuple[Any, ...]) -> KeyRecord:
    values = dict(zip(KeyRecord.__struct_fields__, row, strict=True))
    values["roles"] = tuple(json.loads(values["roles"]))
    return KeyRecord(**values)
