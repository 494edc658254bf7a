"""Settings and configuration: the only place that reads the environment and ``perdure.toml``."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from perdure.core.errors import DefinitionError, InputInvalidError
from perdure.core.limits import Settings
from perdure.core.models import Upstream
from perdure.core.principals import Risk
from perdure.core.workers import WorkerRules
from perdure.ports import Secrets, Toolset
from perdure.runtime.outside import World
from perdure.runtime.resourcing import ResourceRules
from perdure.runtime.rulebook import DriftRule, JudgeRule, Rules
from perdure.runtime.walls import SandboxRules
from perdure.runtime.witnessing import WitnessRule

SETTING_PREFIX = "PERDURE_SETTING_"
CONFIG = "perdure.toml"
OPENAI_URL = "https://api.openai.com/v1"
TABLES: Mapping[str, Any] = {"drift": DriftRule, "judge": JudgeRule}  # in `[governance]`
ANTHROPIC_URL = "https://api.anthropic.com"


def settings_from(environment: Mapping[str, str]) -> Settings:
    """Settings from variables such as ``PERDURE_SETTING_CONCURRENCY``.

    Raises:
        DefinitionError: an unknown name or a value that does not fit.
    """
    found = {
        name.removeprefix(SETTING_PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(SETTING_PREFIX)
    }
    return Settings.of(found)


def world_from(path: Path | None, environment: Mapping[str, str], secrets: Secrets) -> World:
    """What may be reached, from a configuration file; without one, from the usual variables of the providers.

    Args:
        path: the file; by default ``perdure.toml`` in the current folder, if it is there.
        environment: ``OPENAI_API_KEY`` and ``ANTHROPIC_API_KEY`` make an upstream each where the file names none.
        secrets: resolves the references in the file, at the moment of use.

    Raises:
        DefinitionError: the file is not there, is no TOML, or says something that cannot work.
    """
    data: dict[str, Any] = {}
    chosen = path or (Path(CONFIG) if Path(CONFIG).is_file() else None)
    if chosen is not None:
        data = _read(chosen)
    known = {"upstreams", "toolsets", "governance", "sandbox", "workers", "resources"}
    if unknown := set(data) - known:
        raise DefinitionError(
            f"`{chosen}` has `{min(unknown)}`; expected `[[upstreams]]`, `[toolsets.NAME]`, `[governance]`, `[sandbox]`, `[workers]` "
            "and `[resources]`"
        )
    try:
        upstreams = msgspec.convert(data.get("upstreams", []), tuple[Upstream, ...])
    except msgspec.ValidationError as error:
        raise DefinitionError(f"the upstreams of `{chosen}` cannot be read: {error}") from error
    toolsets = [toolset_from(name, table, secrets) for name, table in data.get("toolsets", {}).items()]
    try:
        sandboxes = msgspec.convert(data.get("sandbox", {}), SandboxRules)
    except (msgspec.ValidationError, InputInvalidError) as error:
        raise DefinitionError(f"`[sandbox]` of `{chosen}` cannot be read: {error}") from error
    try:
        resources = msgspec.convert(data.get("resources", {}), ResourceRules)
    except (msgspec.ValidationError, DefinitionError) as error:
        raise DefinitionError(f"`[resources]` of `{chosen}` cannot be read: {error}") from error
    return World(
        sandboxes=sandboxes,
        resources=resources,
        upstreams=upstreams or _usual(environment),
        toolsets=toolsets,
        secrets=secrets,
        rules=_rules(data.get("governance", {}), chosen),
        workers=_workers(data.get("workers", {}), chosen),
    )


def _workers(table: Any, path: Path | None) -> WorkerRules:
    """Where agent code runs."""
    try:
        return msgspec.convert(table, WorkerRules)
    except msgspec.ValidationError as error:
        raise DefinitionError(f"`[workers]` of `{path}` cannot be read: {error}") from error


def _rules(table: Mapping[str, Any], path: Path | None) -> Rules:
    """What actions are judged by; paths are relative to the file."""
    folder = Path() if path is None else path.parent
    options = dict(table)
    if unknown := set(options) - {"policies", "flow", "conduct", "confidence_min", "witness", *TABLES}:
        raise DefinitionError(
            f"`[governance]` of `{path}` has `{min(unknown)}`; expected `policies`, `flow`, "
            "`conduct`, `confidence_min`, `drift`, `judge` and `witness`"
        )
    for name in ("policies", "flow", "conduct"):
        if name in options:
            if not isinstance(options[name], str):
                raise DefinitionError(f"`{name}` of `{path}` is a path")
            options[name] = folder / options[name]
    for name, kind in TABLES.items():
        if name in options:
            try:
                options[name] = msgspec.convert(options[name], kind)
            except msgspec.ValidationError as error:
                raise DefinitionError(f"`[governance.{name}]` of `{path}` cannot be read: {error}") from error
    try:
        options["witnesses"] = msgspec.convert(options.pop("witness", []), tuple[WitnessRule, ...])
    except msgspec.ValidationError as error:
        raise DefinitionError(f"`[[governance.witness]]` of `{path}` cannot be read: {error}") from error
    if "confidence_min" in options:
        try:
            options["confidence_min"] = msgspec.convert(options["confidence_min"], int | dict[Risk, int])
        except msgspec.ValidationError as error:
            raise DefinitionError(f"`confidence_min` of `{path}` cannot be read: {error}") from error
    return Rules(**options)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DefinitionError(f"there is no configuration file `{path}`") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DefinitionError(f"`{path}` is no TOML file: {error}") from error
    except OSError as error:
        raise DefinitionError(f"`{path}` cannot be read: {error.strerror}") from error


def _usual(environment: Mapping[str, str]) -> tuple[Upstream, ...]:
    """The providers whose keys are in the environment, as their official clients find them."""
    found: list[Upstream] = []
    if environment.get("OPENAI_API_KEY"):
        url = environment.get("OPENAI_BASE_URL") or OPENAI_URL
        found.append(Upstream(name="openai", base_url=url, key="secret://openai-api-key"))
    if environment.get("ANTHROPIC_API_KEY"):
        url = (environment.get("ANTHROPIC_BASE_URL") or ANTHROPIC_URL).rstrip("/") + "/v1"
        found.append(
            Upstream(name="anthropic", base_url=url, wire="anthropic", key="secret://anthropic-api-key")
        )
    return tuple(found)


def toolset_from(name: str, table: Mapping[str, Any], secrets: Secrets) -> Toolset:
    """A toolset from its table: ``kind`` (``mcp``, ``openapi``, ``sql``) and the arguments of that kind.

    Raises:
        DefinitionError: the kind is unknown or an argument does not fit.
    """
    options = dict(table)
    kind = options.pop("kind", "mcp")
    made: Toolset
    try:
        match kind:
            case "mcp":
                from perdure.tools.mcp_client import McpToolset

                made = McpToolset(name, ours=os.environ, resolve=_resolver(secrets), **options)
            case "openapi":
                from perdure.tools.openapi import OpenApiToolset

                made = OpenApiToolset(name, secrets=secrets, **options)
            case "sql":
                from perdure.tools.sql import SqlToolset

                made = SqlToolset(name, secrets=secrets, **options)
            case _:
                raise DefinitionError(
                    f"toolset `{name}` has kind `{kind}`, expected `mcp`, `openapi` or `sql`"
                )
    except TypeError as error:
        raise DefinitionError(f"toolset `{name}` cannot be made: {error}") from error
    return made


def _resolver(secrets: Secrets) -> Callable[[str], str]:
    """Values of headers and variables; those that are references become the secret."""
    return lambda value: secrets.resolve(value) if value.startswith("secret://") else value
