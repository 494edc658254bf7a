"""OpenAPI documents as tools: each operation is one, with the schema of its parameters and body, sent over checked HTTP."""

from __future__ import annotations

import asyncio
import fnmatch
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec

from perdure.core.errors import DefinitionError, ToolUnreachableError
from perdure.core.tools import ToolOutput, ToolSpec, ToolUse
from perdure.ports import Secrets, Tool
from perdure.tools.http import READ_BYTES_MAX, SAFE, Call, HttpCaller, declared, path_part, resolved
from perdure.tools.schemas import Document, Operation, operations

DOCUMENT_BYTES_MAX = 32 * 1024 * 1024
OPERATIONS_MAX = 10_000  # tools that one document may make


class OpenApiToolset:
    """The operations of an OpenAPI document (3.0 or 3.1, JSON or YAML). Implements ``Toolset``.

    Args:
        name: what it is called.
        document: the document itself, its path, or its URL.
        base_url: where the API is; by default the document's first server.
        include: operations to offer, by the names of their tools, with ``*`` and ``?``.
        security: for each security scheme of the document a value or a reference such as ``secret://shop``.
        headers: further headers, also with references.
        secrets: resolves references.
        allow: private places that may be reached.
        tighten: for each tool name other declarations: ``recovery``, ``effect``, ``timeout_ms``.
        timeout_ms: how long one call may take.

    Raises:
        DefinitionError: the document cannot be read or is no OpenAPI 3 document; the message says where.
    """

    def __init__(
        self,
        name: str,
        document: str | Path | Mapping[str, Any],
        *,
        base_url: str = "",
        include: Sequence[str] = ("*",),
        security: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        secrets: Secrets | None = None,
        allow: Collection[str] = (),
        tighten: Mapping[str, Mapping[str, Any]] | None = None,
        timeout_ms: int = 30_000,
    ) -> None:
        self._name = name
        self._source = document
        self._base_url = base_url
        self._include = tuple(include)
        self._security = dict(security or {})
        self._headers = dict(headers or {})
        self._secrets = secrets
        self._tighten = {key: dict(value) for key, value in (tighten or {}).items()}
        self._timeout_ms = timeout_ms
        self._caller = HttpCaller(allow=allow)
        self._tools: list[Tool] = []

    @property
    def name(self) -> str:
        """What it is called."""
        return self._name

    async def open(self) -> None:
        """Read the document and make its tools.

        Raises:
            ToolUnreachableError: it cannot be fetched.
            DefinitionError: it is no OpenAPI 3 document.
        """
        source = self._source
        if isinstance(source, str) and source.startswith(("http://", "https://")):
            source = await self._fetched(source)
        self._tools = await asyncio.to_thread(self._made, source)

    async def _fetched(self, url: str) -> Mapping[str, Any]:
        call = Call("GET", url, {"accept": "application/json, application/yaml"})
        output = await self._caller.send(call, timeout_s=self._timeout_ms / 1000, limit=DOCUMENT_BYTES_MAX)
        if output.is_error:
            raise ToolUnreachableError(
                f"the document of toolset `{self._name}` cannot be fetched: {output.value!r:.300}"
            )
        value = output.value
        return value if isinstance(value, dict) else parsed(str(value), url)

    def _made(self, source: str | Path | Mapping[str, Any]) -> list[Tool]:
        data = source if isinstance(source, Mapping) else _read(source)
        document = Document(data, self._name)
        base = self._base_url or document.server()
        found: list[Tool] = []
        for operation in operations(document):
            if any(fnmatch.fnmatchcase(operation.name, pattern) for pattern in self._include):
                found.append(self._tool(document, operation, base))
            if len(found) > OPERATIONS_MAX:
                raise DefinitionError(
                    f"toolset `{self._name}` has more than {OPERATIONS_MAX} operations; use `include`"
                )
        return found

    def _tool(self, document: Document, operation: Operation, base: str) -> Tool:
        recovery, effect = declared(operation.method)
        options = {"recovery": recovery, "effect": effect, "timeout_ms": self._timeout_ms}
        spec = ToolSpec(
            name=operation.name,
            description=operation.description,
            parameters=operation.parameters,
            source=f"openapi:{self._name}",
            **{**options, **self._tighten.get(operation.name, {})},
        )
        placed = document.credentials(operation, self._security)
        return _OperationTool(spec, operation, base, placed, self._headers, self._secrets, self._caller)

    async def tools(self) -> Sequence[Tool]:
        """The tools that the document makes."""
        return self._tools

    async def close(self) -> None:
        """Close connections."""
        await self._caller.close()


