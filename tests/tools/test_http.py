"""HTTP tools: which addresses are refused, what is sent, what comes back, what is doubtful."""

from __future__ import annotations

import asyncio
import json

import pytest

from perdure.core.errors import AddressRefusedError, ToolDoubtfulError, ToolFailedError, ToolUnreachableError
from perdure.core.tools import ToolUse
from perdure.runtime.secrets import LocalSecrets
from perdure.tools.addresses import check_url
from perdure.tools.http import Call, HttpCaller, HttpTool, path_part
from tests.tools.conftest import Answer, Shop

REFUSED = [
    "http://127.0.0.1/", "http://localhost/", "http://localhost./", "http://[::1]/", "http://0.0.0.0/", "http://0/",
    "http://2130706433/", "http://0x7f.1/", "http://0177.0.0.1/", "http://127.1/", "http://10.0.0.1/", "http://172.16.0.1/",
    "http://192.168.1.1/", "http://169.254.169.254/latest/meta-data/", "http://100.64.0.1/", "http://224.0.0.1/",
    "http://[fe80::1]/", "http://[fe80::1%25eth0]/", "http://[fc00::1]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/",
    "http://[64:ff9b::7f00:1]/", "http://[2002:7f00:1::]/", "http://255.255.255.255/", "http://user@example.org/",
    "http://example.org@127.0.0.1/", "http://127.0.0.1\\@example.org/", "file:///etc/passwd", "ftp://example.org/",
    "http:///nothing", "http://example.org:99999/",
]  # fmt: skip


@pytest.mark.parametrize("url", REFUSED)
async def test_addresses_that_are_not_public_are_refused(url: str) -> None:
    async def nowhere(host: str, port: int) -> list[str]:
        from perdure.tools.addresses import resolve

        return await resolve(host, port) if host == "localhost" else ["93.184.216.34"]

    with pytest.raises(AddressRefusedError):
        await check_url(url, resolver=nowhere)


@pytest.mark.parametrize("addresses", [["10.0.0.1"], ["93.184.216.34", "127.0.0.1"], ["::1"]])
async def test_a_name_that_leads_inside_is_refused(addresses: list[str]) -> None:
    async def inside(host: str, port: int) -> list[str]:
        return addresses

    with pytest.raises(AddressRefusedError, match="inside.example"):
        await check_url("http://inside.example/", resolver=inside)


async def test_public_and_allowed_addresses_pass() -> None:
    async def public(host: str, port: int) -> list[str]:
        return ["93.184.216.34"]

    assert (await check_url("https://example.org/x", resolver=public)).port == 443
    assert (await check_url("http://10.1.2.3:80/", allow=["10.1.0.0/16"])).address == "10.1.2.3"
    assert (await check_url("http://127.0.0.1:8080/", allow=["127.0.0.1:8080"])).port == 8080
    with pytest.raises(AddressRefusedError):
        await check_url("http://127.0.0.1:8081/", allow=["127.0.0.1:8080"])


async def test_a_name_that_answers_differently_the_second_time_gains_nothing(shop: Shop) -> None:
    answers = [["93.184.216.34"], ["127.0.0.1"]]

    async def rebinding(host: str, port: int) -> list[str]:
        return answers.pop(0)

    caller = HttpCaller(resolver=rebinding)
    with pytest.raises((ToolUnreachableError, ToolDoubtfulError)):  # it goes to the address that was checked
        await caller.send(Call("GET", f"http://rebind.example:{shop.port}/"), timeout_s=0.3, limit=1_000)
    with pytest.raises(AddressRefusedError):
        await caller.send(Call("GET", f"http://rebind.example:{shop.port}/"), timeout_s=0.3, limit=1_000)
    assert shop.asked == []
    await caller.close()


