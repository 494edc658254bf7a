"""OpenAPI documents: schemas that models can read, requests as declared, documents that are odd, huge or wrong."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from perdure.core.errors import DefinitionError
from perdure.core.tools import ToolUse
from perdure.runtime.secrets import LocalSecrets
from perdure.tools.openapi import OpenApiToolset
from tests.tools.conftest import Shop

DOCUMENT: dict[str, Any] = {
    "openapi": "3.0.3",
    "info": {"title": "shop", "version": "1"},
    "servers": [{"url": "{scheme}://shop.example/v1", "variables": {"scheme": {"default": "https"}}}],
    "security": [{"key": []}],
    "paths": {
        "/orders": {
            "get": {
                "operationId": "listOrders",
                "summary": "List orders.",
                "parameters": [
                    {"name": "tags", "in": "query", "schema": {"type": "array", "items": {"type": "string"}}},
                    {
                        "name": "near",
                        "in": "query",
                        "style": "deepObject",
                        "explode": True,
                        "schema": {"type": "object"},
                    },
                    {"$ref": "#/components/parameters/Trace"},
                ],
            },
            "post": {
                "operationId": "make order!",
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Order"}}},
                },
            },
        },
        "/orders/{id}": {
            "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}],
            "get": {},
            "delete": {"operationId": "listOrders"},
        },
    },
    "components": {
        "parameters": {"Trace": {"name": "x-trace", "in": "header", "schema": {"type": "string"}}},
        "schemas": {
            "Order": {
                "type": "object",
                "properties": {
                    "note": {"type": "string", "nullable": True},
                    "cents": {"type": "integer", "minimum": 0, "exclusiveMinimum": True},
                    "parts": {"type": "array", "items": {"$ref": "#/components/schemas/Order"}},
                    "owner": {"$ref": "#/components/schemas/Person"},
                },
            },
            "Person": {
                "type": "object",
                "properties": {"orders": {"type": "array", "items": {"$ref": "#/components/schemas/Order"}}},
            },
        },
        "securitySchemes": {"key": {"type": "apiKey", "in": "header", "name": "x-key"}},
    },
}


async def tools_of(toolset: OpenApiToolset) -> dict[str, Any]:
    await toolset.open()
    return {tool.spec.name: tool for tool in await toolset.tools()}


async def test_operations_become_tools_with_schemas_of_their_own() -> None:
    found = await tools_of(OpenApiToolset("shop", DOCUMENT))
    assert list(found) == ["listOrders", "make_order", "get_orders_id", "listOrders_2"]
    specs = {name: tool.spec for name, tool in found.items()}
    assert (specs["listOrders"].recovery, specs["make_order"].recovery, specs["listOrders_2"].recovery) == (
        "pure", "opaque", "idempotent",
    )  # fmt: skip
    made = specs["make_order"].parameters
    for spec in specs.values():
        Draft202012Validator.check_schema(spec.parameters)
    assert made["properties"]["body"] == {"$ref": "#/$defs/Order"}
    assert set(made["$defs"]) == {"Order", "Person"}
    assert made["$defs"]["Order"]["properties"]["note"] == {"type": ["string", "null"]}
    assert made["$defs"]["Order"]["properties"]["cents"] == {"type": "integer", "exclusiveMinimum": 0}
    validator = Draft202012Validator(made)
    assert validator.is_valid({"body": {"parts": [{"parts": [], "note": None}]}})
    assert not validator.is_valid({"body": {"parts": [{"cents": "five"}]}})


async def test_requests_as_the_document_says(shop: Shop) -> None:
    secrets = LocalSecrets({"PERDURE_SECRET_SHOP": "key-of-the-shop"})
    toolset = OpenApiToolset(
        "shop",
        DOCUMENT,
        base_url=f"{shop.url}/v1",
        security={"key": "secret://shop"},
        secrets=secrets,
        allow=[shop.place],
    )
    found = await tools_of(toolset)
    arguments = {"tags": ["a b", "c"], "near": {"x": 1}, "x-trace": "t\r\ninjected: yes"}
    await found["listOrders"].call(ToolUse(run="r", key="r/1", arguments=arguments))
    await found["make_order"].call(ToolUse(run="r", key="r/2", arguments={"body": {"cents": 5}}))
    await found["get_orders_id"].call(ToolUse(run="r", key="r/3", arguments={"id": "a/b"}))
    (_, first, headers, _), (_, second, sent, body), (_, third, _, _) = shop.asked
    assert first == "/v1/orders?tags=a+b&tags=c&near%5Bx%5D=1"
    assert headers["x-key"] == "key-of-the-shop"
    assert headers["x-trace"] == "tinjected: yes"
    assert "injected" not in headers
    assert (second, sent["idempotency-key"], json.loads(body)) == ("/v1/orders", "r/2", {"cents": 5})
    assert third == "/v1/orders/a%2Fb"
    await toolset.close()


async def test_a_chosen_part_with_tighter_declarations(tmp_path: Path) -> None:
    path = tmp_path / "shop.yaml"
    path.write_text(
        "openapi: 3.1.0\nservers: [{url: 'https://shop.example'}]\npaths:\n  /a: {get: {operationId: a}}\n  /b: {get: {operationId: b}}\n"
    )
    toolset = OpenApiToolset(
        "shop", path, include=["a*"], tighten={"a": {"recovery": "opaque", "effect": "irreversible"}}
    )
    found = await tools_of(toolset)
    assert {name: tool.spec.recovery for name, tool in found.items()} == {"a": "opaque"}


async def test_five_thousand_operations_are_no_trouble() -> None:
    paths = {
        f"/things/{n}": {
            "get": {
                "parameters": [{"name": "q", "in": "query", "schema": {"$ref": "#/components/schemas/Thing"}}]
            }
        }
        for n in range(5_000)
    }
    thing = {"type": "object", "properties": {"again": {"$ref": "#/components/schemas/Thing"}}}
    document = {
        "openapi": "3.1.0", "servers": [{"url": "https://x.example"}], "paths": paths, "components": {"schemas": {"Thing": thing}},
    }  # fmt: skip
    began = time.perf_counter()
    assert len(await tools_of(OpenApiToolset("big", document))) == 5_000
    assert time.perf_counter() - began < 20


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"openapi": "2.0"}, "OpenAPI 3"),
        ({"paths": None}, "no `paths`"),
        ({"servers": []}, "base_url"),
        ({"paths": {"/a": {"post": {"requestBody": {"$ref": "other.yaml#/x"}}}}}, "leaves the document"),
        ({"paths": {"/a": {"post": {"requestBody": {"$ref": "#/nowhere"}}}}}, "leads nowhere"),
        ({"paths": {"/a": {"$ref": "#/paths/~1a"}}}, "refers to itself"),
    ],
)
async def test_wrong_documents_say_what_is_wrong(change: dict[str, Any], told: str) -> None:
    with pytest.raises(DefinitionError, match=told):
        await tools_of(OpenApiToolset("shop", {**DOCUMENT, **change}))


async def test_text_that_is_no_document(tmp_path: Path) -> None:
    for text in ("[1, 2]", "a: [", "just words"):
        path = tmp_path / "x.json"
        path.write_text(text)
        with pytest.raises(DefinitionError):
            await tools_of(OpenApiToolset("shop", path))
    with pytest.raises(DefinitionError, match="no security scheme"):
        await tools_of(OpenApiToolset("shop", DOCUMENT, security={"nope": "x"}))
