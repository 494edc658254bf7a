"""Sandboxes of OpenSandbox: a lifecycle API, and in each sandbox a daemon for commands (server-sent events) and files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2
import msgspec

from perdure.core.sandbox import SandboxLimits
from perdure.ports import Secrets
from perdure.sandboxes.remote import START_S, RemoteSandbox, joined
from perdure.sandboxes.remote_calls import UPLOAD_S, CallError, Calls, Key, checked_url, host_of, text

DAEMON_PORT = 44_772
IMAGE = "python:3.11"
FOLDER = "/tmp"  # noqa: S108 - of the sandbox, which is fresh and has one user
ENTRY = ("tail", "-f", "/dev/null")
LIFETIME_S_MIN = 60  # the least that the service takes
POLL_S = 0.1
GONE = ("Failed", "Stopping", "Terminated")
LINE_BYTES_MAX = 1 << 20
STREAM_BYTES_MAX = 16 << 20


class OpenSandboxService:
    """Implements ``RemoteService``.

    Args:
        key: the API key, or a reference such as ``secret://opensandbox``.
        secrets: what resolves references.
        api: the address of the lifecycle API, with its version, such as ``https://sandboxes.example/v1``.
        image: what sandboxes are made of; it must have Python 3 as ``python3``.
        folder: a directory of the sandbox that may be written.
        is_proxied: whether sandboxes are reached through the service.
        ca_file: certificates to trust instead of the usual ones.
    """

    name = "opensandbox"

    def __init__(
        self,
        key: str,
        *,
        api: str,
        secrets: Secrets | None = None,
        image: str = IMAGE,
        folder: str = FOLDER,
        is_proxied: bool = True,
        ca_file: str | None = None,
    ) -> None:
        self._key = Key(key, secrets)
        self._api = checked_url(api)
        self._image = image
        self._folder = folder
        self._is_proxied = is_proxied
        self._calls = Calls(self.name, ca_file=ca_file)
        self.host = host_of(self._api)

    async def create(self, limits: SandboxLimits, lifetime_s: int) -> RemoteSandbox:
        """Make a sandbox with the processors and memory of the limits, and no way out (see the protocol)."""
        key = self._key.get()
        self._calls.hide(key)
        headers = {"OPEN-SANDBOX-API-KEY": key}
        order = {
            "image": {"uri": self._image}, "entrypoint": ENTRY, "timeout": max(lifetime_s, LIFETIME_S_MIN),
            "resourceLimits": {
                "cpu": f"{max(1, int(limits.cpu_share * 1000))}m",
                "memory": f"{-(-(limits.memory_bytes + limits.disk_bytes) // (1 << 20)) + 64}Mi",
            },
            "networkPolicy": {"defaultAction": "deny", "egress": []}, "metadata": {"made-by": "perdure"},
        }  # fmt: skip
        found = await self._calls.told("POST", f"{self._api}/sandboxes", headers=headers, json=order)
        made = text(found, "id")
        own = f"{self._api}/sandboxes/{quote(made, safe='')}"
        return _Sandbox(self._calls, made, own, headers, self._folder, found, is_proxied=self._is_proxied)

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
        folder: str,
        found: dict[str, Any],
        *,
        is_proxied: bool,
    ) -> None:
        self.name = name
        self._calls = calls
        self._own = own
        self._headers = headers
        self._folder = folder
        self._found = found
        self._is_proxied = is_proxied
        self._base = ""
        self._inside: dict[str, str] = {}

    async def ready(self) -> None:
        try:
            async with asyncio.timeout(START_S):
                await self._until_running()
                asked = {"use_server_proxy": "true"} if self._is_proxied else {}
                where = f"{self._own}/endpoints/{DAEMON_PORT}"
                found = await self._calls.told("GET", where, headers=self._headers, params=asked)
                self._reach(text(found, "endpoint"), found.get("headers") or {})
                await self._until_it_answers()
        except TimeoutError:
            raise CallError(f"the sandbox was not ready in {START_S} s") from None

    async def _until_running(self) -> None:
        while (state := (self._found.get("status") or {}).get("state")) != "Running":
            if state in GONE:
                why = self._calls.said(str((self._found.get("status") or {}).get("message") or state))
                raise CallError(f"the sandbox did not start: {why}")
            await asyncio.sleep(POLL_S)
            self._found = await self._calls.told("GET", self._own, headers=self._headers)

    def _reach(self, endpoint: str, headers: dict[str, str]) -> None:
        """Endpoints come without a scheme: they have that of the service. The key goes along only where it passes the calls on."""
        base = endpoint if "://" in endpoint else f"{urlsplit(self._own).scheme}://{endpoint}"
        self._base = checked_url(base)
        is_own = self._is_proxied and host_of(self._base) == host_of(self._own)
        self._inside = {**headers, **(self._headers if is_own else {})}
        self._calls.hide(*headers.values())

    async def _until_it_answers(self) -> None:
        while True:
            try:
                await self._calls.whole("GET", f"{self._base}/ping", headers=self._inside)
            except CallError as error:
                if error.status in (401, 403):
                    raise
                await asyncio.sleep(POLL_S)
            else:
                return

    async def put(self, name: str, data: bytes) -> None:
        about = msgspec.json.encode({"path": joined(self._folder, name), "mode": 600})
        parts = [
            ("metadata", ("metadata", about, "application/json")),
            ("file", (name, data, "application/octet-stream")),
        ]
        await self._calls.whole(
            "POST", f"{self._base}/files/upload", files=parts, headers=self._inside, seconds=UPLOAD_S
        )

    async def get(self, name: str, most: int) -> bytes:
        return await self._calls.whole(
            "GET", f"{self._base}/files/download", params={"path": joined(self._folder, name)}, headers=self._inside,
            most=most, seconds=UPLOAD_S,
        )  # fmt: skip

    async def start(self, command: str, seconds: float) -> None:
        order = {"command": command, "cwd": self._folder, "background": False, "timeout": int(seconds * 1000)}
        async with self._calls.stream(
            "POST", f"{self._base}/command", json=order, headers=self._inside, seconds=seconds
        ) as answer:
            async for found in _events(answer):
                if found.get("type") in ("execution_complete", "error"):
                    return
        raise CallError("the stream of a command ended before the command did")

    async def delete(self) -> None:
        try:
            await self._calls.whole("DELETE", self._own, headers=self._headers)
        except CallError as error:
            if error.status != httpx2.codes.NOT_FOUND:
                raise


async def _events(answer: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream: lines of JSON, with or without ``data:``."""
    held = bytearray()
    total = 0
    async for part in answer.aiter_bytes():
        held += part
        total += len(part)
        if total > STREAM_BYTES_MAX or len(held) > LINE_BYTES_MAX:
            raise CallError("the stream of a command is too long")
        while (end := held.find(b"\n")) >= 0:
            line = bytes(held[:end]).strip().removeprefix(b"data:").strip()
            del held[: end + 1]
            if not line.startswith(b"{"):
                continue
            try:
                found = msgspec.json.decode(line)
            except msgspec.DecodeError as error:
                raise CallError("the stream of a command has an event that is no JSON") from error
            yield found