class _OperationTool:
    """One operation."""

    def __init__(
        self,
        spec: ToolSpec,
        operation: Operation,
        base: str,
        credentials: Sequence[tuple[str, str, str]],
        headers: Mapping[str, str],
        secrets: Secrets | None,
        caller: HttpCaller,
    ) -> None:
        self.spec = spec
        self._operation = operation
        self._base = base.rstrip("/")
        self._credentials = credentials
        self._headers = headers
        self._secrets = secrets
        self._caller = caller

    async def call(self, use: ToolUse) -> ToolOutput:
        """Send it."""
        call = self._call(use)
        return await self._caller.send(call, timeout_s=self.spec.timeout_ms / 1000, limit=READ_BYTES_MAX)

    def _call(self, use: ToolUse) -> Call:
        operation = self._operation
        headers = {name: resolved(value, self._secrets) for name, value in self._headers.items()}
        path, query, cookies = operation.path, [], []
        for place in operation.places:
            if place.argument not in use.arguments:
                continue
            value = use.arguments[place.argument]
            match place.where:
                case "path":
                    path = path.replace(f"{{{place.name}}}", path_part(_joined(value)))
                case "query":
                    query += place.pairs(value)
                case "header":
                    headers[place.name] = _header(_joined(value))
                case _:
                    cookies.append(f"{place.name}={_header(_joined(value))}")
        body: bytes | None = None
        if operation.body_kind and "body" in use.arguments:
            body = _body(operation.body_kind, use.arguments["body"])
            headers["content-type"] = operation.body_kind
        for where, name, value in self._credentials:
            told = resolved(value, self._secrets)
            if where == "query":
                query.append((name, told))
            elif where == "cookie":
                cookies.append(f"{name}={told}")
            else:
                headers[name] = told
        if cookies:
            headers["cookie"] = "; ".join(cookies)
        if operation.method not in SAFE:
            headers["idempotency-key"] = use.key
        url = self._base + path + (f"?{urlencode(query)}" if query else "")
        return Call(operation.method, url, headers, body)


def _joined(value: Any) -> Any:
    """A list as one text, as the simple style has it."""
    return ",".join(str(item) for item in value) if isinstance(value, list) else value


def _header(value: Any) -> str:
    """A value that cannot begin another header."""
    text = value if isinstance(value, str) else json.dumps(value)
    return "".join(c for c in text if c.isprintable())


def _body(kind: str, value: Any) -> bytes:
    if kind == "application/x-www-form-urlencoded" and isinstance(value, dict):
        return urlencode(value, doseq=True).encode()
    return (
        value.encode() if isinstance(value, str) and not kind.endswith("json") else msgspec.json.encode(value)
    )


def _read(source: str | Path) -> Mapping[str, Any]:
    path = Path(source)
    try:
        if path.stat().st_size > DOCUMENT_BYTES_MAX:
            raise DefinitionError(f"`{path}` is over {DOCUMENT_BYTES_MAX} bytes")
        return parsed(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise DefinitionError(f"`{path}` cannot be read: {error}") from error


def parsed(text: str, where: str) -> Mapping[str, Any]:
    """A document from JSON, or from YAML if PyYAML is installed.

    Raises:
        DefinitionError: it is neither.
    """
    try:
        found = msgspec.json.decode(text.encode())
    except msgspec.DecodeError as problem:
        try:
            import yaml
        except ImportError:
            message = f"`{where}` is no JSON ({problem}); for YAML install `pyyaml`"
            raise DefinitionError(message) from problem
        try:
            found = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise DefinitionError(f"`{where}` is neither JSON nor YAML: {str(error)[:300]}") from error
    if not isinstance(found, dict):
        raise DefinitionError(
            f"`{where}` is no OpenAPI document: expected an object, found {type(found).__name__}"
        )
    return found
