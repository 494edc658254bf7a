"""``approvals ...`` and ``keys ...``: what waits for a person, and the signature of that person."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from perdure.cli import local_key, views
from perdure.cli.opening import beside
from perdure.cli.output import Out
from perdure.core.approvals import KeyRecord
from perdure.core.errors import UsageError
from perdure.core.verdicts import Demand
from perdure.governance.claims import display
from perdure.governance.grants import sign
from perdure.governance.keys import from_jwks, public_record
from perdure.governance.signed import co_signed
from perdure.governance.statements import also as also_told
from perdure.runtime import Runtime
from perdure.runtime.approvals import Pending, Submitted

SHORT = 12  # characters of a key's id in tables


def pending(data: Path, out: Out) -> None:
    """List what waits for a grant."""

    async def work(runtime: Runtime) -> list[Pending]:
        return runtime.approvals.pending()

    rows = beside(data, work)
    if out.json:
        for row in rows:
            out.emit(_json(row))
        return
    lines = [
        [
            row.record.key, row.claim.tool, " for ".join(row.claim.principals), demands(row.demands),
            views.when(row.due_ms) if row.due_ms else "", "; ".join(reason.message for reason in row.reasons),
        ]
        for row in rows
    ]  # fmt: skip
    out.table(("action", "tool", "who", "needs", "until", "why"), lines, empty="nothing waits for approval")


def demands(found: tuple[Demand, ...]) -> str:
    """Who must sign, in words."""
    return " and ".join(f"{item.quorum} x {'/'.join(item.roles)}" for item in found)


def _json(row: Pending) -> dict[str, Any]:
    return {
        "action": row.record.key,
        "claim": msgspec.to_builtins(row.claim),
        "digest": row.claim.digest,
        "reasons": msgspec.to_builtins(row.reasons),
        "demands": msgspec.to_builtins(row.demands),
        "due_ms": row.due_ms,
        "escalated": row.asked,
        "shown": row.shown,
    }


def show(data: Path, out: Out, action: str) -> None:
    """Everything that an approver is shown."""

    async def work(runtime: Runtime) -> Pending:
        return runtime.approvals.show(action)

    row = beside(data, work)
    if out.json:
        out.emit(_json(row))
        return
    _shown(out, row)
    out.text(f"`perdure approvals approve {action}`, or `reject`, signs a decision about exactly this.")


def _shown(out: Out, row: Pending) -> None:
    out.text(row.shown)
    until = f", until {views.when(row.due_ms)}" if row.due_ms else ""
    out.text(f"needs      {demands(row.demands)}{until}")


def decide(
    data: Path,
    out: Out,
    action: str,
    decision: Literal["approve", "reject"],
    *,
    key: Path | None,
    reason: str,
    arguments: str | None,
    also: int = 0,
    free: Sequence[str] = (),
) -> None:
    """Sign a decision with the key of this person, and hand it in."""
    if arguments is not None and decision == "reject":
        raise UsageError("a rejection has no arguments")
    private = local_key.load(key or local_key.default_path())
    changed = None if arguments is None else object_of(arguments)

    async def work(runtime: Runtime) -> tuple[Pending, Submitted]:
        row = runtime.approvals.show(action)
        unfinished = runtime.approvals.unfinished(action)
        if decision == "approve" and changed is None and unfinished is not None and not also:
            token = co_signed(unfinished.token, private)
        else:
            kind: Any = "approve_edited" if changed is not None else decision
            statement = runtime.approvals.statement(
                action, kind, reason=reason, arguments=changed, also=also, free=free
            )
            shown = display(row.claim, row.reasons, also_told(statement.group))
            row, token = replace(row, shown=shown), sign(statement, private)
        return row, await runtime.approvals.submit(action, token)

    submitted(out, *beside(data, work))


def submitted(out: Out, row: Pending, found: Submitted) -> None:
    """Tell what became of a signed decision."""
    if out.json:
        out.emit({"action": row.record.key, **_told(found)})
        return
    _shown(out, row)
    signed = ", ".join(found.persons)
    told = {
        "released": f"released: signed by {signed}",
        "rejected": f"rejected by {signed}; the agent is told why",
        "waiting": f"signed by {signed}; {found.missing}",
    }
    out.text(told[found.state])


def _told(found: Submitted) -> dict[str, Any]:
    return {"state": found.state, "persons": list(found.persons), "missing": found.missing}


def object_of(text: str) -> dict[str, Any]:
    """Arguments by name, from JSON."""
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise UsageError(f"the arguments are no JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError("the arguments are a JSON object, by name")
    return found


# -- keys
def new_key(data: Path, out: Out, *, person: str | None, roles: list[str], key: Path | None) -> None:
    """Make a key pair for this person; only its public half is registered."""
    path = key or local_key.default_path()
    made = local_key.load(path) if key is None and path.exists() else local_key.create(path)
    who = person or getpass.getuser()

    async def work(runtime: Runtime) -> KeyRecord:
        record = public_record(made, who, roles or ["approver"], runtime.now_ms())
        await runtime.keys.register([record], by=who)
        return record

    record = beside(data, work, may_create=True)
    if out.json:
        out.emit({**msgspec.to_builtins(record), "file": str(path)})
        return
    out.text(
        f"{record.kid[:SHORT]} of {record.person} may approve for {', '.join(record.roles)}; its private half is in {path}"
    )


def import_keys(data: Path, out: Out, file: Path) -> None:
    """Register the keys of a team."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"`{file}` cannot be read: {error}") from error

    async def work(runtime: Runtime) -> list[KeyRecord]:
        found = from_jwks(text, runtime.now_ms())
        await runtime.keys.register(found, by=getpass.getuser())
        return found

    table(out, beside(data, work, may_create=True))


def keys(data: Path, out: Out) -> None:
    """List keys."""

    async def work(runtime: Runtime) -> list[KeyRecord]:
        return runtime.keys.rows()

    table(out, beside(data, work))


def table(out: Out, rows: list[KeyRecord]) -> None:
    """Show keys."""
    if out.json:
        for row in rows:
            out.emit(msgspec.to_builtins(row))
        return
    lines = [
        [
            row.kid[:SHORT],
            row.person,
            row.kind,
            ", ".join(row.roles),
            views.when(row.created_ms),
            views.when(row.revoked_ms) if row.revoked_ms else "",
        ]
        for row in rows
    ]
    out.table(
        ("key", "person", "kind", "roles", "registered", "revoked"),
        lines,
        empty="no keys; `perdure keys new` makes one",
    )


def revoke(data: Path, out: Out, kid: str, *, reason: str) -> None:
    """Revoke a key."""

    async def work(runtime: Runtime) -> KeyRecord:
        return await runtime.keys.revoke(kid, by=getpass.getuser(), reason=reason)

    table(out, [beside(data, work)])