async def test_redirects_are_checked_one_by_one(shop: Shop) -> None:
    async def inside(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        return 302, {"location": f"http://169.254.169.254{path}"}, b""

    async def around(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        return 302, {"location": path}, b""

    caller = HttpCaller(allow=[shop.place])
    shop.handler = inside
    with pytest.raises(AddressRefusedError):
        await caller.send(Call("GET", shop.url + "/x"), timeout_s=5, limit=1_000)
    shop.handler = around
    with pytest.raises(ToolFailedError, match="redirects"):
        await caller.send(Call("GET", shop.url + "/x"), timeout_s=5, limit=1_000)
    assert len(shop.asked) == 7
    await caller.close()


async def test_a_credential_does_not_follow_to_another_host(shop: Shop) -> None:
    async def elsewhere(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        if path == "/first":
            return 307, {"location": f"http://localhost:{shop.port}/second"}, b""
        return 200, {"content-type": "text/plain"}, b"there"

    shop.handler = elsewhere
    caller = HttpCaller(allow=[shop.place, f"localhost:{shop.port}", f"::1:{shop.port}"])
    await caller.send(
        Call("POST", shop.url + "/first", {"authorization": "Bearer x", "x-other": "y"}, b"{}"),
        timeout_s=5,
        limit=99,
    )
    first, second = shop.asked
    assert first[2]["authorization"] == "Bearer x"
    assert "authorization" not in second[2]
    assert second[2]["x-other"] == "y"
    await caller.close()


def tool(shop: Shop, method: str = "POST", **options) -> HttpTool:
    return HttpTool("order", method, f"{shop.url}/orders/{{id}}", allow=[shop.place], **options)


async def use(made: HttpTool, **arguments: object):
    return await made.call(ToolUse(run="r", key="r/7", arguments=arguments))


async def test_a_request_as_declared(shop: Shop) -> None:
    secrets = LocalSecrets({"PERDURE_SECRET_SHOP": "key-of-the-shop"})
    made = tool(
        shop, query=["dry"], body="*", headers={"authorization": "Bearer secret://shop"}, secrets=secrets
    )
    output = await use(made, id="a/../b", dry=True, item="tea")
    assert output.value == {"path": "/orders/a%2F..%2Fb?dry=true"}
    method, _, headers, body = shop.asked[0]
    assert (method, headers["authorization"], headers["idempotency-key"]) == (
        "POST",
        "Bearer key-of-the-shop",
        "r/7",
    )
    assert headers["host"] == shop.place
    assert json.loads(body) == {"item": "tea"}
    assert (made.spec.recovery, made.spec.effect) == ("opaque", "irreversible")
    read = tool(shop, "GET")
    assert (read.spec.recovery, read.spec.effect) == ("pure", "read")
    with pytest.raises(ToolFailedError):
        await use(read, id="..")
    assert path_part("ä b") == "%C3%A4%20b"


async def test_answers_are_bounded_and_errors_are_told(shop: Shop) -> None:
    async def long(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        return 200, {"content-type": "text/plain"}, b"x" * 5_000

    async def missing(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        return 404, {"content-type": "application/json"}, b'{"why": "none"}'

    caller = HttpCaller(allow=[shop.place])
    shop.handler = long
    output = await caller.send(Call("GET", shop.url), timeout_s=5, limit=100)
    assert output.value == {"truncated": True, "body": "x" * 100}
    shop.handler = missing
    output = await caller.send(Call("GET", shop.url), timeout_s=5, limit=100)
    assert output.is_error
    assert output.value == {"status": 404, "body": {"why": "none"}}
    await caller.close()


async def test_what_was_sent_and_not_answered_is_doubtful(shop: Shop) -> None:
    async def silent(method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        await asyncio.sleep(0.2)

    async def cut(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        return 200, {"content-length": "1000", "content-type": "text/plain"}, b"half"

    made = tool(shop, timeout_ms=100)
    for handler in (silent, cut):
        shop.handler = handler
        with pytest.raises(ToolDoubtfulError, match="was sent"):
            await use(made, id="1")


async def test_what_cannot_be_reached_was_not_sent(shop: Shop) -> None:
    made = HttpTool("order", "POST", "http://127.0.0.1:9/x", allow=["127.0.0.1:9"])
    with pytest.raises(ToolUnreachableError):
        await use(made)
