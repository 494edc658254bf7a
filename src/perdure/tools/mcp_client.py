"""MCP servers as toolsets: started here and spoken to over their stdin and stdout, or reached over streamable HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mcp_types as types
import msgspec
from mcp.client.session import ClientSession
from mcp.shared.exceptions import MCPError
from pydantic import TypeAdapter, ValidationError

from perdure.core.errors import (
    DefinitionError,
    ToolDoubtfulError,
    ToolFailedError,
    ToolUnreachableError,
)
from perdure.core.limits import TOOL_TIMEOUT_MS
from perdure.core.tools import ToolOutput, ToolSpec, ToolUse, is_tool_name
from perdure.tools.mcp_http import GONE, LOST, UNREACHABLE
from perdure.tools.mcp_link import Link
from perdure.tools.mcp_stdio import StdioPipe

KEY = "dev.perdure/idempotency-key"  # in `_meta`: servers that know it can recognise a second attempt
START_TIMEOUT_MS = 30_000  # package runners download what they start
LIST_TIMEOUT_MS = 30_000
PAGES_MAX = 100  # of a server's list of tools
TOOLS_MAX = 1_000  # of a server; no model can choose among more
STABLE_S = 10  # a server that lived for so long may be started again at once
BACKOFF_S = (0, 0.2, 1, 5)  # before the next start, after so many short lives; the last also for all after
TIGHTENED = ("recovery", "effect", "timeout_ms", "output_bytes_max")

# The SDK's own codes, and ours for what happened on the way: after these the request may have been acted upon.
_DOUBTFUL = (types.CONNECTION_CLOSED, types.REQUEST_TIMEOUT, types.PARSE_ERROR, LOST)
_result: TypeAdapter[types.CallToolResult | types.InputRequiredResult] = TypeAdapter(
    types.CallToolResult | types.InputRequiredResult
)
_logger = logging.getLogger(__name__)


class McpToolset:
    """The tools of one MCP server. Either ``command`` or ``url`` is given.

    Args:
        name: what charters call it.
        command: program and arguments of a server that is started here, when it is first needed and again after it died.
        env: for the program, besides ``PATH``, ``HOME`` and ``LANG``.
        ours: our own environment, where those three come from.
        url: address of a server that speaks streamable HTTP.
        headers: for each request to it.
        tighten: what is declared for a tool instead of what its hints say: ``{"pay": {"recovery": "opaque"}}``; also
            ``effect``, ``timeout_ms``, ``output_bytes_max``. The name ``*`` is for all others.
        trust_hints: whether a server may say of its tools that they only read or can be repeated.
        timeout_ms: of one call.
        start_timeout_ms: until it answers for the first time.
        resolve: turns what is in ``env`` and ``headers`` into values at each start, such as references to secrets.
    """

    def __init__(
        self,
        name: str,
        *,
        command: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        ours: Mapping[str, str] | None = None,
        url: str = "",
        headers: Mapping[str, str] | None = None,
        tighten: Mapping[str, Mapping[str, Any]] | None = None,
        trust_hints: bool = True,
        timeout_ms: int = TOOL_TIMEOUT_MS,
        start_timeout_ms: int = START_TIMEOUT_MS,
        resolve: Callable[[str], str] = str,
    ) -> None:
        if bool(command) == bool(url):
            raise DefinitionError(f"toolset `{name}` needs either `command` or `url`, not both", toolset=name)
        self._name = name
        self._command = tuple(command)
        self._env = dict(env or {})
        self._ours = dict(ours or {})
        self._url = url
        self._headers = dict(headers or {})
        self._tighten = {tool: dict(settings) for tool, settings in (tighten or {}).items()}
        for tool, settings in self._tighten.items():
            unknown = sorted(set(settings) - set(TIGHTENED))
            if unknown:
                message = (
                    f"toolset `{name}` declares `{unknown[0]}` for `{tool}`; expected {', '.join(TIGHTENED)}"
                )
                raise DefinitionError(message, toolset=name)
        self._trust_hints = trust_hints
        self._timeout_ms = timeout_ms
        self._start_timeout_ms = start_timeout_ms
        self._resolve = resolve
        self._lock = asyncio.Lock()
        self._link: Link | None = None
        self._session: ClientSession | None = None
        self._started_s = 0.0
        self._short_lives = 0
        self._is_closed = False

    @property
    def name(self) -> str:
        """What charters call it."""
        return self._name

    async def open(self) -> None:
        """Start the server or connect to it.

        Raises:
            ToolUnreachableError: it cannot be done.
        """
        self._is_closed = False
        await self._connected()

    async def close(self) -> None:
        """Let go of it; a server that was started here is ended with everything that it started."""
        self._is_closed = True
        async with self._lock:
            if self._link is not None:
                await self._link.close()
            self._link = self._session = None

    async def tools(self) -> Sequence[McpTool]:
        """What it offers now; tools that cannot be offered to an agent are left out and logged.

        Raises:
            ToolUnreachableError: it does not answer, or with something else than a list of tools.
        """
        try:
            link, session = await self._connected()
            specs = await self._listed(link, session)
        except _Forgotten:
            link, session = await self._connected()
            specs = await self._listed(link, session)
        return [McpTool(self, spec) for spec in specs]

    # -- the connection
    async def _connected(self) -> tuple[Link, ClientSession]:
        async with self._lock:
            if self._is_closed:
                raise ToolUnreachableError(f"toolset `{self._name}` is closed", toolset=self._name)
            if self._link is not None and self._session is not None and self._link.is_usable:
                return self._link, self._session
            await self._wait_after_death()
            pipe = None
            if self._command:
                env = {key: self._resolve(value) for key, value in self._env.items()}
                pipe = StdioPipe(self._name, self._command, env, self._ours)
            headers = {key: self._resolve(value) for key, value in self._headers.items()}
            link = Link(self._name, pipe, self._url, headers)
            self._started_s = asyncio.get_running_loop().time()
            self._short_lives += 1
            session = await link.open(self._start_timeout_ms)
            try:
                # The SDK learns from the list which arguments it has to repeat in headers.
                await self._listed(link, session)
            except BaseException:
                await link.close()
                raise
            self._link, self._session = link, session
            return link, session

    async def _wait_after_death(self) -> None:
        """Clear away what there was; a server that dies again and again is started ever more slowly."""
        if self._link is not None:
            if self._link.is_gone:
                self._short_lives = 0  # it lives, and only forgot us
            else:
                _logger.warning("server `%s` is started again: %s", self._name, self._link.why())
            await self._link.close()
            self._link = self._session = None
        if asyncio.get_running_loop().time() - self._started_s > STABLE_S:
            self._short_lives = 0
        await asyncio.sleep(BACKOFF_S[min(self._short_lives, len(BACKOFF_S) - 1)])

    # -- tools
    async def _listed(self, link: Link, session: ClientSession) -> list[ToolSpec]:
        specs: list[ToolSpec] = []
        cursor: str | None = None
        try:
            for _ in range(PAGES_MAX):
                params = types.PaginatedRequestParams(cursor=cursor) if cursor else None
                page = await link.ask(session.list_tools(params=params), LIST_TIMEOUT_MS)
                specs += [spec for tool in page.tools if (spec := self._spec(tool)) is not None]
                cursor = page.next_cursor
                if not cursor or len(specs) >= TOOLS_MAX:
                    break
        except (MCPError, ValidationError, OSError, RuntimeError) as error:
            found = _told(error) if link.is_usable else link.why()
            message = f"server `{self._name}` does not list its tools: {found}"
            if isinstance(error, MCPError) and error.code == GONE:
                link.is_gone = True
                raise _Forgotten(message, toolset=self._name) from error
            raise ToolUnreachableError(message, toolset=self._name) from error
        return specs[:TOOLS_MAX]

    def _spec(self, tool: types.Tool) -> ToolSpec | None:
        if not is_tool_name(tool.name):
            _logger.warning(
                "server `%s` offers a tool with an impossible name: %.200r", self._name, tool.name
            )
            return None
        hints = tool.annotations if self._trust_hints else None
        reads = hints is not None and hints.read_only_hint is True
        repeats = hints is not None and hints.idempotent_hint is True
        spec = ToolSpec(
            name=tool.name,
            description=tool.description or tool.title or "",
            parameters=tool.input_schema,
            output=tool.output_schema,
            recovery="pure" if reads else "idempotent" if repeats else "opaque",
            effect="read" if reads else "irreversible",
            source=f"mcp:{self._name}",
            timeout_ms=self._timeout_ms,
        )
        settings = self._tighten.get(tool.name, self._tighten.get("*"))
        return msgspec.structs.replace(spec, **settings) if settings else spec

    async def call(self, spec: ToolSpec, use: ToolUse) -> ToolOutput:
        """Use a tool once.

        Raises:
            ToolUnreachableError: nothing was sent.
            ToolFailedError: the server refused it, or asked for what an agent may not give.
            ToolDoubtfulError: it was sent and no usable answer came.
        """
        try:
            return await self._used(spec, use)
        except _Forgotten:
            # The server knew no such session, so it did nothing.
            return await self._used(spec, use)

    async def _used(self, spec: ToolSpec, use: ToolUse) -> ToolOutput:
        link, session = await self._connected()
        # `Any`: the SDK's type wants the keys that it knows.
        meta: Any = {KEY: use.key}
        params = types.CallToolRequestParams(name=spec.name, arguments=use.arguments, _meta=meta)
        request = types.CallToolRequest(params=params)
        try:
            result = await link.ask(session.send_request(request, _result), spec.timeout_ms)
        except MCPError as error:
            raise self._failure(link, spec.name, error) from error
        except TimeoutError as error:
            message = (
                f"tool `{spec.name}` of server `{self._name}` did not answer within {spec.timeout_ms} ms"
            )
            raise ToolDoubtfulError(message, tool=spec.name) from error
        except (ValidationError, OSError, RuntimeError) as error:
            found = _told(error) if link.is_usable else link.why()
            message = f"server `{self._name}` broke while it used tool `{spec.name}`: {found}"
            raise ToolDoubtfulError(message, tool=spec.name) from error
        if isinstance(result, types.InputRequiredResult):
            message = (
                f"tool `{spec.name}` asks for a decision or for a model; an agent may not answer for a human"
            )
            raise ToolFailedError(message, tool=spec.name)
        return _output(result)

    def _failure(self, link: Link, tool: str, error: MCPError) -> Exception:
        """What an error of the protocol says about the use."""
        where = f"tool `{tool}` of server `{self._name}`"
        if error.code == GONE:
            link.is_gone = True
            return _Forgotten(f"{where} was not used: {error.message}", tool=tool)
        if error.code == UNREACHABLE:
            return ToolUnreachableError(f"{where} was not used: {error.message}", tool=tool)
        if not link.is_usable or error.code in _DOUBTFUL:
            found = error.message if link.is_usable else link.why()
            return ToolDoubtfulError(f"{where} was asked and did not answer: {found}", tool=tool)
        return ToolFailedError(f"{where} refused: {error.message:.1000}", tool=tool, code=error.code)


class _Forgotten(ToolUnreachableError):
    """The server has forgotten the session; a new one is begun."""


class McpTool:
    """One tool of a server."""

    def __init__(self, toolset: McpToolset, spec: ToolSpec) -> None:
        self._toolset = toolset
        self._spec = spec

    @property
    def spec(self) -> ToolSpec:
        """What it declares."""
        return self._spec

    async def call(self, use: ToolUse) -> ToolOutput:
        """Use it once; see :meth:`McpToolset.call`."""
        return await self._toolset.call(self._spec, use)


def _output(result: types.CallToolResult) -> ToolOutput:
    """A result as a value: what is structured, else the joined text."""
    blocks = [block.model_dump(by_alias=True, mode="json", exclude_none=True) for block in result.content]
    value: Any = result.structured_content
    if value is None:
        value = "\n".join(block["text"] for block in blocks if block.get("type") == "text")
    return ToolOutput(value=value, content=tuple(blocks), is_error=bool(result.is_error))


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error!s:.400}" if str(error) else type(error).__name__
