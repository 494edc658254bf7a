"""``audit ...``: the tamper-evident log."""

# ruff: noqa: D417 - cyclopts reads the docstrings; the options that many commands share are described in ``options``

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from perdure.cli.options import DATA, Data, Json
from perdure.cli.output import Out

audit = App(name="audit", help="The tamper-evident log: verify, prove, export.", version_flags=())


@audit.command
def verify(
    *,
    key: str | None = None,
    checkpoint: Path | None = None,
    witness: list[str] | None = None,
    quorum: int | None = None,
    ask: list[str] | None = None,
    data: Data = DATA,
    json: Json = False,
) -> int:
    """Look at every record, every hash and every signature, and hold the ledger against the log.

    Args:
        key: The public key of the log, kept elsewhere (default: that of the data directory).
        checkpoint: A checkpoint that was kept elsewhere: the log must continue it.
        witness: The verifier key of a witness, or a file with it; can be given several times.
        quorum: How many of the witnesses must have cosigned a head (default: all).
        ask: The address of a witness: the log must continue what it cosigned last; can be given several times.
    """
    from perdure.cli import auditing

    return auditing.verify(
        data, Out(json), key=key, checkpoint=checkpoint, witnesses=witness or [], quorum=quorum, ask=ask or []
    )


@audit.command
def status(*, data: Data = DATA, json: Json = False) -> int:
    """How far the log is signed, and what is known of its witnesses. Exit code 1 if one has refused."""
    from perdure.cli import auditing

    return auditing.status(data, Out(json))


@audit.command(name="key")
def show_key(*, current: bool = False, data: Data = DATA, json: Json = False) -> None:
    """Show the public key of the log: the first one, from which a verifier follows the others. Keep it elsewhere.

    Args:
        current: The one that signs now, for a witness.
    """
    from perdure.cli.opening import beside
    from perdure.runtime import Runtime

    async def work(runtime: Runtime) -> str:
        return runtime.audit.verifier(current=current)

    found = beside(data, work)
    Out(json).emit({"key": found}) if json else sys.stdout.write(f"{found}\n")


@audit.command
def rotate_key(*, reason: str = "", data: Data = DATA, json: Json = False) -> None:
    """Let a new key sign the log from now on. The old one names it in a record of the log, and is destroyed.

    Args:
        reason: Why; it is in the record.
    """
    import getpass

    from perdure.cli.opening import beside
    from perdure.runtime import Runtime

    async def work(runtime: Runtime) -> str:
        return await runtime.audit.rotate_key(by=getpass.getuser(), reason=reason)

    found = beside(data, work)
    out = Out(json)
    if json:
        out.emit({"key": found})
        return
    out.text(found)
    out.text(
        "Give this key to your witnesses, after the one that they have. Who verifies needs only the first one."
    )


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
def witness(
    *,
    name: str,
    key: Path,
    state: Path,
    log: list[Path],
    listen: str = "127.0.0.1:8787",
    new: bool = False,
    json: Json = False,
) -> None:
    """Be a witness: cosign checkpoints of logs, each only if it extends the last one. Prints its verifier key and serves until stopped.

    Args:
        name: Its name, such as `witness.example/w1`.
        key: Its private key, Ed25519 in PEM; with `--new` it is made if it is missing.
        state: The file with what it cosigned last. A witness that lost it does not start.
        log: The public key of a log that it cosigns for; several, and of one log those that followed each other in their order.
        listen: Host and port.
        new: This witness has cosigned nothing yet.
    """
    del json  # its one line is the key
    from perdure.core.errors import UsageError
    from perdure.hosting.witness import WitnessState, log_keys_of, serve, witness_key

    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise UsageError(f"`--listen` is HOST:PORT, found `{listen}`")
    logs = log_keys_of(log)
    private = witness_key(key, may_make=new)
    held = WitnessState(state, is_new=new)
    serve(held, name=name, private=private, logs=logs, host=host.strip("[]"), port=int(port))


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
