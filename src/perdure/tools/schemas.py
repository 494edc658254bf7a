"""From an OpenAPI document to the schemas of tools: parameters and body as one object, references kept within it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from perdure.core.errors import DefinitionError

METHODS = ("get", "put", "post", "delete", "patch", "head", "options")
NAME_MAX = 64  # the shortest limit among the providers of models
REFERENCES_MAX = 500  # schemas that one tool may pull in: more would not fit into a context
DESCRIPTION_MAX = 2_000
KINDS = ("application/json", "application/x-www-form-urlencoded")


@dataclass(frozen=True, slots=True)
class Place:
    """Where an argument goes: into the path, the query, a header or a cookie, and in which style."""

    argument: str
    name: str
    where: str
    style: str = "form"
    explode: bool = True

    def pairs(self, value: Any) -> list[tuple[str, str]]:
        """A value in the query string."""
        if isinstance(value, dict):
            if self.style == "deepObject":
                return [(f"{self.name}[{key}]", _text(item)) for key, item in value.items()]
            if self.explode:
                return [(key, _text(item)) for key, item in value.items()]
            return [(self.name, ",".join(f"{key},{_text(item)}" for key, item in value.items()))]
        if isinstance(value, list):
            if self.explode and self.style == "form":
                return [(self.name, _text(item)) for item in value]
            mark = {"spaceDelimited": " ", "pipeDelimited": "|"}.get(self.style, ",")
            return [(self.name, mark.join(_text(item) for item in value))]
        return [(self.name, _text(value))]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation, as a tool has it."""

    name: str
    method: str
    path: str
    description: str
    parameters: dict[str, Any]
    places: tuple[Place, ...]
    body_kind: str
    security: tuple[Mapping[str, Any], ...]


class Document:
    """An OpenAPI document.

    Raises:
        DefinitionError: it is not of version 3.
    """

    def __init__(self, data: Mapping[str, Any], name: str) -> None:
        self.data = data
        self.name = name
        version = str(data.get("openapi", ""))
        if not version.startswith("3."):
            found = version or data.get("swagger") or "none"
            raise DefinitionError(
                f"toolset `{name}`: expected a document of OpenAPI 3, found version {found}"
            )
        if not isinstance(data.get("paths"), dict):
            raise DefinitionError(f"toolset `{name}`: the document has no `paths`")
        self.is_old = version.startswith("3.0")

    def server(self) -> str:
        """The first server, with the defaults of its variables.

        Raises:
            DefinitionError: there is none that could be called.
        """
        servers = self.data.get("servers") or [{}]
        first = servers[0] if isinstance(servers[0], dict) else {}
        url = str(first.get("url", ""))
        for variable, told in (first.get("variables") or {}).items():
            url = url.replace(f"{{{variable}}}", str(told.get("default", "")))
        if not url.startswith(("http://", "https://")):
            raise DefinitionError(f"toolset `{self.name}`: the document names no server; give `base_url`")
        return url

    def at(self, reference: str) -> Any:
        """What a reference within the document means.

        Raises:
            DefinitionError: it leaves the document, or leads nowhere.
        """
        if not reference.startswith("#/"):
            raise DefinitionError(
                f"toolset `{self.name}`: `{reference:.200}` leaves the document, which is not followed"
            )
        found: Any = self.data
        for part in reference[2:].split("/"):
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and key in found:
                found = found[key]
            elif isinstance(found, list) and key.isdigit() and int(key) < len(found):
                found = found[int(key)]
            else:
                raise DefinitionError(f"toolset `{self.name}`: `{reference:.200}` leads nowhere")
        return found

    def meant(self, item: Any) -> dict[str, Any]:
        """An object, or what it refers to."""
        seen: set[str] = set()
        while isinstance(item, dict) and "$ref" in item:
            if item["$ref"] in seen:
                raise DefinitionError(
                    f"toolset `{self.name}`: `{item['$ref']}` refers to itself and nothing else"
                )
            seen.add(item["$ref"])
            item = self.at(item["$ref"])
        return item if isinstance(item, dict) else {}

    def credentials(self, operation: Operation, given: Mapping[str, str]) -> list[tuple[str, str, str]]:
        """Where credentials go: (header, query or cookie; name; value), for the first way in that all values are given for.

        Raises:
            DefinitionError: a value was given for a scheme that the document does not have.
        """
        schemes = (self.data.get("components") or {}).get("securitySchemes") or {}
        for name in given:
            if name not in schemes:
                known = ", ".join(f"`{item}`" for item in schemes) or "none"
                raise DefinitionError(
                    f"toolset `{self.name}` has no security scheme `{name}`; it has {known}"
                )
        for way in operation.security:
            if way and all(name in given for name in way):
                return [_placed(self.meant(schemes.get(name)), given[name]) for name in way]
        return []


def _placed(scheme: Mapping[str, Any], value: str) -> tuple[str, str, str]:
    if scheme.get("type") == "apiKey":
        return str(scheme.get("in", "header")), str(scheme.get("name", "")), value
    kind = "Basic" if scheme.get("scheme") == "basic" else "Bearer"
    return "header", "authorization", f"{kind} {value}"


