"""How the sandboxes of each tier are made, here, at a service, or on other machines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from perdure.core.errors import DefinitionError, SandboxUnavailableError
from perdure.core.sandbox import SandboxLimits, Tier
from perdure.ports import Sandboxes, Secrets
from perdure.runtime.system import SystemClock

PATHS = ("tools", "image", "program")  # options that are
Make = Callable[[SandboxLimits, Mapping[str, Any]], Sandboxes]


def makers(secrets: Secrets | None = None) -> dict[str, Make]:
    """How the sandboxes of each tier are made; imported when they are.

    Args:
        secrets: resolves the keys of services elsewhere.
    """

    def namespace(limits: SandboxLimits, options: Mapping[str, Any]) -> Sandboxes:
        if "hosts" in options:
            return _at_hosts("namespace", limits, options)
        from perdure.sandboxes.namespace import NamespaceSandboxes

        return NamespaceSandboxes(limits, **_read(options))

    def gvisor(limits: SandboxLimits, options: Mapping[str, Any]) -> Sandboxes:
        if "hosts" in options:
            return _at_hosts("gvisor", limits, options)
        from perdure.sandboxes.gvisor import GvisorSandboxes

        return GvisorSandboxes(limits, **_read(options))

    def microvm(limits: SandboxLimits, options: Mapping[str, Any]) -> Sandboxes:
        if "hosts" in options:
            return _at_hosts("microvm", limits, options)
        given = _read(options)
        match given.pop("monitor", "qemu"):
            case "qemu":
                from perdure.sandboxes.microvm import MicrovmSandboxes

                return MicrovmSandboxes(limits, **given)
            case "firecracker":
                from perdure.sandboxes.firecracker import FirecrackerSandboxes

                return FirecrackerSandboxes(limits, **given)
            case other:
                raise DefinitionError(
                    f"`monitor` of `[sandbox.options.microvm]` is `qemu` or `firecracker`, found `{other}`"
                )

    def remote(limits: SandboxLimits, options: Mapping[str, Any]) -> Sandboxes:
        return _remote(limits, _read(options), secrets)

    def unwalled(limits: SandboxLimits, options: Mapping[str, Any]) -> Sandboxes:
        from perdure.sandboxes.unwalled import UnwalledSandboxes

        return UnwalledSandboxes(limits, **options)

    return {"none": unwalled, "namespace": namespace, "gvisor": gvisor, "microvm": microvm, "remote": remote}


def _at_hosts(tier: Tier, limits: SandboxLimits, options: Mapping[str, Any]) -> Sandboxes:
    """Sandboxes of other machines: ``hosts``, and ``certificate``, ``key`` and ``authority`` of ``perdure sandbox enrol``."""
    from perdure.sandboxes.host_client import HostAddress, SandboxHosts
    from perdure.sandboxes.host_keys import context

    names = {"hosts", "certificate", "key", "authority"}
    if set(options) != names:
        raise DefinitionError(
            f"sandbox hosts are configured with {', '.join(sorted(names))}; found {sorted(options)}"
        )
    tls = context("client", *(Path(options[name]) for name in ("certificate", "key", "authority")))
    return SandboxHosts([HostAddress.parse(each) for each in options["hosts"]], tls, tier=tier, limits=limits)


def _remote(limits: SandboxLimits, options: dict[str, Any], secrets: Secrets | None) -> Sandboxes:
    """Sandboxes of a service elsewhere, by its ``service``.

    Raises:
        SandboxUnavailableError: none is configured, or none of that name is known.
    """
    from perdure.sandboxes.remote import RemoteSandboxes, RemoteService

    name = options.pop("service", "")
    made: RemoteService
    allows_network = bool(options.pop("allows_network", False))
    match name:
        case "e2b":
            from perdure.sandboxes.remote_e2b import E2BService

            made = E2BService(options.pop("key", "secret://e2b"), secrets=secrets, **options)
        case "opensandbox":
            from perdure.sandboxes.remote_opensandbox import OpenSandboxService

            made = OpenSandboxService(options.pop("key", "secret://opensandbox"), secrets=secrets, **options)
        case "kubernetes":
            from perdure.sandboxes.remote_kubernetes import KubernetesService

            made = KubernetesService(secrets=secrets, clock=SystemClock(), **options)
        case _:
            raise SandboxUnavailableError(
                f"no service is configured (found `{name:.40}`): say `service` in `[sandbox.options.remote]`, one of `e2b`, `opensandbox`, "
                "`kubernetes`, and where it is"
            )
    return RemoteSandboxes(made, limits, allows_network=allows_network)


def _read(options: Mapping[str, Any]) -> dict[str, Any]:
    """TOML has arrays where options are tuples, and texts where they are paths."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        if name in PATHS:
            found[name] = Path(str(value))
        else:
            found[name] = tuple(value) if isinstance(value, list) else value
    return found
