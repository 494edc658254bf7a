"""The options of ``approvals``, ``keys``, ``contain``, ``kill`` and ``runs undo``."""

# ruff: noqa: D417 - cyclopts reads the docstrings; the options that many commands share are described in ``options``

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from perdure.cli.options import DATA, Config, Data, Json
from perdure.cli.output import Out

LEVEL = Literal["watch", "restrict", "hold", "stop"]
Action = Annotated[str, Parameter(name="RUN/CALL")]
KeyFile = Annotated[
    Path | None,
    Parameter(name="--key", help="Your private key (default: $PERDURE_KEY, else ~/.config/perdure)."),
]

approvals = App(
    name="approvals", help="What waits for a person, and that person's signature.", version_flags=()
)
keys = App(name="keys", help="Whose signature counts.", version_flags=())
contain = App(name="contain", help="Restrict or stop agents, runs and tools.", version_flags=())


@approvals.command(name="list")
def list_approvals(*, data: Data = DATA, json: Json = False) -> None:
    """List what waits for approval, the oldest first."""
    from perdure.cli import approving

    approving.pending(data, Out(json))


@approvals.command(name="show")
def show_approval(action: Action, /, *, data: Data = DATA, json: Json = False) -> None:
    """Everything that an approver signs.

    Args:
        action: Its id.
    """
    from perdure.cli import approving

    approving.show(data, Out(json), action)


@approvals.command
def approve(
    action: Action,
    /,
    *,
    reason: str = "",
    arguments: str | None = None,
    also: int = 0,
    free: list[str] | None = None,
    key: KeyFile = None,
    data: Data = DATA,
    json: Json = False,
) -> None:
    """Sign, with your key, that exactly this may happen, once.

    Args:
        action: Its id.
        reason: Why; it is in the record.
        arguments: Other arguments to go on with, as JSON; they are judged again.
        also: So many more actions of this run like this one (at most 49), within the hour, without asking.
        free: An argument that may be anything in those; may be given several times.
    """
    from perdure.cli import approving

    approving.decide(
        data,
        Out(json),
        action,
        "approve",
        key=key,
        reason=reason,
        arguments=arguments,
        also=also,
        free=free or [],
    )


@approvals.command
def reject(
    action: Action, /, *, reason: str = "", key: KeyFile = None, data: Data = DATA, json: Json = False
) -> None:
    """Sign, with your key, that this must not happen.

    Args:
        action: Its id.
        reason: Why; the agent is told.
    """
    from perdure.cli import approving

    approving.decide(data, Out(json), action, "reject", key=key, reason=reason, arguments=None)


@approvals.command(name="ask")
def ask_passkey(
    action: Action,
    /,
    *,
    decision: Literal["approve", "reject"] = "approve",
    reason: str = "",
    arguments: str | None = None,
    rp_id: str | None = None,
    data: Data = DATA,
    json: Json = False,
) -> None:
    """What a page needs to have a decision signed with a passkey, as JSON: what is shown, the statement, `publicKey`.

    Args:
        action: Its id.
        decision: What is decided.
        reason: Why; it is in the record.
        arguments: Other arguments to go on with, as JSON; they are judged again.
        rp_id: The domain of the page, if passkeys of several are registered.
    """
    del json  # it is JSON anyhow
    from perdure.cli import passkeys

    passkeys.ask(data, action, decision, rp_id=rp_id, reason=reason, arguments=arguments)


@approvals.command
def submit(
    action: Action, /, *, from_file: Path, asked: Path | None = None, data: Data = DATA, json: Json = False
) -> None:
    """Hand in a decision that was signed elsewhere: a grant, or with `--asked` the response of a passkey.

    Args:
        action: Its id.
        from_file: The grant, or what `PublicKeyCredential.toJSON` gave.
        asked: What `perdure approvals ask` printed before.
    """
    from perdure.cli import passkeys

    passkeys.submit(data, Out(json), action, from_file, asked)


@keys.command(name="list")
def list_keys(*, data: Data = DATA, json: Json = False) -> None:
    """List the keys whose signatures count, also the revoked ones."""
    from perdure.cli import approving

    approving.keys(data, Out(json))


@keys.command(name="new")
def new_key(
    *,
    person: str | None = None,
    role: list[str] | None = None,
    key: KeyFile = None,
    data: Data = DATA,
    json: Json = False,
) -> None:
    """Make your key: the private half stays in a file of yours, the public half is registered.

    Args:
        person: Who you are (default: the user's name).
        role: What you may approve; can be given several times (default: approver).
    """
    from perdure.cli import approving

    approving.new_key(data, Out(json), person=person, roles=role or [], key=key)


