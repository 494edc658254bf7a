"""``tools ...`` and ``models ...``: what agents may reach, looked at and tried outside of any run."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec

from perdure.cli.apps import choose, load, split, value_of
from perdure.cli.output import Out, dumps
from perdure.core.errors import PerdureError, RefusedError, ToolFailedError, UsageError
from perdure.core.models import ModelRequest, Upstream
from perdure.core.tools import ToolUse
from perdure.gateway.catalogue import Catalogue, Toolbox
from perdure.gateway.prices import cost_usd_micros
from perdure.gateway.schema import ArgumentSchema
from perdure.gateway.wire import AnswerReader
from perdure.models.upstreams import ConfiguredUpstreams
from perdure.ports import Tool
from perdure.runtime.config import world_from
from perdure.runtime.outside import World, catalogue_of
from perdure.runtime.secrets import LocalSecrets
from perdure.runtime.walls import with_built_in

OUTSIDE = "cli"  # in the place of a run: what is called here is in no journal
MICROS = 1_000_000
ERROR_STATUS = 400  # from here on an HTTP status is a failure


def _world(config: Path | None, data: Path) -> World:
    return world_from(config, os.environ, LocalSecrets.default(data))


async def _catalogue(app: str | None, toolbox: Toolbox) -> dict[str, Tool]:
    """The tools of an app's agents, or of all configured toolsets."""
    if app is None:
        return dict(await Catalogue((), toolbox.names, toolbox).tools())
    target, chosen = split(app)
    found: dict[str, Tool] = {}
    agents = load(target)
    if chosen is not None:
        choose(agents, chosen, target)
    for agent in agents:
        if chosen in (None, agent.name):
            found.update(await catalogue_of(agent, toolbox).tools())
    return found


def _toolbox(app: str | None, world: World, data: Path) -> Toolbox:
    """The toolsets of the configuration; those that are built in only count where an app names them."""
    return Toolbox(
        with_built_in(world.toolsets, world.sandboxes, data, world.secrets) if app else world.toolsets
    )


def tools(app: str | None, config: Path | None, data: Path, out: Out) -> None:
    """List tools."""
    world = _world(config, data)

    async def look() -> dict[str, Tool]:
        toolbox = _toolbox(app, world, data)
        try:
            return await _catalogue(app, toolbox)
        finally:
            await toolbox.close()

    found = asyncio.run(look())
    if out.json:
        for name, tool in found.items():
            out.emit({"name": name, "digest": tool.spec.digest, **msgspec.to_builtins(tool.spec)})
        return
    rows = [
        [
            name,
            tool.spec.source,
            tool.spec.effect,
            tool.spec.recovery,
            tool.spec.digest[:12],
            tool.spec.description.partition("\n")[0][:60],
        ]
        for name, tool in sorted(found.items())
    ]
    out.table(
        ("tool", "source", "effect", "recovery", "digest", "description"),
        rows,
        empty="no tools; name an app, or configure toolsets",
    )


def call(
    name: str, arguments: str | None, app: str | None, config: Path | None, data: Path, out: Out, *, yes: bool
) -> int:
    """Call a tool once, outside of any run; the exit code."""
    world = _world(config, data)
    given = value_of(arguments) if arguments is not None else {}
    if not isinstance(given, dict):
        raise UsageError(f"the arguments must be a JSON object, found `{arguments}`")

    async def use() -> Any:
        toolbox = _toolbox(app, world, data)
        try:
            found = (await _catalogue(app, toolbox)).get(name)
            if found is None:
                raise UsageError(f"no tool is called `{name}`; `perdure tools list` shows them")
            if found.spec.effect != "read" and not yes:
                message = f"`{name}` has effect `{found.spec.effect}`, and this is in no journal; add `--yes` if that is meant"
                raise RefusedError(message, tool=name)
            ArgumentSchema(found.spec.parameters).check(given, name)
            key = f"{OUTSIDE}/{time.time_ns()}"
            try:
                return await found.call(ToolUse(run=OUTSIDE, key=key, arguments=given))
            except PerdureError:
                raise
            except Exception as error:  # the tool's own failure: told as in a run, with its exit code
                message = f"tool `{name}` failed: {type(error).__name__}: {error}"
                raise ToolFailedError(message, tool=name) from error
        finally:
            await toolbox.close()

    output = asyncio.run(use())
    if not out.json:
        out.note(
            "called outside of any run: there is no journal, no budget and no protection against doing it twice"
        )
    if output.is_error:
        raise ToolFailedError(f"tool `{name}` failed: {output.value}", tool=name)
    if out.json:
        out.emit({"tool": name, "value": output.value})
    else:
        out.text(output.value if isinstance(output.value, str) else dumps(output.value))
    return 0


