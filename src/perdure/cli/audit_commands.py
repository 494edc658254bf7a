"""``audit ...``: the tamper-evident log."""

# ruff: noqa: D417 - cyclopts reads the docstrings; the options that many commands share are described in ``options``

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from perdure.cli.options import DATA, Data, Json
from perdure.cli.output import Out

audit = App(name="audit", help="The tamper-evident log: verify, prove, export.", version_flags=())


@audit.command
def verify(
    *, key: str | None = None, checkpoint: Path | None = None, data: Data = DATA, json: Json = False
) -> int:
    """Look at every record, every hash and every signature, and hold the ledger against the log.

    Args:
        key: The public key of the log, kept elsewhere (default: that of the data directory).
        checkpoint: A checkpoint that was kept elsewhere: the log must continue it.
    """
    from perdure.cli.opening import beside
    from perdure.core.errors import UsageError
    from perdure.runtime import Runtime
    from perdure.runtime.auditing import Verified

    out = Out(json)
    try:
        known = None if checkpoint is None else checkpoint.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"`{checkpoint}` cannot be read: {error}") from error

    async def work(runtime: Runtime) -> Verified:
        return runtime.audit.verify(key=key, known=known)

    found = beside(data, work)
    if json:
        out.emit({**dataclasses.asdict(found), "whole": found.is_whole})
    elif found.is_whole:
        out.text(f"nothing found: {found.size} records, {found.signed} of them under the newest signed head")
        if key is None:
            out.text(
                "The key is that of the data directory; keep `perdure audit key` elsewhere and give it with `--key`."
            )
    else:
        for problem in found.problems:
            out.text(f"FOUND: {problem}")
    return 0 if found.is_whole else 1


@audit.command(name="key")
def show_key(*, data: Data = DATA, json: Json = False) -> None:
    """Show the public key of the log. Keep it elsewhere."""
    from perdure.cli.opening import beside
    from perdure.runtime import Runtime

    async def work(runtime: Runtime) -> str:
        return runtime.audit.verifier()

    found = beside(data, work)
    Out(json).emit({"key": found}) if json else sys.stdout.write(f"{found}\n")


@audit.command
def checkpoint(*, data: Data = DATA, json: Json = False) -> None:
    """Sign the head of the log now, and show it. Keep it elsewhere: with it, cutting and rewriting are seen."""
    from perdure.cli.opening import beside
    from perdure.runtime import Runtime

    async def work(runtime: Runtime) -> str:
        return await runtime.audit.checkpoint()

    found = beside(data, work)
    Out(json).emit({"checkpoint": found}) if json else sys.stdout.write(found)


@audit.command
def show(
    action: Annotated[str, Parameter(name="RUN/CALL")], /, *, data: Data = DATA, json: Json = False
) -> None:
    """What the log says of one action.

    Args:
        action: Its id.
    """
    import msgspec

    from perdure.cli import views
    from perdure.cli.opening import beside
    from perdure.core.audit import AuditLeaf
    from perdure.runtime import Runtime

    async def work(runtime: Runtime) -> list[AuditLeaf]:
        return runtime.audit.records(action)

    out = Out(json)
    rows = [(leaf.index, leaf.record) for leaf in beside(data, work)]
    if json:
        for place, record in rows:
            out.emit({"index": place, **msgspec.to_builtins(record)})
        return
    table = [
        [
            str(place), views.when(record.at_ms), record.kind, record.state, ", ".join(record.codes), record.by,
            "; ".join(record.refs.values()),
        ]
        for place, record in rows
    ]  # fmt: skip
    out.table(
        ("record", "when", "what", "state", "reasons", "by", "note"),
        table,
        empty="the log says nothing of it",
    )


@audit.command
def prove(
    action: Annotated[str, Parameter(name="RUN/CALL")],
    /,
    *,
    record: int | None = None,
    data: Data = DATA,
    json: Json = False,
) -> None:
    """The proof of what the log says of an action, as JSON: `verify_file.py --proof` checks it without the log.

    Args:
        action: Its id.
        record: Which record about it (default: the last).
    """
    del json  # it is JSON anyhow
    from perdure.cli.opening import beside
    from perdure.runtime import Runtime

    async def work(runtime: Runtime) -> bytes:
        return await runtime.audit.prove(action, record)

    sys.stdout.write(beside(data, work).decode())


@audit.command
def export(
    *,
    format: Literal["jsonl", "ocsf", "dsse"] = "jsonl",
    output: Path | None = None,
    data: Data = DATA,
    json: Json = False,
) -> None:
    """Write the whole log: `jsonl` (what `verify_file.py` reads), `ocsf` events, or `dsse` envelopes.

    Args:
        format: How.
        output: The file (default: standard output).
    """
    from perdure.cli.opening import beside
    from perdure.core.errors import UsageError
    from perdure.runtime import Runtime

    async def work(runtime: Runtime) -> int:
        await runtime.audit.checkpoint()
        lines = runtime.audit.export(format)
        if output is None:
            return sum(1 for line in lines if sys.stdout.write(line.decode()))
        try:
            with output.open("wb") as file:
                return sum(1 for line in lines if file.write(line))
        except OSError as error:
            raise UsageError(f"`{output}` cannot be written: {error.strerror}") from error

    count = beside(data, work)
    if output is not None:
        out = Out(json)
        out.emit({"lines": count, "file": str(output)}) if json else out.text(f"{count} lines in {output}")


@audit.command
def erase(subject: str, /, *, reason: str = "", data: Data = DATA, json: Json = False) -> None:
    """Destroy the key of a subject: the encrypted details about it are gone, the log and its proofs stay.

    Args:
        subject: Such as `user:anna`.
        reason: Why.
    """
    import getpass

    from perdure.cli.opening import beside
    from perdure.runtime import Runtime

    async def work(runtime: Runtime) -> bool:
        return await runtime.audit.erase(subject, by=getpass.getuser(), reason=reason)

    was = beside(data, work)
    out = Out(json)
    if json:
        out.emit({"subject": subject, "erased": was})
    else:
        out.text(f"the details about {subject} are gone" if was else f"there was no key for {subject}")