def operations(document: Document) -> Iterator[Operation]:
    """Every operation of a document, each with a name of its own."""
    taken: set[str] = set()
    for path, item in document.data["paths"].items():
        found = document.meant(item)
        for method in METHODS:
            if isinstance(told := found.get(method), dict):
                yield _operation(document, str(path), method, found, told, taken)


def _operation(
    document: Document,
    path: str,
    method: str,
    item: Mapping[str, Any],
    told: Mapping[str, Any],
    taken: set[str],
) -> Operation:
    name = _free_name(str(told.get("operationId") or f"{method}_{path}"), taken)
    properties: dict[str, Any] = {}
    required: list[str] = []
    places: list[Place] = []
    known: dict[tuple[str, str], dict[str, Any]] = {}
    for parameter in [*(item.get("parameters") or []), *(told.get("parameters") or [])]:
        meant = document.meant(parameter)
        known[str(meant.get("name")), str(meant.get("in"))] = meant
    for (key, where), parameter in known.items():
        argument = key if key not in properties and key != "body" else f"{key}_{where}"
        schema = dict(_schema_of(parameter))
        if text := parameter.get("description"):
            schema.setdefault("description", str(text)[:DESCRIPTION_MAX])
        properties[argument] = schema
        if parameter.get("required") or where == "path":
            required.append(argument)
        style = str(parameter.get("style", "form" if where in ("query", "cookie") else "simple"))
        places.append(Place(argument, key, where, style, bool(parameter.get("explode", style == "form"))))
    body = document.meant(told.get("requestBody"))
    kind = next(
        (item for item in (*KINDS, *(body.get("content") or {})) if item in (body.get("content") or {})), ""
    )
    if kind:
        properties["body"] = dict(document.meant(body["content"][kind]).get("schema") or {})
        if body.get("required"):
            required.append("body")
    parameters: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        parameters["required"] = required
    text = "\n".join(str(told[part]) for part in ("summary", "description") if told.get(part))
    security = told.get("security", document.data.get("security")) or []
    return Operation(
        name=name,
        method=method.upper(),
        path=path,
        description=text[:DESCRIPTION_MAX] or f"{method.upper()} {path}",
        parameters=_closed(document, parameters),
        places=tuple(places),
        body_kind=kind,
        security=tuple(way for way in security if isinstance(way, dict)),
    )


def _schema_of(parameter: Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(parameter.get("schema"), dict):
        found: Mapping[str, Any] = parameter["schema"]
        return found
    for told in (parameter.get("content") or {}).values():
        return told.get("schema") or {}
    return {}


def _free_name(text: str, taken: set[str]) -> str:
    """A tool's name that models take: letters, digits, ``_`` and ``-``, each once."""
    name = re.sub(r"[^A-Za-z0-9-]+", "_", text).strip("_")[:NAME_MAX] or "operation"
    free, count = name, 2
    while free in taken:
        free = f"{name[: NAME_MAX - 6]}_{count}"
        count += 1
    taken.add(free)
    return free


def _closed(document: Document, schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that needs nothing outside of itself: what it refers to comes along as ``$defs``, cycles and all.

    Raises:
        DefinitionError: it refers to too much, or out of the document.
    """
    names: dict[str, str] = {}
    definitions: dict[str, Any] = {}
    waiting: list[str] = []

    def moved(item: Any) -> Any:
        if isinstance(item, list):
            return [moved(part) for part in item]
        if not isinstance(item, dict):
            return item
        if isinstance(reference := item.get("$ref"), str):
            if reference not in names:
                if len(names) >= REFERENCES_MAX:
                    raise DefinitionError(
                        f"toolset `{document.name}`: one operation refers to over {REFERENCES_MAX} schemas"
                    )
                names[reference] = _free_name(reference.rpartition("/")[2], set(names.values()))
                waiting.append(reference)
            return {"$ref": f"#/$defs/{names[reference]}"}
        kept = {
            key: moved(part)
            for key, part in item.items()
            if key not in ("discriminator", "xml", "externalDocs")
        }
        return _as_new(kept) if document.is_old else kept

    made: dict[str, Any] = moved(schema)
    while waiting:
        reference = waiting.pop()
        definitions[names[reference]] = moved(document.at(reference))
    if definitions:
        made["$defs"] = definitions
    return made


def _as_new(schema: dict[str, Any]) -> dict[str, Any]:
    """What OpenAPI 3.0 says in words of its own, in those of JSON Schema."""
    if schema.pop("nullable", False) is True and isinstance(schema.get("type"), str):
        schema["type"] = [schema["type"], "null"]
        if isinstance(schema.get("enum"), list) and None not in schema["enum"]:
            schema["enum"] = [*schema["enum"], None]
    for mark, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(schema.get(mark), bool) and schema.pop(mark) and limit in schema:
            schema[mark] = schema.pop(limit)
    return schema


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
