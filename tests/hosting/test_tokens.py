"""A run token over the real endpoints: worth something for one attempt under one lease, and nowhere else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure import Runtime
from perdure.core.principals import Principal
from perdure.core.records import Status
from perdure.governance.identity import issue, key_pair, root
from tests.hosting.desk import Provider, program, providing

pytestmark = pytest.mark.timeout(60)
WAIT_S = 10

# What a token is tried at: every endpoint there is, and what it may be shown as.
TRIES = """
def tried(key, base=None):
    base = base or MODEL_URL
    body = json.dumps({"model": "small", "messages": [{"role": "user", "content": "x"}], "max_tokens": 9, "input": "x"}).encode()
    rpc_body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}).encode()
    found = []
    for path in ("/chat/completions", "/responses", "/embeddings", "/messages", "/messages/count_tokens", "/models"):
        data = None if path == "/models" else body
        found.append(send(base + path, data, authorization="Bearer " + key)[:2])
        found.append(send(base + path, data, authorization=None, x_api_key=key)[:2])
    found.append(send(base.replace("/v1", "/mcp"), rpc_body, authorization="Bearer " + key)[:2])
    return [[status, headers.get("x-perdure-code")] for status, headers in found]

def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.01)
"""


@pytest.fixture
def provider() -> Iterator[Provider]:
    with providing() as made:
        yield made


async def appears(path: Path) -> str:
    async with asyncio.timeout(WAIT_S):
        while not path.exists() or not path.read_text().endswith("\n"):
            await asyncio.sleep(0.01)
    return path.read_text().strip()


def refused(found: list[list[Any]]) -> bool:
    """Refused everywhere (the face of MCP says the code in its body)."""
    return len(found) == 13 and all(status == 401 for status, _ in found)


def codes(found: list[list[Any]]) -> set[str]:
    return {code for _, code in found if code}


async def test_a_token_ends_with_its_attempt(tmp_path: Path, provider: Provider) -> None:
    """The second attempt of a run tries what the first one had."""
    text = f"""{TRIES}
if os.environ["PERDURE_ATTEMPT"] == "1":
    open({str(tmp_path / "key")!r}, "w").write(KEY)
    sys.exit(3)
give([tried(open({str(tmp_path / "key")!r}).read()), ask("x")[0]])
"""
    agent = program(tmp_path, text, restarts_max=2)
    async with Runtime.open(tmp_path / "data", agents=[agent], upstreams=[provider.upstream()]) as runtime:
        handle = await runtime.start("p", "hello")
        found, status = await handle.result(WAIT_S)
        assert len(runtime.actions.all_of(handle.id)) == 1
    assert refused(found) and codes(found) == {"token-refused"}
    assert status == 200 and len(provider.asked) == 1


async def test_a_token_is_worth_nothing_at_another_runtime(tmp_path: Path, provider: Provider) -> None:
    """Both are under way at the same time, and both take their own."""
    places, done = tmp_path / "places", tmp_path / "done"
    first = program(
        tmp_path,
        f"{TRIES}\nopen({str(places)!r}, 'w').write(KEY + ' ' + MODEL_URL + '\\n')\nwait_for({str(done)!r})\ngive(ask('x')[0])",
        name="first",
        sandbox="process",  # behind a wall neither could reach the other runtime at all
    )
    second = program(
        tmp_path,
        f"{TRIES}\nkey, url = json.loads(input())\ngive([tried(key), tried(KEY, url), ask('x')[0]])",
        name="second",
        sandbox="process",
    )
    upstreams = [provider.upstream()]
    async with (
        Runtime.open(tmp_path / "a", agents=[first], upstreams=upstreams) as one,
        Runtime.open(tmp_path / "b", agents=[second], upstreams=upstreams) as two,
    ):
        waiting = await one.start("first")
        key, url = (await appears(places)).split()
        there, here, status = await (await two.start("second", [key, url])).result(WAIT_S)
        done.write_text("\n")
        assert await waiting.result(WAIT_S) == 200 == status
    assert refused(there) and refused(here) and codes(there) == {"token-refused"}
    assert len(provider.asked) == 2


async def test_a_token_counts_in_a_header_only_and_goes_no_further(
    tmp_path: Path, provider: Provider
) -> None:
    text = """
found = []
body = json.dumps({"model": "small", "messages": [{"role": "user", "content": "x"}]}).encode()
for path in ("?key=" + KEY, "?api_key=" + KEY, "?access_token=" + KEY):
    found.append(send(MODEL_URL + "/chat/completions" + path, body, authorization=None)[0])
