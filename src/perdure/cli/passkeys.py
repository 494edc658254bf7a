"""Passkeys on the command line: files in, files out. The ceremony itself is a page's, where the person's browser is."""

from __future__ import annotations

import getpass
import json
import sys
from pathlib import Path
from typing import Any, Literal

import msgspec

from perdure.cli.approving import object_of, submitted, table
from perdure.cli.opening import beside
from perdure.cli.output import Out
from perdure.core.approvals import KeyRecord
from perdure.core.errors import UsageError
from perdure.governance.passkeys import RelyingParty
from perdure.governance.statements import Statement
from perdure.runtime import Runtime
from perdure.runtime.approvals import Asked, Pending, Submitted, passkey_token


def invite(data: Path, *, person: str | None, roles: list[str], rp_id: str, origins: list[str]) -> None:
    """Print what a page gives to ``navigator.credentials.create``."""
    party = RelyingParty(id=rp_id, origins=tuple(origins or [f"https://{rp_id}"]))
    user = getpass.getuser()

    async def work(runtime: Runtime) -> dict[str, Any]:
        return await runtime.keys.invite(person or user, roles or ["approver"], relying_party=party, by=user)

    _print({"publicKey": beside(data, work, may_create=True)})


def register(data: Path, out: Out, file: Path) -> None:
    """Register the passkey of a response."""
    text = _text(file)

    async def work(runtime: Runtime) -> KeyRecord:
        return await runtime.keys.register_passkey(text, by=getpass.getuser())

    table(out, [beside(data, work)])


def ask(
    data: Path,
    action: str,
    decision: Literal["approve", "reject"],
    *,
    rp_id: str | None,
    reason: str,
    arguments: str | None,
) -> None:
    """Print the statement, what the person must be shown, and what a page gives to ``navigator.credentials.get``."""
    if arguments is not None and decision == "reject":
        raise UsageError("a rejection has no arguments")
    changed = None if arguments is None else object_of(arguments)
    kind: Any = "approve_edited" if changed is not None else decision

    async def work(runtime: Runtime) -> tuple[Pending, Asked]:
        asked = runtime.approvals.ask(action, kind, rp_id=rp_id, reason=reason, arguments=changed)
        return runtime.approvals.show(action), asked

    row, asked = beside(data, work)
    _print(
        {"shown": row.shown, "statement": msgspec.to_builtins(asked.statement), "publicKey": asked.options}
    )


def submit(data: Path, out: Out, action: str, file: Path, asked: Path | None) -> None:
    """Hand in a decision that was signed elsewhere."""
    token = _text(file).strip()
    if asked is not None:
        try:
            statement = msgspec.convert(json.loads(_text(asked))["statement"], Statement)
        except (msgspec.ValidationError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"`{asked}` is not what `perdure approvals ask` printed: {error}") from error
        token = passkey_token(statement, token)

    async def work(runtime: Runtime) -> tuple[Pending, Submitted]:
        return runtime.approvals.show(action), await runtime.approvals.submit(action, token)

    submitted(out, *beside(data, work))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"`{file}` cannot be read: {error}") from error


def _print(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=1) + "\n")