@keys.command(name="import")
def import_keys(
    file: Annotated[Path, Parameter(name="FILE")], /, *, data: Data = DATA, json: Json = False
) -> None:
    """Register the public keys of a team: a JWK Set whose keys have `person` and `roles`.

    Args:
        file: The set.
    """
    from perdure.cli import approving

    approving.import_keys(data, Out(json), file)


@keys.command
def invite(
    *,
    rp_id: str,
    person: str | None = None,
    role: list[str] | None = None,
    origin: list[str] | None = None,
    data: Data = DATA,
    json: Json = False,
) -> None:
    """Let a person register a passkey, once and within an hour; prints what a page needs, as JSON.

    Args:
        rp_id: The domain of the page that asks for the passkey.
        person: Who will hold it (default: the user's name).
        role: What they may approve; can be given several times (default: approver).
        origin: Where that page is; can be given several times (default: https and the domain).
    """
    del json  # it is JSON anyhow
    from perdure.cli import passkeys

    passkeys.invite(data, person=person, roles=role or [], rp_id=rp_id, origins=origin or [])


@keys.command(name="passkey")
def register_passkey(*, from_file: Path, data: Data = DATA, json: Json = False) -> None:
    """Register the passkey of a person who was invited.

    Args:
        from_file: What `PublicKeyCredential.toJSON` gave.
    """
    from perdure.cli import passkeys

    passkeys.register(data, Out(json), from_file)


@keys.command
def revoke(
    kid: Annotated[str, Parameter(name="KEY")], /, *, reason: str = "", data: Data = DATA, json: Json = False
) -> None:
    """Revoke a key: what it has signed and was not used does not count any more.

    Args:
        kid: The key, or how it begins.
        reason: Why.
    """
    from perdure.cli import approving

    approving.revoke(data, Out(json), kid, reason=reason)


@contain.command(name="list")
def list_contained(*, data: Data = DATA, json: Json = False) -> None:
    """List what is contained."""
    from perdure.cli import governing

    governing.contained(data, Out(json))


@contain.command(name="set")
def set_contained(
    scope: Annotated[str, Parameter(name="SCOPE")],
    level: Annotated[LEVEL, Parameter(name="LEVEL")],
    /,
    *,
    reason: str = "",
    seconds: float | None = None,
    data: Data = DATA,
    json: Json = False,
) -> None:
    """Contain a scope: `*`, `agent:NAME`, `run:ID` (with all below it) or `tool:NAME`.

    Args:
        scope: What.
        level: `watch`, `restrict` (reads only), `hold` (what is no read needs a grant), `stop`.
        reason: Why; agents are told.
        seconds: For how long; otherwise until it is lifted.
    """
    from perdure.cli import governing

    governing.contain(data, Out(json), scope, level, reason=reason, seconds=seconds)


@contain.command(name="lift")
def lift_contained(
    scope: Annotated[str, Parameter(name="SCOPE")],
    /,
    *,
    reason: str = "",
    data: Data = DATA,
    json: Json = False,
) -> None:
    """End a containment.

    Args:
        scope: What.
        reason: Why.
    """
    from perdure.cli import governing

    governing.lift(data, Out(json), scope, reason=reason)


def kill(
    scope: Annotated[str, Parameter(name="SCOPE")],
    /,
    *,
    reason: str = "",
    data: Data = DATA,
    json: Json = False,
) -> None:
    """The kill switch: new actions are refused at once, runs end, workers lose their leases.

    Args:
        scope: `*`, `agent:NAME` or `run:ID`.
        reason: Why.
    """
    from perdure.cli import governing

    governing.kill(data, Out(json), scope, reason=reason)


def undo(
    run: Annotated[str, Parameter(name="RUN")],
    app: Annotated[str, Parameter(name="APP")],
    /,
    *,
    to: int = 0,
    cause: str | None = None,
    direct: bool = False,
    dry_run: bool = False,
    reason: str = "",
    config: Config = None,
    data: Data = DATA,
    json: Json = False,
) -> int:
    """Take back what a run and those below it did, the newest first; what cannot be taken back is listed before.

    Args:
        run: The run.
        app: The module or file with its agents, whose tools know how.
        to: Leave what happened up to this entry of its journal.
        cause: Only what derives from this source, such as `tool:mail.read` or `run:ID/CALL`.
        direct: With `--cause`, only what derives through its arguments, not what was merely done after the source was seen.
        dry_run: Only show what would be done.
        reason: Why.
    """
    from perdure.cli import governing

    return governing.undo(
        data,
        Out(json),
        run,
        app=app,
        after=to,
        cause=cause,
        direct=direct,
        dry_run=dry_run,
        reason=reason,
        config=config,
    )