for more in ({"cookie": "token=" + KEY}, {"authorization": "Basic " + KEY}, {"x_goog_api_key": KEY}, {"api_key": KEY}):
    found.append(send(MODEL_URL + "/chat/completions", body, **{"authorization": None, **more})[0])
for key in (KEY + "0", KEY[:-1], KEY.upper(), KEY[8:]):
    found.append(send(MODEL_URL + "/chat/completions", body, authorization="Bearer " + key)[0])
found.append(send(MODEL_URL + "/chat/completions", body, x_perdure_run="another")[0])
give([found, KEY, ask("x")[0]])
"""
    agent = program(tmp_path, text)
    async with Runtime.open(tmp_path / "data", agents=[agent], upstreams=[provider.upstream()]) as runtime:
        found, key, status = await (await runtime.start("p")).result(WAIT_S)
    assert found == [401] * 12 and status == 200 and len(provider.asked) == 1
    assert key not in json.dumps(provider.headers) and key not in json.dumps(provider.asked)


async def test_a_signed_token_is_no_run_token_here(tmp_path: Path, provider: Provider) -> None:
    """Whoever has the signing key still has no attempt."""
    text = f"{TRIES}\nkey = input()\nfound = tried(key)\ngive([found, ask('x')[0]])"
    async with Runtime.open(
        tmp_path / "data", agents=[program(tmp_path, text)], upstreams=[provider.upstream()]
    ) as runtime:
        chain = (Principal(kind="agent", name="p", run="r"),)
        now_ms = runtime.now_ms()
        given = issue(
            root(chain, ["*"], now_ms=now_ms), key_pair(b"1" * 32), trust_domain="a.b", audience="a", fence=1,
            attempt=1, token_id="j", now_ms=now_ms,
        )  # fmt: skip
        found, status = await (await runtime.start("p", given)).result(WAIT_S)
    assert refused(found) and status == 200


async def test_a_token_ends_when_the_fence_moves(tmp_path: Path, provider: Provider) -> None:
    """The worker has claimed the run anew, and the program of the claim before is still there."""
    ready, moved = tmp_path / "ready", tmp_path / "moved"
    text = f"""{TRIES}
open({str(ready)!r}, "w").write("\\n")
wait_for({str(moved)!r})
found = tried(KEY)
open({str(ready)!r} + "2", "w").write("\\n")
wait_for({str(moved)!r} + "2")
give([found, ask("x")[0]])
"""
    agent = program(tmp_path, text)
    async with Runtime.open(tmp_path / "data", agents=[agent], upstreams=[provider.upstream()]) as runtime:
        handle = await runtime.start("p", "hello")
        await appears(ready)
        host = runtime.engine.hosts[handle.id]
        host.fence += 1
        moved.write_text("\n")
        await appears(tmp_path / "ready2")
        assert not provider.asked
        host.fence -= 1
        (tmp_path / "moved2").write_text("\n")
        found, status = await handle.result(WAIT_S)
    assert refused(found) and codes(found) == {"token-stale"}
    assert status == 200 and len(provider.asked) == 1


async def test_a_program_whose_run_was_taken_over_gets_nothing_more(
    tmp_path: Path, provider: Provider
) -> None:
    """Another worker takes the lease in the store: the next call is not made, and what comes after it is refused."""
    ready, moved, log = tmp_path / "ready", tmp_path / "moved", tmp_path / "log"
    text = f"""{TRIES}
if os.environ["PERDURE_ATTEMPT"] == "1":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it stays for as long as it can
    open({str(ready)!r}, "w").write("\\n")
    wait_for({str(moved)!r})
    for number in range(200):
        try:
            status, headers, _ = ask("x" + str(number), timeout=2)
        except OSError:
            break
        with open({str(log)!r}, "a") as file:
            file.write(str(status) + " " + str(headers.get("x-perdure-code")) + "\\n")
        time.sleep(0.005)
give(1)
"""
    agent = program(tmp_path, text)
    async with Runtime.open(tmp_path / "data", agents=[agent], upstreams=[provider.upstream()]) as runtime:
        handle = await runtime.start("p", "hello")
        await appears(ready)
        taken = await runtime.store.transact(lambda tx: tx.seize(handle.id, "other", (Status.RUNNING,)))
        assert taken is not None
        moved.write_text("\n")
        async with asyncio.timeout(WAIT_S):
            while not log.exists() or log.read_text().count("\n") < 3:
                await asyncio.sleep(0.01)
    lines = log.read_text().splitlines()
    assert not provider.asked
    assert not any(line.startswith("200") for line in lines)
    assert lines[-1].startswith("401"), lines
