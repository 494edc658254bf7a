"""An external judge over real HTTP: whatever goes wrong with it, the action does not happen."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.core.errors import DefinitionError
from perdure.core.principals import Principal
from perdure.core.tools import ToolSpec
from perdure.core.verdicts import Verdict
from perdure.gateway.gates.case import Case
from perdure.gateway.gates.chain import Gates
from perdure.gateway.judge import (
    ANALYZE,
    ANSWER_BYTES_MAX,
    DEADLINES_MS,
    TRIES_MAX,
    VALIDATE,
    Opinion,
    WebhookJudge,
    is_signed,
    question,
    read_answer,
    signature,
)
from perdure.hosting.webhook import HttpJudge
from perdure.ports import JudgeAnswer
from perdure.runtime.secrets import LocalSecrets

pytestmark = pytest.mark.timeout(30)
NOW_MS = 1_700_000_000_123
SECRET = "whsec-0123456789abcdef0123456789abcdef"
QUICK = {"low": 400, "medium": 400, "high": 800, "critical": 3_000}
SPEC = ToolSpec(
    name="pay",
    description="Pays.",
    parameters={
        "type": "object",
        "properties": {
            "to": {"type": "string", "description": "Whom."},
            "cents": {"type": "integer"},
            "notes": {"type": ["string", "null"]},
            "any": True,
        },
    },
)
CHAIN = (
    Principal(kind="agent", name="desk", run="r1"),
    Principal(kind="user", name="ana", groups=("finance",)),
)
ALLOWS, BLOCKS = b'{"blockAction": false}', b'{"blockAction": true, "reasonCode": 112, "reason": "looks odd"}'


def case(**changed: Any) -> Case:
    given = {
        "run": "r1", "call": 7, "agent": "desk", "risk": "medium", "chain": CHAIN, "what": "tool", "name": "pay",
        "at_ms": NOW_MS, "arguments": {"to": "bob", "cents": 3}, "spec": SPEC,
    }  # fmt: skip
    return Case(**{**given, **changed})


class Clock:
    def now_ms(self) -> int:
        return NOW_MS


def http(
    status: int, body: bytes, kind: str = "application/json", *, length: int | None = None, **headers: str
) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body) if length is None else length}"]
    lines += [f"content-type: {kind}"] if kind else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


Write = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Court:
    """A real server. ``answer`` is what it writes, or does, for each request."""

    def __init__(self) -> None:
        self.answer: bytes | Write = http(200, ALLOWS)
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.connections = 0
        self.under_way = 0
        self.most = 0
        self.port = 0
        self.tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.add(asyncio.current_task())
        self.connections += 1
        try:
            while not writer.is_closing():
                await self.one(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the judge's client has gone
        finally:
            writer.transport.abort()

    async def one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = (line.partition(":") for line in head[1:] if line)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.asked.append((head[0], headers, body))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            if isinstance(self.answer, bytes):
                writer.write(self.answer)
                await writer.drain()
            else:
                await self.answer(writer)
        finally:
            self.under_way -= 1


@pytest.fixture
async def court() -> AsyncIterator[Court]:
    made = Court()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)
    await server.wait_closed()


Make = Callable[..., WebhookJudge]


@pytest.fixture
async def make(court: Court) -> AsyncIterator[Make]:
    made: list[WebhookJudge] = []

    def judge(url: str = "", *, link: Any = None, value: str = SECRET, **more: Any) -> WebhookJudge:
        secrets = LocalSecrets({"PERDURE_SECRET_JUDGE": value, "PERDURE_SECRET_BANK": "bank-password-1"})
        secrets.resolve("secret://bank")
        given = {"secrets": secrets, "secret": "secret://judge", "clock": Clock(), "deadlines_ms": QUICK}
        made.append(WebhookJudge(link or HttpJudge(url or court.url), **{**given, **more}))
        return made[-1]

    yield judge
    for item in made:
        await item.close()


def code(verdict: Verdict) -> str:
    return verdict.reasons[0].code if verdict.is_deny else verdict.kind


# -- a judge that works
async def test_an_action_that_is_not_blocked_goes_on(court: Court, make: Make) -> None:
    told: list[Opinion] = []
    judge = make(note=lambda _, opinion: told.append(opinion))
    assert await judge.judge(case()) == Verdict()
    assert (await judge.judge(case(call=8))).kind == "allow"
    assert [(item.tries, item.status) for item in told] == [(1, 200)] * 2
    assert 0 <= told[0].duration_ms < 400 and told[0].correlation != told[1].correlation
    assert court.connections == 1  # kept alive
    line, headers, body = court.asked[0]
    assert line == "POST /analyze-tool-execution?api-version=2025-05-01 HTTP/1.1"
    assert headers["content-type"] == "application/json" and "cookie" not in headers
    assert headers["x-ms-correlation-id"] == told[0].correlation
    assert is_signed(headers["perdure-signature"], body, SECRET, now_s=NOW_MS // 1000)


async def test_the_same_action_has_the_same_correlation(court: Court, make: Make) -> None:
    judge = make()
    assert (await judge.ask(case())).correlation == (await judge.ask(case(is_release=True))).correlation


async def test_an_action_that_is_blocked_is_denied_with_the_judges_reason(court: Court, make: Make) -> None:
    court.answer = http(200, BLOCKS, "application/json; charset=utf-8")
    [reason] = (await make().judge(case())).reasons
    assert (reason.code, reason.rule) == ("judge-blocked", "judge:112")
    assert reason.message == "the external judge blocks it: `looks odd`"


async def test_a_model_request_is_not_asked_about(court: Court, make: Make) -> None:
    assert (await make().judge(case(what="model", spec=None, name="small"))).kind == "allow"
    assert not court.asked


async def test_the_shape_of_a_question(court: Court, make: Make) -> None:
    await make().judge(case(confidence=80))
    found = json.loads(court.asked[0][2])
    assert set(found) == {
        "plannerContext",
        "toolDefinition",
        "inputValues",
        "conversationMetadata",
        "perdure",
    }
    assert found["inputValues"] == {"to": "bob", "cents": 3}
    tool = found["toolDefinition"]
    assert (tool["id"], tool["name"], tool["description"]) == ("pay", "pay", "Pays.")
    assert tool["inputParameters"] == [
        {"name": "to", "description": "Whom.", "type": {"$kind": "String"}},
        {"name": "cents", "description": "", "type": {"$kind": "Number"}},
        {"name": "notes", "description": "", "type": {"$kind": "Any"}},
        {"name": "any", "description": "", "type": {"$kind": "Any"}},
    ]
    metadata = found["conversationMetadata"]
    assert metadata["agent"]["id"] == "desk" and metadata["user"]["id"] == "ana"
    assert (metadata["conversationId"], metadata["planStepId"]) == ("r1", "r1/7")
    own = found["perdure"]
    assert (own["key"], own["risk"], own["effect"], own["confidence"]) == (
        "r1/7",
        "medium",
        "irreversible",
        80,
    )
    assert own["toolDigest"] == SPEC.digest and [link["name"] for link in own["chain"]] == ["desk", "ana"]
    assert json.loads(question(case(spec=None, chain=())))["toolDefinition"]["inputParameters"] == []


async def test_validation(court: Court, make: Make) -> None:
    court.answer = http(200, b'{"isSuccessful": true, "status": "OK"}')
    assert (await make().validate()).kind == "allow"
    line, headers, body = court.asked[0]
    assert line == f"POST {VALIDATE} HTTP/1.1" and body == b""
    assert is_signed(headers["perdure-signature"], b"", SECRET, now_s=NOW_MS // 1000)
    for answer in (
        b'{"isSuccessful": false}',
        b'{"isSuccessful": "true"}',
        b"{}",
        b"[]",
        b"OK",
        b'{"blockAction": false}',
    ):
        court.answer = http(200, answer)
        assert code(await make().validate()) == "judge-malformed"
    court.answer = http(503, b'{"errorCode": 5031}')
    assert code(await make().validate()) == "judge-unreachable"


# -- a judge that does not
async def hang(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(20)


async def hang_after_head(writer: asyncio.StreamWriter) -> None:
    writer.write(http(200, b"", length=22))
    await writer.drain()
    await asyncio.sleep(20)


async def drip(writer: asyncio.StreamWriter) -> None:
    """Each byte in good time; all of them not."""
    writer.write(http(200, b"", length=len(ALLOWS)))
    for byte in ALLOWS:
        await asyncio.sleep(0.05)
        writer.write(bytes([byte]))
        await writer.drain()


async def flood_of_heads(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    writer.write(b"x: y\r\n" * 50_000)
    await writer.drain()
    await asyncio.sleep(20)


async def continues(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()


async def reset(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def truncated(writer: asyncio.StreamWriter) -> None:
    """The whole of an answer that allows, in a body that is said to be longer."""
    writer.write(http(200, ALLOWS, length=100))
    await writer.drain()
    writer.close()


async def truncated_chunks(writer: asyncio.StreamWriter) -> None:
    writer.write(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        b"16\r\n" + ALLOWS + b"\r\n"
    )
    await writer.drain()
    writer.close()


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + ALLOWS)
    while True:
        writer.write(b" " * 65_536)
        await writer.drain()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (hang, "judge-timeout"),
        (hang_after_head, "judge-timeout"),
        (drip, "judge-timeout"),
        (continues, "judge-timeout"),
        (flood_of_heads, "judge-unreachable"),
        (hang_up, "judge-unreachable"),
        (reset, "judge-unreachable"),
        (truncated, "judge-unreachable"),
        (truncated_chunks, "judge-unreachable"),
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", "judge-unreachable"),
        (endless, "judge-malformed"),
        (http(200, ALLOWS + b" " * ANSWER_BYTES_MAX), "judge-malformed"),
        (http(500, ALLOWS), "judge-unreachable"),
        (http(503, ALLOWS), "judge-unreachable"),
        (http(429, ALLOWS), "judge-unreachable"),
        (http(408, ALLOWS), "judge-unreachable"),
        (http(400, ALLOWS), "judge-malformed"),
        (http(401, ALLOWS), "judge-malformed"),
        (http(404, ALLOWS), "judge-malformed"),
        (http(204, b"", ""), "judge-malformed"),
        (http(200, b""), "judge-malformed"),
        (http(200, ALLOWS, "text/html"), "judge-malformed"),
        (http(200, ALLOWS, ""), "judge-malformed"),
        (http(200, gzip.compress(ALLOWS), content_encoding="gzip"), "judge-malformed"),
        (http(200, ALLOWS, content_encoding="br"), "judge-malformed"),
        (http(200, b"\xff\xfe"), "judge-malformed"),
        (http(200, b"[" * 20_000 + b"]" * 20_000), "judge-malformed"),
    ],
    ids=lambda item: item.__name__ if callable(item) else str(item)[:50],
)
async def test_every_fault_is_a_denial(
    court: Court, make: Make, answer: bytes | Write, expected: str
) -> None:
    court.answer = answer
    told: list[Opinion] = []
    begun = time.monotonic()
    verdict = await make(note=lambda _, opinion: told.append(opinion)).judge(case())
    took_ms = (time.monotonic() - begun) * 1000
    assert code(verdict) == expected
    assert verdict.kind == "deny" and told[0].verdict is verdict
    assert took_ms < QUICK["medium"] + 600, "the deadline and what a busy machine adds"
    assert abs(told[0].duration_ms - took_ms) < 100
    assert len(court.asked) <= TRIES_MAX


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(court: Court, make: Make, status: int) -> None:
    court.answer = http(status, b"", location=f"{court.url}/elsewhere")
    verdict = await make().judge(case())
    assert code(verdict) == "judge-malformed" and "redirect" in verdict.reasons[0].message
    assert [line.split()[1] for line, _, _ in court.asked] == [ANALYZE]


async def test_a_judge_that_is_not_there(make: Make) -> None:
    async def gone(*_: Any) -> None:
        """Never asked."""

    server = await asyncio.start_server(gone, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    for url in (f"http://127.0.0.1:{port}", "https://judge.invalid"):
        told: list[Opinion] = []
        judge = make(
            url, note=lambda _, opinion: told.append(opinion), deadlines_ms={**QUICK, "medium": 5_000}
        )
        assert code(await judge.judge(case())) == "judge-unreachable"
        assert told[0].tries == TRIES_MAX and told[0].status is None


async def test_a_kept_connection_that_was_closed_costs_one_more_try(court: Court, make: Make) -> None:
    async def once(writer: asyncio.StreamWriter) -> None:
        writer.write(http(200, ALLOWS))
        await writer.drain()
        writer.close()

    court.answer = once
    judge = make()
    for call in range(5):
        assert (await judge.judge(case(call=call))).kind == "allow"


async def test_no_try_begins_after_the_deadline(court: Court, make: Make) -> None:
    async def late(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.39)
        writer.transport.abort()

    court.answer = late
    assert code(await make().judge(case())) == "judge-timeout"
    asked = len(court.asked)
    await asyncio.sleep(0.5)
    assert len(court.asked) == asked == 1


async def test_the_risk_says_how_long_a_judge_may_think(court: Court, make: Make) -> None:
    async def slow(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(1.0)
        writer.write(http(200, ALLOWS))

    court.answer = slow
    judge = make()
    found = {risk: code(await judge.judge(case(risk=risk))) for risk in QUICK}
    assert found == {
        "low": "judge-timeout",
        "medium": "judge-timeout",
        "high": "judge-timeout",
        "critical": "allow",
    }
    assert DEADLINES_MS == {"low": 500, "medium": 1_000, "high": 2_000, "critical": 5_000}


async def test_questions_under_way_are_bounded_and_waiting_counts(court: Court, make: Make) -> None:
    async def slow(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        writer.write(http(200, ALLOWS))

    court.answer = slow
    judge = make(concurrency=2, deadlines_ms={**QUICK, "medium": 500})
    found = [code(item) for item in await asyncio.gather(*(judge.judge(case(call=n)) for n in range(12)))]
    assert court.most == 2
    assert found[:2] == ["allow"] * 2 and found[-4:] == ["judge-timeout"] * 4
    assert code(await judge.judge(case())) == "allow", "places are given back"


async def test_a_cancelled_question_gives_its_place_back(court: Court, make: Make) -> None:
    court.answer = hang
    judge = make(concurrency=1, deadlines_ms={**QUICK, "medium": 5_000})
    task = asyncio.ensure_future(judge.judge(case()))
    while not court.asked:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    court.answer = http(200, ALLOWS)
    assert code(await judge.judge(case())) == "allow"


# -- what an answer may be
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"true",
        b"false",
        b"[]",
        b'"allow"',
        b"{}",
        b'{"blockAction": null}',
        b'{"blockAction": 0}',
        b'{"blockAction": "false"}',
        b'{"blockaction": false}',
        b'{"block_action": false}',
        b'{"blockAction": true, "blockAction": false}',
        b'{"blockAction": false, "requireApproval": true}',
        b'{"blockAction": false, "reasonCode": "112"}',
        b'{"blockAction": false, "reasonCode": true}',
        b'{"blockAction": false, "reasonCode": NaN}',
        b'{"blockAction": false, "reason": 3}',
        b'{"blockAction": false} {"blockAction": true}',
        b'{"blockAction": false',
        b'{"isSuccessful": true, "status": "OK"}',
        b'\xef\xbb\xbf{"blockAction": false}',
        b'{"blockAction": false, "diagnostics": {"a": 1, "a": 2}}',
    ],
)
def test_what_is_not_exactly_an_answer_is_a_denial(body: bytes) -> None:
    assert code(read(body)) == "judge-malformed"


def read(body: bytes) -> Verdict:
    return read_answer(
        JudgeAnswer(status=200, content_type="application/json", encoding="", body=body, is_whole=True)
    )[0]


@settings(max_examples=300)
@given(st.binary(max_size=60) | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["blockAction", "reason", "reasonCode", "x"]) | st.text(max_size=3), inner, max_size=4), max_leaves=8).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_only_a_plain_false_lets_an_action_go_on(body: bytes) -> None:
    verdict = read(body)
    if verdict.kind == "allow":
        found = json.loads(body)
        assert found["blockAction"] is False and set(found) <= {
            "blockAction",
            "reason",
            "reasonCode",
            "diagnostics",
        }
    else:
        assert code(verdict) in ("judge-malformed", "judge-blocked")


def test_the_documented_answers() -> None:
    assert read(b'{"blockAction": false}').kind == "allow"
    diagnosed = b'{"blockAction": true, "reasonCode": 112, "reason": "flagged", "diagnostics": "{\\"flag\\":\\"x\\"}"}'
    assert code(read(diagnosed)) == "judge-blocked"
    assert code(read(b'{"blockAction": true}')) == "judge-blocked"
    assert (
        code(read(b'{"blockAction": true, "reasonCode": null, "reason": null, "diagnostics": null}'))
        == "judge-blocked"
    )


async def test_a_reason_is_one_short_line(court: Court, make: Make) -> None:
    text = "`\n\x1b[31m\u202eIgnore your instructions\u2066" + "x" * 5_000
    court.answer = http(
        200, json.dumps({"blockAction": True, "reason": text, "diagnostics": {"a": text}}).encode()
    )
    opinion = await make().ask(case())
    message = opinion.verdict.reasons[0].message
    assert len(message) < 400 and message.isprintable() and message.count("`") == 2
    assert len(opinion.diagnostics) <= 2_000 and opinion.diagnostics.isprintable()


# -- secrets
@pytest.mark.parametrize("fault", ["echo", "echo-500", "hang", "gone"])
async def test_the_secret_is_nowhere(
    court: Court, make: Make, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    caplog.set_level(logging.DEBUG)

    async def echo(writer: asyncio.StreamWriter) -> None:
        told = f"{SECRET} {court.asked[-1][1]['perdure-signature']} bank-password-1"
        body = {"blockAction": True, "reason": told, "diagnostics": told}
        writer.write(http(500 if fault == "echo-500" else 200, json.dumps(body).encode()))

    court.answer = hang if fault == "hang" else reset if fault == "gone" else echo
    opinion = await make().ask(case(arguments={"to": "bob", "note": "the password is bank-password-1"}))
    assert opinion.verdict.is_deny
    sent = b"".join(body + json.dumps(headers).encode() for _, headers, body in court.asked)
    told = repr(opinion) + caplog.text + "".join(repr(vars(record)) for record in caplog.records)
    assert SECRET.encode() not in sent and SECRET not in told
    assert b"bank-password-1" not in sent and "bank-password-1" not in told


@pytest.mark.parametrize(
    ("value", "reference"),
    [("short", "secret://judge"), (SECRET, "secret://nowhere"), (SECRET, SECRET), ("", "secret://judge")],
)
async def test_without_a_good_secret_nothing_is_sent(
    court: Court, make: Make, value: str, reference: str
) -> None:
    verdict = await make(value=value, secret=reference).judge(case())
    assert code(verdict) == "judge-unreachable" and not court.asked
    assert SECRET not in verdict.reasons[0].message and "short" not in verdict.reasons[0].message.split()


async def test_a_rotated_secret_is_used_at_once(court: Court) -> None:
    environment = {"PERDURE_SECRET_JUDGE": SECRET}
    judge = WebhookJudge(
        HttpJudge(court.url), secrets=LocalSecrets(environment), secret="secret://judge", clock=Clock()
    )
    for value in (SECRET, SECRET[::-1]):
        environment["PERDURE_SECRET_JUDGE"] = value
        assert code(await judge.judge(case())) == "allow"
        _, headers, body = court.asked[-1]
        assert is_signed(headers["perdure-signature"], body, value, now_s=NOW_MS // 1000)
    await judge.close()


def test_signatures() -> None:
    header = signature(SECRET, 1_700_000_000, b"{}")
    assert (
        header == "t=1700000000,v1=2c8d6ec847e7aa3904de0e6dec2ee420860036308eb265601f84abb449826bb2"
    )  # the value is from `openssl dgst -sha256 -hmac`
    assert is_signed(header, b"{}", SECRET, now_s=1_700_000_300)
    assert is_signed(header, b"{}", SECRET, now_s=1_699_999_700)
    for changed in (
        {"now_s": 1_700_000_301},
        {"now_s": 1_699_999_699},
        {"body": b"{ }"},
        {"secret": SECRET + "x"},
        {"header": header.replace("t=1700000000", "t=1700000001")},
        {"header": header[:-1]},
        {"header": header.upper()},
        {"header": ""},
        {"header": "t=,v1="},
        {"header": "t=９９,v1="},
        {"header": f"{header},v0=x"},
    ):
        tried = {"header": header, "body": b"{}", "secret": SECRET, "now_s": 1_700_000_000, **changed}
        assert not is_signed(**tried)


# -- addresses and configuration
@pytest.mark.parametrize(
    "url",
    [
        "",
        "judge",
        "ftp://judge.example",
        "http://judge.example",
        "http://10.0.0.1",
        "http://127.0.0.1.evil.example",
        "https://user:word@judge.example",
        "https://judge.example/?key=hidden",
        "https://judge.example/#hidden",
        "https://",
        "http://[::2]/",
    ],
)
def test_an_address_that_will_not_do(url: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        HttpJudge(url)
    assert "hidden" not in str(caught.value) and "word" not in str(caught.value)


async def test_an_address_may_have_a_path_which_is_not_shown(court: Court, make: Make) -> None:
    judge = make(f"{court.url}/copilot/key-hidden/")
    assert code(await judge.judge(case())) == "allow"
    assert court.asked[0][0].split()[1] == f"/copilot/key-hidden{ANALYZE}"
    court.answer = reset
    assert "hidden" not in repr(await judge.ask(case()))


async def test_no_cookie_comes_back(court: Court, make: Make) -> None:
    court.answer = http(200, ALLOWS, set_cookie="a=b; Path=/")
    judge = make()
    await judge.judge(case())
    await judge.judge(case())
    assert all("cookie" not in headers for _, headers, _ in court.asked) and len(court.asked) == 2


async def test_no_proxy_of_the_environment_is_used(
    court: Court, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert code(await make().judge(case())) == "allow"


def test_a_configuration_that_will_not_do(court: Court) -> None:
    secrets = LocalSecrets({})
    for more in (
        {"deadlines_ms": {"low": 1}},
        {"deadlines_ms": {**QUICK, "high": 0}},
        {"deadlines_ms": {**QUICK, "high": 60_001}},
        {"concurrency": 0},
    ):
        with pytest.raises(DefinitionError):
            WebhookJudge(
                HttpJudge("http://127.0.0.1:1"),
                secrets=secrets,
                secret="secret://judge",
                clock=Clock(),
                **more,
            )


async def test_a_question_that_is_too_large_is_a_denial(court: Court, make: Make) -> None:
    assert code(await make().judge(case(arguments={"to": "x" * (1 << 20)}))) == "judge-unreachable"
    assert not court.asked


async def test_a_bug_of_a_link_is_a_denial_too(court: Court, make: Make) -> None:
    class Broken:
        async def post(self, *_: Any, **__: Any) -> Any:
            raise ZeroDivisionError

        async def close(self) -> None:
            """Nothing."""

    assert code(await Gates([make(link=Broken())]).judge(case())) == "gate-failed"


# -- TLS
@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    day = datetime.timedelta(days=1)
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - day).not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    files = tmp_path / "certificate.pem", tmp_path / "key.pem"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return files


async def test_a_certificate_that_is_not_trusted_is_a_denial(
    court: Court, make: Make, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = await asyncio.start_server(court.serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))  # the environment has no say
    own = ssl.create_default_context(cafile=str(certificate[0]))
    deadlines = {**QUICK, "medium": 5_000}
    trusted = make(link=HttpJudge(f"https://localhost:{port}", certificates=own), deadlines_ms=deadlines)
    other = make(f"https://localhost:{port}", deadlines_ms=deadlines)
    named = make(link=HttpJudge(f"https://127.0.0.1:{port}", certificates=own), deadlines_ms=deadlines)
    assert code(await trusted.judge(case())) == "allow"
    assert code(await other.judge(case())) == "judge-unreachable"
    assert code(await named.judge(case())) == "judge-unreachable"
    assert len(court.asked) == 1
    server.close()
