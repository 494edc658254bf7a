"""The provider to test against: its faults do what they say, and what it is asked is in its log."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

ASKED = {"messages": [{"role": "user", "content": "hi"}]}
TOOLS = [{"type": "function", "function": {"name": "trip_lookup", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("provider") / "provider.log"


@pytest.fixture(scope="module")
def client(log: Path) -> Iterator[httpx2.Client]:
    process = subprocess.Popen(
        [sys.executable, "-m", "perdure.testing.provider", "--log", str(log)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    port = int(process.stdout.readline())
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=5.0) as made:
        yield made
    process.kill()
    process.communicate()


def ask(client: httpx2.Client, model: str, **more: Any) -> httpx2.Response:
    return client.post("/v1/chat/completions", json={"model": model, **ASKED, **more})


@pytest.mark.parametrize("fault", ["429", "500"])
def test_refusals_end(client: httpx2.Client, fault: str) -> None:
    codes = [ask(client, f"talk@{fault}x2").status_code for _ in range(3)]
    assert codes == [int(fault), int(fault), 200]


def test_refusals_by_hand_say_when_to_come_back(client: httpx2.Client) -> None:
    client.post("/fault", json={"fault": "429", "seconds": 0.5})
    assert ask(client, "talk").headers["retry-after"] == "0.5"
    assert ask(client, "talk").status_code == 200


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_truncated_answer_breaks_off(client: httpx2.Client, is_streamed: bool) -> None:
    client.post("/fault", json={"fault": "truncate"})
    with pytest.raises(httpx2.RemoteProtocolError):
        ask(client, "talk", stream=is_streamed)


def test_other_faults(client: httpx2.Client) -> None:
    with pytest.raises(json.JSONDecodeError):
        ask(client, "talk@malformed").json()
    assert ask(client, "talk@renamed").json()["model"] == "talk@renamed-2026"
    with pytest.raises(httpx2.ReadTimeout):
        client.post("/v1/chat/completions", json={"model": "talk@hang", **ASKED}, timeout=0.3)
    assert ask(client, "talk@slow", stream=True).text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("asked", [{"fault": "429s"}, {"fault": "500", "times": 0}, {}])
def test_an_unknown_fault_is_refused(client: httpx2.Client, asked: dict[str, Any]) -> None:
    response = client.post("/fault", json=asked)
    assert response.status_code == 400
    assert "expected one of 429, 500, hang" in response.json()["error"]["message"]


def test_a_request_without_sense_is_refused(client: httpx2.Client, log: Path) -> None:
    lines = log.read_text() if log.exists() else ""
    assert client.post("/v1/chat/completions", content=b"nope").status_code == 400
    assert (log.read_text() if log.exists() else "") == lines


def test_an_answer_is_never_said_twice_and_each_call_is_noted(client: httpx2.Client, log: Path) -> None:
    before = len(log.read_text().splitlines()) if log.exists() else 0
    headers = {"authorization": "Bearer secret", "x-stainless-retry-count": "1"}
    body = {"model": "seq", "tools": TOOLS, **ASKED}
    answers = [client.post("/v1/chat/completions", json=body, headers=headers).json() for _ in range(2)]
    calls = [answer["choices"][0]["message"]["tool_calls"][0] for answer in answers]
    assert {call["function"]["name"] for call in calls} == {"trip_lookup"}
    assert len({call["id"] for call in calls}) == len({answer["id"] for answer in answers}) == 2
    lines = log.read_text().splitlines()[before:]
    assert len(lines) == 2
    noted = json.loads(lines[-1])
    assert (noted["endpoint"], noted["model"], noted["results"], noted["retry"]) == (
        "chat/completions",
        "seq",
        0,
        "1",
    )
    assert "secret" not in log.read_text()
