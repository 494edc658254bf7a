"""Sandboxes of E2B, or of a service with the same API: lifecycle by REST, processes by Connect with JSON, files by multipart."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx2
import msgspec

from perdure.core.sandbox import SandboxLimits
from perdure.ports import Secrets
from perdure.sandboxes.remote import RemoteSandbox, joined
from perdure.sandboxes.remote_calls import UPLOAD_S, CallError, Calls, Key, checked_url, host_of, text

AGENT_PORT = 49_983  # of the process that serves a sandbox
API = "https://api.e2b.app"
DOMAIN = "e2b.app"
TEMPLATE = "base"
FOLDER = "/home/user"
HEAD = struct.Struct(">BI")  # of a Connect message: flags, length
LAST = 2  # the flag of a stream's last message
MESSAGE_BYTES_MAX = 4 << 20
STREAM_BYTES_MAX = 16 << 20  # of a whole stream: the program inside says next to nothing itself
PING_S = 50


class E2BService:
    """Implements ``RemoteService``.

    Args:
        key: the API key, or a reference such as ``secret://e2b``.
        secrets: what resolves references.
        api: the address of the lifecycle API.
        sandbox_url: the address of every sandbox; by default it is made of its name and its domain.
        template: what sandboxes are made of; it must have Python 3.
        folder: a directory of the sandbox that its user may write.
        ca_file: certificates to trust instead of the usual ones.
    """

    name = "e2b"

    def __init__(
        self,
        key: str,
        *,
        secrets: Secrets | None = None,
        api: str = API,
        sandbox_url: str = "",
        template: str = TEMPLATE,
        folder: str = FOLDER,
        ca_file: str | None = None,
    ) -> None:
        self._key = Key(key, secrets)
        self._api = checked_url(api)
        self._sandbox_url = checked_url(sandbox_url) if sandbox_url else ""
        self._template = template
        self._folder = folder
        self._calls = Calls(self.name, ca_file=ca_file)
        self.host = host_of(self._api)

    async def create(self, limits: SandboxLimits, lifetime_s: int) -> RemoteSandbox:  # noqa: ARG002 - its template has them
        """Make a sandbox without internet (see the protocol). Processors and memory are those of the template."""
        key = self._key.get()
        self._calls.hide(key)
        headers = {"X-API-Key": key}
        order = {
            "templateID": self._template, "timeout": lifetime_s, "secure": True, "allow_internet_access": False,
            "autoPause": False, "metadata": {"made-by": "perdure"},
        }  # fmt: skip
        found = await self._calls.told("POST", f"{self._api}/v2/sandboxes", headers=headers, json=order)
        made = text(found, "sandboxID")
        token = found.get("envdAccessToken") or ""
        self._calls.hide(token)
        domain = found.get("domain") or DOMAIN
        base = self._sandbox_url or checked_url(f"https://{AGENT_PORT}-{made}.{domain}")
        inside = {"E2b-Sandbox-Id": made, "E2b-Sandbox-Port": str(AGENT_PORT)}
        if token:
            inside["X-Access-Token"] = token
        return _Sandbox(
            self._calls,
            made,
            f"{self._api}/sandboxes/{quote(made, safe='')}",
            headers,
            base,
            inside,
            self._folder,
        )

    async def close(self) -> None:
        """Let go of connections."""
        await self._calls.close()


class _Sandbox:
    def __init__(
        self,
        calls: Calls,
        name: str,
        own: str,
        headers: dict[str, str],
        base: str,
        inside: dict[str, str],
        folder: str,
    ) -> None:
        self.name = name
        self._calls = calls
        self._own = own
        self._headers = headers
        self._base = base
        self._inside = inside
        self._folder = folder

    async def ready(self) -> None:
        """It is, when the service has answered."""

    async def put(self, name: str, data: bytes) -> None:
        path = joined(self._folder, name)
        await self._calls.whole(
            "POST", f"{self._base}/files", params={"path": path}, files={"file": (path, data)},
            headers=self._inside, seconds=UPLOAD_S,
        )  # fmt: skip

    async def get(self, name: str, most: int) -> bytes:
        path = joined(self._folder, name)
        return await self._calls.whole(
            "GET",
            f"{self._base}/files",
            params={"path": path},
            headers=self._inside,
            most=most,
            seconds=UPLOAD_S,
        )

    async def start(self, command: str, seconds: float) -> None:
        order = msgspec.json.encode(
            {
                "process": {
                    "cmd": "/bin/bash",
                    "args": ["-l", "-c", command],
                    "envs": {},
                    "cwd": self._folder,
                },
                "stdin": False,
            }
        )
        headers = {
            **self._inside, "Content-Type": "application/connect+json", "Connect-Protocol-Version": "1",
            "Connect-Timeout-Ms": str(int(seconds * 1000)), "Keepalive-Ping-Interval": str(PING_S),
        }  # fmt: skip
        has_begun = has_ended = False
        async with self._calls.stream(
            "POST", f"{self._base}/process.Process/Start", content=HEAD.pack(0, len(order)) + order,
            headers=headers, seconds=seconds,
        ) as answer:  # fmt: skip
            async for flags, found in _messages(answer):
                if flags & LAST:
                    if error := found.get("error"):
                        words = self._calls.said(str(error.get("message") or error.get("code")))
                        raise CallError(f"e2b: {words}", never_sent=not has_begun)
                    break
                event = found.get("event") or {}
                has_begun = has_begun or "start" in event
                has_ended = has_ended or "end" in event
        if not has_ended:
            raise CallError("the stream of a process ended before the process did")

    async def delete(self) -> None:
        try:
            await self._calls.whole("DELETE", self._own, headers=self._headers)
        except CallError as error:
            if error.status != httpx2.codes.NOT_FOUND:
                raise


async def _messages(answer: httpx2.Response) -> AsyncIterator[tuple[int, dict[str, Any]]]:
    """The messages of a stream, each with its flags."""
    held = bytearray()
    total = 0
    async for part in answer.aiter_bytes():
        held += part
        total += len(part)
        if total > STREAM_BYTES_MAX:
            raise CallError(f"the stream of a process has more than {STREAM_BYTES_MAX} bytes")
        while len(held) >= HEAD.size:
            flags, length = HEAD.unpack_from(held)
            if length > MESSAGE_BYTES_MAX or flags & ~LAST:
                raise CallError(f"the stream of a process has a message of {length} bytes with flags {flags}")
            if len(held) < HEAD.size + length:
                break
            data = bytes(held[HEAD.size : HEAD.size + length])
            del held[: HEAD.size + length]
            try:
                found = msgspec.json.decode(data) if data else {}
            except msgspec.DecodeError:
                found = None
            if not isinstance(found, dict):
                raise CallError("the stream of a process has a message that is no JSON object")
            yield flags, found
