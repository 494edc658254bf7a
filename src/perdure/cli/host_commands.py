"""``worker --role sandbox`` and ``sandbox enrol``: sandboxes on other machines."""

# ruff: noqa: D417 - cyclopts reads the docstrings; the options that many commands share are described in ``options``

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from perdure.cli.options import Config, Json
from perdure.cli.output import Out
from perdure.cli.sandbox_commands import sandbox

Authority = Annotated[Path, Parameter(name="--authority")]


@sandbox.command
def enrol(
    name: str,
    /,
    *,
    role: Literal["host", "client"] = "client",
    folder: Path = Path("sandbox-hosts"),
    days: int = 90,
    json: Json = False,
) -> None:
    """Make a certificate for a sandbox host or for a client of hosts; the first time also their authority.

    Args:
        name: Whom it names; a host is reached, and a client is let in, under this name only.
        role: What it may act as.
        folder: Where the authority is, and the certificates are put.
        days: How long it counts.
    """
    from perdure.cli import host_serving

    host_serving.enrol(Out(json), name, role=role, folder=folder, days=days)


def worker(
    *,
    role: Literal["sandbox"],  # noqa: ARG001 - there is one; the word says what this process is
    client: list[str],
    listen: str = "127.0.0.1:7411",
    certificate: Path,
    key: Path,
    authority: Authority,
    at_once: int = 16,
    config: Config = None,
    json: Json = False,
) -> int:
    """Execute jobs of other machines in sandboxes of this one, until SIGTERM or SIGINT.

    Args:
        role: What it works as; `sandbox` is a sandbox host.
        client: The name of a client that may use it; can be given several times.
        listen: ADDRESS:PORT; port 0 takes a free one.
        certificate: Who this is, made by `perdure sandbox enrol NAME --role host`.
        key: Of the certificate.
        authority: The certificate of the authority.
        at_once: Jobs at the same time; more are told to go elsewhere.
    """
    from perdure.cli import host_serving

    order = host_serving.HostOrder(
        clients=tuple(client), listen=listen, certificate=certificate, key=key, authority=authority, at_once=at_once,
        config=config,
    )  # fmt: skip
    return host_serving.host(order, Out(json))