def models(config: Path | None, data: Path, out: Out) -> None:
    """List upstreams."""
    world = _world(config, data)
    for upstream in world.upstreams:
        if out.json:
            told = {**msgspec.to_builtins(upstream), "base_url": _address(upstream.base_url)}
            out.emit({**told, "key_resolves": _resolves(world, upstream)})
    if out.json:
        return
    rows = [
        [
            item.name, item.wire, _address(item.base_url) or item.path, ", ".join(item.models),
            ", ".join(item.prices) or "from the table", f"{item.key} ({_resolves(world, item)})" if item.key else "none",
        ]
        for item in world.upstreams
    ]  # fmt: skip
    out.table(
        ("upstream", "wire", "where", "models", "prices", "key"),
        rows,
        empty="no upstreams; add [[upstreams]] to perdure.toml, or set OPENAI_API_KEY",
    )


def _address(url: str) -> str:
    """An address without the name and password that somebody may have written into it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _resolves(world: World, upstream: Upstream) -> str:
    if not upstream.key or world.secrets is None:
        return "none"
    try:
        world.secrets.resolve(upstream.key)
    except PerdureError as error:
        return error.code
    return "found"


def try_model(model: str, config: Path | None, data: Path, out: Out) -> int:
    """Ask a model for one word; exit code 1 if it did not answer."""
    world = _world(config, data)

    async def ask() -> dict[str, Any]:
        upstreams = ConfiguredUpstreams(world.upstreams, world.secrets or LocalSecrets.default(data))
        endpoint = "chat/completions" if upstreams.offers(model, "chat/completions") else "messages"
        body = {"model": model, "max_tokens": 16, "messages": [{"role": "user", "content": "Say: ready"}]}
        asked = ModelRequest(
            endpoint=endpoint, model=model, body=msgspec.json.encode(body), key=f"{OUTSIDE}/{time.time_ns()}"
        )
        began = time.perf_counter()
        try:
            async with upstreams.open(asked) as answer:
                reader = AnswerReader(endpoint, answer.content_type)
                first_ms = (time.perf_counter() - began) * 1000
                async for chunk in answer.chunks:
                    reader.feed(chunk)
        finally:
            await upstreams.close()
        facts = reader.end()
        cost = None
        if facts.usage is not None:
            price = upstreams.price(model)
            cost = cost_usd_micros(
                model if price else answer.model, facts.usage, price, round(time.time() * 1000)
            )
        return {
            "model": model,
            "upstream": answer.upstream,
            "endpoint": endpoint,
            "status": answer.status,
            "first_byte_ms": round(first_ms, 1),
            "total_ms": round((time.perf_counter() - began) * 1000, 1),
            "tokens": None if facts.usage is None else msgspec.to_builtins(facts.usage),
            "usd": "unknown" if cost is None else f"{cost / MICROS:.6f}",
            "complete": facts.is_complete,
            "problem": facts.problem,
        }

    found = asyncio.run(ask())
    if out.json:
        out.emit(found)
    else:
        out.facts([(name, str(value)) for name, value in found.items() if value not in ("", None)])
    return 0 if found["status"] < ERROR_STATUS and found["complete"] else 1
