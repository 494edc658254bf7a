"""An external judge in front of real runs: asked, signed, and when it is not there the answer is no."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from perdure import Run, Runtime, agent, tool
from perdure.core.errors import ActionDeniedError, DefinitionError
from perdure.gateway.judge import is_signed
from perdure.runtime.config import world_from
from perdure.runtime.rulebook import JudgeRule, Rules
from perdure.runtime.secrets import LocalSecrets

SECRET = "a secret of thirty-two bytes or more"
sent: list[str] = []


@tool
async def pay(to: str) -> str:
    """Pay."""
    sent.append(to)
    return f"paid {to}"


@agent("clerk", tools=[pay], risk="low")
async def clerk(run: Run, to: str) -> str:
    return str(await run.act(pay, to=to))


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A real server that blocks payments to Mallory, and what it was asked."""
    asked: list[Any] = []

    class Judge(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            now_s = int(self.headers["perdure-signature"].partition(",")[0][2:])
            assert is_signed(self.headers["perdure-signature"], body, SECRET, now_s=now_s)
            found = json.loads(body)
            asked.append(found)
            answer = json.dumps(
                {"blockAction": found["inputValues"]["to"] == "mallory", "reason": "known fraud"}
            ).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None: ...

    monkeypatch.setenv("PERDURE_SECRET_JUDGE", SECRET)
    sent.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.asked = asked  # type: ignore[attr-defined]
    yield server
    server.shutdown()
    server.server_close()


async def test_it_is_asked_and_can_block(tmp_path: Path, judge: Any) -> None:
    rules = Rules(judge=JudgeRule(url=f"http://127.0.0.1:{judge.server_port}", secret="secret://judge"))
    async with Runtime.open(tmp_path, agents=[clerk], rules=rules) as runtime:
        assert await (await runtime.start("clerk", "acme")).result() == "paid acme"
        with pytest.raises(ActionDeniedError, match="known fraud"):
            await (await runtime.start("clerk", "mallory")).result()
        assert sent == ["acme"]
        assert [item["inputValues"] for item in judge.asked] == [{"to": "acme"}, {"to": "mallory"}]
        records = [leaf.record for leaf in runtime.store.read(lambda tx: tx.audit_records())]
        assert any("judge-blocked" in code for record in records for code in record.codes)


async def test_when_it_is_not_there_nothing_is_done(tmp_path: Path, judge: Any) -> None:
    rules = Rules(judge=JudgeRule(url=f"http://127.0.0.1:{judge.server_port}", secret="secret://judge"))
    judge.shutdown()
    judge.server_close()
    async with Runtime.open(tmp_path, agents=[clerk], rules=rules) as runtime:
        with pytest.raises(ActionDeniedError, match="judge-unreachable|judge-timeout"):
            await (await runtime.start("clerk", "acme")).result()
        assert sent == []


def test_the_configuration_names_it(tmp_path: Path) -> None:
    path = tmp_path / "perdure.toml"
    path.write_text(
        '[governance.judge]\nurl = "https://j.example"\nsecret = "secret://j"\ndeadlines_ms = { low = 100 }\n'
    )
    rules = world_from(path, {}, LocalSecrets.default(tmp_path)).rules
    assert rules.judge == JudgeRule(url="https://j.example", secret="secret://j", deadlines_ms={"low": 100})
    path.write_text('[governance.judge]\nurl = "https://j.example"\n')
    with pytest.raises(DefinitionError, match="secret"):
        world_from(path, {}, LocalSecrets.default(tmp_path))
