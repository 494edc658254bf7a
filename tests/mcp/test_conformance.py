"""The face and the client against the official conformance suite, compared with what is known to fail and why.

A check that fails and is not in the baseline fails the test, and so does one that is in it and passes. The scenarios
``auth/*`` for clients are not run: the client has no OAuth, it shows the headers that its settings give it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.mcp import conformance
from tests.mcp.desk import Desk, served

CLIENT_SCENARIOS = {
    "2026-07-28": (
        "tools_call",
        "request-metadata",
        "http-standard-headers",
        "http-custom-headers",
        "http-invalid-tool-headers",
        "json-schema-ref-no-deref",
        "json-schema-2020-12-preservation",
        "sep-2322-client-request-state",
    ),
    "2025-11-25": ("initialize", "tools_call", "sse-retry", "elicitation-sep1034-client-defaults"),
}
SCENARIOS = {
    "2026-07-28": 50,
    "2025-11-25": 30,
}  # how many the suite has for servers: it must not shrink unseen


@pytest.mark.parametrize("revision", conformance.VERSIONS)
async def test_the_face(revision: str, tmp_path: Path) -> None:
    async with served(Desk(), task_after_ms=200) as url:
        found = await conformance.try_server(revision, url, tmp_path)
    assert len(found) == SCENARIOS[revision]
    assert conformance.failing(found) == conformance.expected(f"server-{revision}")


@pytest.mark.parametrize("revision", conformance.VERSIONS)
async def test_the_client(revision: str, tmp_path: Path) -> None:
    found: conformance.Failures = {}
    for scenario in CLIENT_SCENARIOS[revision]:
        found |= await conformance.try_client(revision, scenario, tmp_path)
    assert set(found) == set(CLIENT_SCENARIOS[revision])
    assert conformance.failing(found) == conformance.expected(f"client-{revision}")


@pytest.mark.parametrize("file", sorted(conformance.BASELINE.glob("*.json")), ids=lambda file: file.stem)
def test_each_known_failure_has_a_reason(file: Path) -> None:
    for group in json.loads(file.read_text()):
        assert set(group) == {"reason", "fails"}
        assert len(group["reason"]) > 20
        assert all(group["fails"].values())
