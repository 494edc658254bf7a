"""Sandboxes of a Kubernetes cluster with the SIG's agent-sandbox: a claim on a warm pool, and its router for commands and files."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2

from perdure.core.errors import SandboxUnavailableError
from perdure.core.sandbox import SandboxLimits
from perdure.ports import Clock, Secrets
from perdure.sandboxes.remote import START_S, RemoteSandbox
from perdure.sandboxes.remote_calls import UPLOAD_S, CallError, Calls, Key, checked_url, host_of, text

GROUP = "extensions.agents.x-k8s.io/v1beta1"
API = "https://kubernetes.default.svc"
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # where a pod finds who it is
SERVER_PORT = 8_888  # of the runtime in a sandbox
POLL_S = 0.1
TRIES = 5  # to hand a job over
NOT_YET = (502, 503, 504)
HOPELESS = (  # reasons that its controller does not recover from
    "TemplateNotFound", "WarmPoolNotFound", "InvalidMetadata", "EnvVarsInjectionRejected", "VolumeClaimTemplatesError",
    "ClaimExpired", "SandboxExpired",
)  # fmt: skip


class KubernetesService:
    """Implements ``RemoteService``.

    Args:
        router: the address of the sandbox router, or of the gateway before it.
        warm_pool: the ``SandboxWarmPool`` that claims are made on; limits and network policy are those of its template.
        clock: tells when claims expire.
        namespace: of the claims.
        api: the address of the API server.
        token: a token for it, or a reference; by default that of the pod's service account, read anew each time.
        secrets: what resolves references.
        ca_file: certificates to trust; by default those of the pod's service account, if it has one.
        port: of the runtime in a sandbox.
        allows_http: take a router without TLS, where the network to it is trusted.
    """

    name = "kubernetes"

    def __init__(
        self,
        *,
        router: str,
        warm_pool: str,
        clock: Clock,
        namespace: str = "default",
        api: str = API,
        token: str = "",
        secrets: Secrets | None = None,
        ca_file: str | None = None,
        port: int = SERVER_PORT,
        allows_http: bool = False,
    ) -> None:
        self._router = checked_url(router, allows_http=allows_http)
        self._api = checked_url(api)
        self._warm_pool = warm_pool
        self._clock = clock
        self._namespace = namespace
        self._token = Key(token, secrets) if token else None
        self._port = port
        own = ACCOUNT / "ca.crt"
        self._calls = Calls(self.name, ca_file=ca_file or (str(own) if own.exists() else None))
        self._routed = Calls("the sandbox router", ca_file=ca_file)
        self.host = host_of(self._api)

    async def _headers(self) -> dict[str, str]:
        if self._token is not None:
            token = self._token.get()
        else:
            try:
                token = (await asyncio.to_thread((ACCOUNT / "token").read_text)).strip()
            except OSError as error:
                raise SandboxUnavailableError(
                    f"there is no token for Kubernetes at {ACCOUNT} ({error.strerror}); give `token`"
                ) from error
        self._calls.hide(token)
        return {"Authorization": f"Bearer {token}"}

    async def create(self, limits: SandboxLimits, lifetime_s: int) -> RemoteSandbox:  # noqa: ARG002 - its template has them
        """Claim a sandbox (see the protocol)."""
        headers = await self._headers()
        until = datetime.fromtimestamp(self._clock.now_ms() / 1000 + lifetime_s, UTC)
        order = {
            "apiVersion": GROUP, "kind": "SandboxClaim",
            "metadata": {"generateName": "perdure-", "labels": {"agents.x-k8s.io/created-by": "perdure"}},
            "spec": {
                "warmPoolRef": {"name": self._warm_pool},
                "lifecycle": {"shutdownTime": until.strftime("%Y-%m-%dT%H:%M:%SZ"), "shutdownPolicy": "Delete"},
            },
        }  # fmt: skip
        claims = f"{self._api}/apis/{GROUP}/namespaces/{quote(self._namespace, safe='')}/sandboxclaims"
        found = await self._calls.told("POST", claims, headers=headers, json=order)
        name = text(found.get("metadata") or {}, "name")
        own = f"{claims}/{quote(name, safe='')}"
        inside = {"X-Sandbox-Namespace": self._namespace, "X-Sandbox-Port": str(self._port)}
        return _Sandbox(self._calls, self._routed, name, own, headers, self._router, inside, found)

    async def close(self) -> None:
        """Let go of connections."""
        await self._calls.close()
        await self._routed.close()


def _is_ready(status: Mapping[str, Any]) -> bool:
    return any(
        condition.get("type") == "Ready" and condition.get("status") == "True"
        for condition in status.get("conditions") or []
    )


class _Sandbox:
    def __init__(
        self,
        calls: Calls,
        routed: Calls,
        name: str,
        own: str,
        headers: dict[str, str],
        router: str,
        inside: dict[str, str],
        found: dict[str, Any],
    ) -> None:
        self.name = name
        self._calls = calls
        self._routed = routed
        self._own = own
        self._headers = headers
        self._router = router
        self._inside = inside
        self._found = found

    async def ready(self) -> None:
        try:
            async with asyncio.timeout(START_S):
                status = await self._until_ready()
        except TimeoutError:
            raise CallError(f"the sandbox was not ready in {START_S} s") from None
        sandbox = status.get("sandbox") or {}
        self._inside["X-Sandbox-ID"] = text(sandbox, "name")
        if ips := sandbox.get("podIPs"):
            self._inside["X-Sandbox-Pod-IP"] = str(ips[0])

    async def _until_ready(self) -> Mapping[str, Any]:
        """The status of a claim that is bound to a sandbox which is ready."""
        while True:
            status: dict[str, Any] = self._found.get("status") or {}
            for condition in status.get("conditions") or []:
                if condition.get("reason") in HOPELESS and condition.get("status") == "False":
                    words = self._calls.said(f"{condition['reason']}: {condition.get('message', '')}")
                    raise CallError(f"the claim cannot be met: {words}")
            if (status.get("sandbox") or {}).get("name") and _is_ready(status):
                return status
            await asyncio.sleep(POLL_S)
            self._found = await self._calls.told("GET", self._own, headers=self._headers)

    async def put(self, name: str, data: bytes) -> None:
        for again in range(TRIES, 0, -1):  # a router may not know a sandbox yet that was claimed just now
            try:
                await self._routed.whole(
                    "POST",
                    f"{self._router}/upload",
                    files={"file": (name, data)},
                    headers=self._inside,
                    seconds=UPLOAD_S,
                )
            except CallError as error:
                if again == 1 or error.status not in NOT_YET:
                    raise
                await asyncio.sleep(POLL_S * (TRIES + 1 - again))
            else:
                return

    async def get(self, name: str, most: int) -> bytes:
        return await self._routed.whole(
            "GET",
            f"{self._router}/download/{quote(name, safe='')}",
            headers=self._inside,
            most=most,
            seconds=UPLOAD_S,
        )

    async def start(self, command: str, seconds: float) -> None:
        headers = {**self._inside, "X-Sandbox-Timeout": f"{seconds:g}"}
        await self._routed.told(
            "POST", f"{self._router}/execute", json={"command": command}, headers=headers, seconds=seconds
        )

    async def delete(self) -> None:
        try:
            await self._calls.whole("DELETE", self._own, headers=self._headers)
        except CallError as error:
            if error.status != httpx2.codes.NOT_FOUND:
                raise
