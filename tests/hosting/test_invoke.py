"""Asking a program that keeps AgentCore's contract, or breaks it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from perdure.core.errors import ProgramFailedError
from perdure.hosting import agentcore
from perdure.hosting.agentcore import invoke
from perdure.hosting.process import Launch, Process
from perdure.hosting.programs import free_port

PROGRAM = Path(__file__).with_name("contract.py")


class Asking:
    """A program of its own process, and how it is asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shown: list[tuple[str, str]] = []
        self.url = ""
        self.process: Process | None = None

    async def start(self, pings: str = "") -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = (sys.executable, "-S", str(PROGRAM), *([pings] if pings else []))
        env = {"PATH": os.environ["PATH"], "PORT": str(port)}
        launch = Launch(command=command, cwd=self.folder, env=env, log=self.folder / "output.log")
        self.process = await Process.start(launch, show=lambda stream, line: None)

    async def __call__(self, payload: Any, *, session: str = "01hrun", timeout_s: float = 20.0) -> Any:
        data = await invoke(
            self.url,
            json.dumps(payload).encode(),
            session=session,
            show=lambda stream, line: self.shown.append((stream, line)),
            timeout_s=timeout_s,
        )
        return json.loads(data)


@pytest.fixture
async def asking(tmp_path: Path) -> AsyncIterator[Asking]:
    made = Asking(tmp_path)
    yield made
    if made.process is not None:
        await made.process.stop(0)


async def test_a_program_is_asked_once_it_listens(asking: Asking) -> None:
    await asking.start()
    seen = await asking({"prompt": "hello", "n": 1})
    assert seen["given"] == {"prompt": "hello", "n": 1}
    assert seen["type"] == "application/json"
    assert seen["session"] == "01hrun".ljust(33, "-")
    assert asking.shown == []


async def test_pings_that_say_nothing_good_are_waited_out(asking: Asking) -> None:
    await asking.start("drop,503,garbage,list,latin,Unhealthy,Healthy")
    assert (await asking({}))["given"] == {}


async def test_events_are_shown_and_the_last_is_the_answer(asking: Asking) -> None:
    await asking.start()
    assert await asking({"prompt": "events"}) == 2
    assert asking.shown == [("event", data) for data in ('"Hel"', '{"n": 1}', "plain text", "2")]


async def test_other_text_is_a_string(asking: Asking) -> None:
    await asking.start()
    assert await asking({"prompt": "text"}) == "plain \ufffd text"


async def test_background_work_is_not_cut_off(asking: Asking) -> None:
    await asking.start()
    loop = asyncio.get_running_loop()
    await asking({})  # it listens now
    before = loop.time()
    assert await asking({"prompt": "background"}) == {"status": "started"}
    assert loop.time() - before >= 0.29


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("error", "with status 500; expected 200: .*it went wrong"),
        ("moved", "with status 307; expected 200"),
        ("failing events", "ended with an error: ValueError: no luck"),
        ("broken", "`/invocations` broke off"),
        ("die", "`/invocations` broke off"),
    ],
)
async def test_a_failure_is_told(asking: Asking, prompt: str, message: str) -> None:
    await asking.start()
    with pytest.raises(ProgramFailedError, match=message):
        await asking({"prompt": prompt})


@pytest.mark.parametrize("prompt", ["large", "large event"])
async def test_an_answer_is_bounded(asking: Asking, prompt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agentcore, "PAYLOAD_BYTES_MAX", 1024 * 1024)
    await asking.start()
    with pytest.raises(ProgramFailedError, match="more than 1048576 bytes"):
        await asking({"prompt": prompt})


@pytest.mark.parametrize(
    ("prompt", "answer"), [("lines", {"a": 1}), ("separator", "a\u2028b"), ("not UTF-8", '"\ufffd"')]
)
async def test_an_answer_is_read_as_it_was_meant(asking: Asking, prompt: str, answer: Any) -> None:
    await asking.start()
    assert await asking({"prompt": prompt}) == answer


async def test_an_answer_is_not_waited_for_for_ever(asking: Asking) -> None:
    await asking.start()
    await asking({})
    with pytest.raises(ProgramFailedError, match="did not end within 0.2 s"):
        await asking({"prompt": "for ever"}, timeout_s=0.2)
