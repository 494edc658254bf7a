"""A model in this process: llama.cpp on one thread, for machines without a key (needs ``perdure[local]``).

Answers ``chat/completions`` from a GGUF file. Small models do not follow a tool-call format by themselves, so where tools
are offered the decoding is constrained to a JSON schema, and what comes out is translated into tool calls: the call is
always well formed, which does not make it the right one.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from perdure.core.errors import DefinitionError, UpstreamError
from perdure.core.models import ModelRequest, Upstream
from perdure.models import formats
from perdure.models.local_tools import constrained, plain_messages, understood
from perdure.ports import Answer, Entropy

CONTEXT_TOKENS = 4_096  # prompt and answer together; more takes memory that small machines do not have
OUTPUT_TOKENS_DEFAULT = 512  # where the request says nothing: small models often do not find an end
ID_BITS = 96
# What a client may decide. Everything else that llama.cpp would take (slots, files, grammars) stays out of reach.
PASSED_FIELDS = (
    "temperature",
    "top_p",
    "seed",
    "stop",
    "response_format",
    "frequency_penalty",
    "presence_penalty",
)


class LocalUpstream:
    """An upstream that computes its answers here, one at a time.

    Args:
        upstream: its configuration; ``path`` is the model file.
        entropy: for ids, and for the key of llama.cpp's own listener.

    Raises:
        DefinitionError: the extra is not installed.
    """

    def __init__(self, upstream: Upstream, entropy: Entropy) -> None:
        if importlib.util.find_spec("xllamacpp") is None:
            message = (
                f"upstream `{upstream.name}` is local, which needs llama.cpp; install it with "
                "`pip install 'perdure[local]'`"
            )
            raise DefinitionError(message, upstream=upstream.name)
        self._upstream = upstream
        self._entropy = entropy
        self._server: Any = None
        self._turn = asyncio.Lock()
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="perdure-local-model")

    @contextlib.asynccontextmanager
    async def open(self, request: ModelRequest, model: str) -> AsyncIterator[Answer]:
        """Answer a request. What llama.cpp refuses, such as a prompt that is too long, gets status 400.

        Raises:
            DefinitionError: the model file cannot be loaded.
            UpstreamError: it took longer than ``timeout_ms`` or ``silence_ms``, or llama.cpp failed.
        """
        try:
            body = msgspec.json.decode(request.body, type=dict[str, Any])
        except msgspec.DecodeError as error:
            yield self._refused(model, f"the request is no JSON object: {error}")
            return
        async with self._turn:
            server = await self._loaded()
            work = _Work(server, _question(body), self._upstream)
            work.start(self._threads)
            chunks: AsyncGenerator[bytes, None] | None = None
            try:
                first = await work.next()
                if first is not None and "error" in first:
                    yield self._refused(model, str(first["error"].get("message", "")))
                    return
                is_stream = body.get("stream") is True
                chunks = self._chunks(work, first, body, model)
                kind = formats.STREAM_TYPE if is_stream else formats.JSON_TYPE
                yield self._answer(200, kind, chunks, model)
            finally:
                if chunks is not None:
                    await chunks.aclose()
                work.stop()

    async def close(self) -> None:
        """Free the memory of the model; a request that is still computed ends first."""
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        self._server = None

    async def _loaded(self) -> Any:
        if self._server is None:
            key = f"{self._entropy.bits(256):064x}"
            loop = asyncio.get_running_loop()
            try:
                self._server = await loop.run_in_executor(self._threads, _load, self._upstream.path, key)
            except RuntimeError as error:
                message = (
                    f"upstream `{self._upstream.name}` cannot load `{self._upstream.path}`: {error}; expected a "
                    "GGUF file that llama.cpp knows"
                )
                raise DefinitionError(message, upstream=self._upstream.name) from error
        return self._server

    async def _chunks(
        self, work: _Work, first: dict[str, Any] | None, body: dict[str, Any], model: str
    ) -> AsyncGenerator[bytes, None]:
        is_stream = body.get("stream") is True
        options = body.get("stream_options")
        with_usage = isinstance(options, dict) and options.get("include_usage") is True
        heard = _Heard()
        part = first
        while part is not None:
            self._check(part)
            heard.add(part)
            # Words go on as they come. A constrained answer is JSON that only makes sense as a whole.
            if is_stream and not work.is_constrained and (part.get("choices") or with_usage):
                shown = {name: part[name] for name in ("choices", "usage", "id", "object") if name in part}
                yield b"data: " + msgspec.json.encode({**shown, "created": 0, "model": model}) + b"\n\n"
            part = await work.next()
        if is_stream and not work.is_constrained:
            yield b"data: [DONE]\n\n"
            return
        text, calls = understood(heard.text) if work.is_constrained else (heard.text, ())
        said = formats.Said(
            model=model,
            text=text,
            calls=calls,
            input_tokens=heard.input_tokens,
            output_tokens=heard.output_tokens,
            new_id=lambda prefix: f"{prefix}_{self._entropy.bits(ID_BITS):024x}",
            is_cut=heard.is_cut,
        )
        if not is_stream:
            yield formats.chat(said)
            return
        for event in formats.chat_stream(said, with_usage=with_usage):
            yield event

    def _check(self, part: dict[str, Any]) -> None:
        if "error" in part:
            message = (
                f"upstream `{self._upstream.name}` failed while it answered: {part['error'].get('message')}"
            )
            raise UpstreamError(message, upstream=self._upstream.name, status=200)

    def _refused(self, model: str, message: str) -> Answer:
        async def chunks() -> AsyncIterator[bytes]:
            yield formats.problem("chat/completions", message)

        return self._answer(400, formats.JSON_TYPE, chunks(), model)

    def _answer(self, status: int, kind: str, chunks: AsyncIterator[bytes], model: str) -> Answer:
        name = self._upstream.name
        return Answer(status=status, content_type=kind, headers=(), chunks=chunks, upstream=name, model=model)


class _Work:
    """One computation in the thread, and its parts as they reach the loop."""

    def __init__(self, server: Any, question: dict[str, Any], upstream: Upstream) -> None:
        self.is_constrained = question.pop("is_constrained")
        self._server = server
        self._question = question
        self._upstream = upstream
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + upstream.timeout_ms / 1000
        # Not bounded here: CONTEXT_TOKENS bounds how many parts there can be.
        self._parts: asyncio.Queue[dict[str, Any] | Exception | None] = asyncio.Queue()
        self._stopped = threading.Event()

    def start(self, threads: ThreadPoolExecutor) -> None:
        threads.submit(self._compute)

    def stop(self) -> None:
        """Nobody listens any more: llama.cpp ends at its next token."""
        self._stopped.set()

    async def next(self) -> dict[str, Any] | None:
        """The next part; ``None`` after the last.

        Raises:
            UpstreamError: it failed, or took too long.
        """
        limit = min(self._deadline, self._loop.time() + self._upstream.silence_ms / 1000)
        name = self._upstream.name
        try:
            async with asyncio.timeout_at(limit):
                part = await self._parts.get()
        except TimeoutError as error:
            message = (
                f"upstream `{name}` computed too long; raise `timeout_ms` or `silence_ms`, or ask for less"
            )
            raise UpstreamError(message, upstream=name, status=None, is_silent=True) from error
        if isinstance(part, Exception):
            raise UpstreamError(f"upstream `{name}` failed: {part}", upstream=name, status=None) from part
        return part

    def _compute(self) -> None:
        if self._stopped.is_set():
            return
        end: Exception | None = None
        try:
            self._server.handle_chat_completions(self._question, self._heard)
        except ValueError as error:  # the request is not what llama.cpp expects
            self._tell({"error": {"message": str(error)}})
        except Exception as error:  # noqa: BLE001 - whatever the foreign code raises is told to who waits
            end = error
        self._tell(end)

    def _heard(self, part: dict[str, Any]) -> bool:
        """Called by llama.cpp in its thread; the answer says whether to stop."""
        self._tell(part)
        return self._stopped.is_set()

    def _tell(self, part: dict[str, Any] | Exception | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, so nobody listens
            self._loop.call_soon_threadsafe(self._parts.put_nowait, part)


class _Heard:
    """What the parts of an answer add up to."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self.input_tokens = 0
        self.output_tokens = 0
        self.is_cut = False

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def add(self, part: dict[str, Any]) -> None:
        for choice in part.get("choices") or ():
            self._texts.append(choice.get("delta", {}).get("content") or "")
            self.is_cut = self.is_cut or choice.get("finish_reason") == "length"
        usage = part.get("usage") or {}
        self.input_tokens = usage.get("prompt_tokens", self.input_tokens)
        self.output_tokens = usage.get("completion_tokens", self.output_tokens)


def _question(body: dict[str, Any]) -> dict[str, Any]:
    """The request for llama.cpp: always streamed, so that it can be stopped."""
    asked = body.get("max_completion_tokens") or body.get("max_tokens") or OUTPUT_TOKENS_DEFAULT
    limit = min(asked, CONTEXT_TOKENS) if isinstance(asked, int) else OUTPUT_TOKENS_DEFAULT
    question: dict[str, Any] = {name: body[name] for name in PASSED_FIELDS if body.get(name) is not None}
    question |= {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": limit}
    messages = plain_messages(body.get("messages"))
    tools = constrained(body)
    if tools is not None:
        instruction, schema = tools
        messages = [{"role": "system", "content": instruction}, *messages]
        question.setdefault("temperature", 0)
        question["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema},
        }
    return {**question, "messages": messages, "is_constrained": tools is not None}


def _load(path: str, key: str) -> Any:
    xllamacpp = importlib.import_module("xllamacpp")  # an extra; loading its library takes a while

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = CONTEXT_TOKENS
    params.n_parallel = 1
    params.verbosity = -1
    params.ui = False
    # Two threads that spin while they wait take the machine from everything else: ten times slower on a busy one.
    for threads in (params.cpuparams, params.cpuparams_batch):
        threads.n_threads = 1
        threads.poll = 0
    # It listens on 127.0.0.1 whether asked to or not. Nobody knows the key, so nobody gets past the gateway there.
    params.n_threads_http = 1
    params.api_keys = [key]
    return xllamacpp.Server(params)
