"""Identity: how a call of a restarted program is recognised as one that is in the journal already.

A hosted program knows nothing of the journal. After a crash it starts from the beginning and asks for the same things
again, but not in the same bytes: its prompts hold the time, random ids, a process id. Each call has four digests, from the
strongest level to the weakest; it is answered by the first row that was not consumed yet, at the strongest level that has
one.

========  ===================================================================  ==============================================
level     a model request is the same when ... is                              it answers
========  ===================================================================  ==============================================
exact     all of it but the volatile fields                                    always
masked    the same without times, random ids and process ids                   always
causal    endpoint, model, streaming, whether tools are offered, and           only with facts in the request. A row with the
          the facts fed back: ids of tool calls that the model minted,         same ordinal goes first: two different questions
          and tool results (both as sorted multisets, since parallel           may follow the same facts
          calls may swap places); without those, all of *ordinal* and
          the model's own texts
ordinal   endpoint, model, streaming, names of the tools, number of            only without facts: these are first calls. Where
          assistant turns and the shape of the system prompt                   a request brings facts that no row has seen, it is
                                                                               another request, however similar
========  ===================================================================  ==============================================

A level that must not answer is the empty string, in a request as in a row. Requests for embeddings and token counts have the
first two levels only: their answers depend on nothing but the input.

The ids and results can come from the journal alone, which is why *causal* survives any prompt. Results count as well as ids:
the same ids with an error instead of a result are another position. A tool call has one level more than equality: the
arguments without what nobody would choose (see ``kernel.masks``); other arguments are another act.

What this cannot tell apart: two requests side by side that differ only in what is masked (two sub-agents whose prompts name
two UUIDs) and come in another order after the restart, when the journal has only one of them. ``weakest="exact"`` is for runs
that must not take that chance.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any, Literal

import msgspec

from perdure.core.canonical import canonical
from perdure.core.errors import InputInvalidError, invariant
from perdure.kernel.difference import difference
from perdure.kernel.masks import mask, mask_arguments, shape

__all__ = (
    "LEVELS",
    "VOLATILE",
    "Identity",
    "MatchLevel",
    "Row",
    "Rows",
    "difference",
    "identify_model",
    "identify_tool",
    "match",
    "tool_names",
)

MatchLevel = Literal["exact", "masked", "causal", "ordinal"]
LEVELS: tuple[MatchLevel, ...] = ("exact", "masked", "causal", "ordinal")
# They change how an answer is billed, cached or labelled, not what is asked.
VOLATILE = frozenset(
    ("user", "metadata", "prompt_cache_key", "safety_identifier", "service_tier", "seed", "store", "stream_options")
)  # fmt: skip
DIGEST_LENGTH = 32  # hexadecimal digits: 128 bits, so that no two calls of a run ever collide by chance
# Ids that a framework mints itself where the model gave none: new on every start, so they are no facts.
PROGRAM_IDS = ("pyd_ai_",)
# Arguments that programs mint for one request; nobody looks anything up by them, as one may by `request_id` or `timestamp`.
MINTED_ARGUMENTS = frozenset(("idempotencykey", "clientrequestid", "correlationid", "nonce", "traceparent"))
_encoder = msgspec.json.Encoder(order="sorted")
_INPUT_ONLY = ("embeddings", "messages/count_tokens")


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What a call is recognised by; each digest has 32 hexadecimal digits, or is empty where that level must not answer."""

    exact: str
    masked: str
    causal: str
    ordinal: str


class Row(msgspec.Struct, frozen=True):
    """A call that is in the journal: its number in the run, and its identity."""

    call: int
    identity: Identity


class _Facts(msgspec.Struct):
    """What a request feeds back from earlier answers, how it begins, and the ``rest`` without results and system prompt."""

    ids: list[str] = msgspec.field(default_factory=list)
    results: list[Any] = msgspec.field(default_factory=list)
    said: list[Any] = msgspec.field(default_factory=list)
    system: Any = None
    rest: dict[str, Any] = msgspec.field(default_factory=dict)


def identify_model(endpoint: str, body: Any) -> Identity:
    """The identity of a model request; ``body`` is the decoded JSON of ``endpoint`` (``chat/completions``, ...).

    Raises:
        InputInvalidError: the body is no JSON, or nested too deeply.
    """
    try:
        return _of_model(endpoint, body)
    except RecursionError as error:
        raise _too_deep("a model request") from error


def identify_tool(name: str, arguments: Any) -> Identity:
    """The identity of a tool call; below *exact*, all levels are the same.

    Raises:
        InputInvalidError: the arguments are no JSON, or nested too deeply.
    """
    try:
        return _of_tool(name, arguments)
    except RecursionError as error:
        raise _too_deep(f"the arguments of `{name}`") from error


def _too_deep(what: str) -> InputInvalidError:
    return InputInvalidError(
        f"{what} cannot be read: lists and objects are nested too deeply; send flatter data"
    )


def _of_model(endpoint: str, body: Any) -> Identity:
    whole: dict[str, Any] = body if isinstance(body, dict) else {"": body}
    kept = {key: value for key, value in whole.items() if key not in VOLATILE}
    document = canonical([endpoint, kept], strict=False)
    if b'"_meta":' in document:  # within a string the quotation marks would be escaped
        kept = _without_meta(kept)
        document = canonical([endpoint, kept], strict=False)
    model = str(kept.get("model", ""))
    exact = _digest(document)
    if endpoint in _INPUT_ONLY:
        return Identity(exact=exact, masked=_digest(_bytes(model), mask(document)), causal="", ordinal="")
    facts = _facts(kept)
    # Masks cost more than all else, so each text is masked once: JSON has no raw line feed, so the parts that go in come out.
    parts = mask(b"\n".join(map(_bytes, ([endpoint, facts.rest], facts.system, *facts.results)))).split(b"\n")
    system, results = parts[1], sorted(map(_digest, parts[2:]))
    names = sorted(tool_names(kept))
    asked = [endpoint, model, bool(kept.get("stream"))]
    ordinal = _bytes([*asked, names, len(facts.said), _digest(shape(system))])
    causal = b""
    if facts.ids or results:
        causal = _bytes([*asked, bool(names), sorted(facts.ids), results])
    elif facts.said:
        # They may be examples that came with the prompt, so they count within the same system prompt only.
        causal = ordinal + b"".join(sorted(mask(_bytes(text)) for text in facts.said))
    return Identity(
        exact=exact,
        masked=_digest(_bytes(model), *parts),  # the name of a model may hold a date that must not be masked
        causal=_digest(causal) if causal else "",
        ordinal=_digest(ordinal),
    )


def _of_tool(name: str, arguments: Any) -> Identity:
    document = canonical([name, arguments], strict=False)
    if b'"_meta":' in document:
        arguments = _without_meta(arguments)
        document = canonical([name, arguments], strict=False)
    exact = _digest(document)
    masked = _digest(
        name.encode("utf-8", "surrogatepass"),
        mask_arguments(canonical(_without_minted(arguments), strict=False)),
    )
    return Identity(exact=exact, masked=masked, causal=masked, ordinal=masked)


def tool_names(body: dict[str, Any]) -> list[str]:
    """The names of the tools that a request offers, in any of the wire formats; the type where a tool has no name."""
    names: list[str] = []
    tools = body.get("tools") or body.get("functions")
    for tool in _dicts(tools):
        function = tool.get("function")
        name = function.get("name") if isinstance(function, dict) else tool.get("name")
        names.append(str(name or tool.get("server_label") or tool.get("type") or ""))
    return names


# -- facts
def _facts(body: dict[str, Any]) -> _Facts:
    facts = _Facts(rest=dict(body))
    for name in ("system", "instructions"):
        if facts.system is None and body.get(name):
            facts.system = facts.rest.pop(name)
    previous = body.get("previous_response_id")
    if isinstance(previous, str) and previous:
        facts.ids.append(previous)
    for name, read in (("messages", _from_message), ("input", _from_item)):
        items = body.get(name)
        if isinstance(items, list):
            facts.rest[name] = [read(facts, item) if isinstance(item, dict) else item for item in items]
    return facts


def _from_message(facts: _Facts, message: dict[str, Any]) -> dict[str, Any]:
    """Read a message of ``chat/completions`` or ``messages``, or one among the items of ``responses``.

    Returns:
        What is left of it.
    """
    role, content = message.get("role"), message.get("content")
    if role in ("system", "developer"):
        if facts.system is not None:
            return message
        facts.system = content
        return {**message, "content": None}
    if role in ("tool", "function"):
        facts.results.append(content)
        return {**message, "content": None}
    if role == "assistant":
        facts.said.append(content)
        for call in _dicts(message.get("tool_calls")):
            _mint(facts, call.get("id"))
    if isinstance(content, list):
        blocks = [_from_block(facts, block) if isinstance(block, dict) else block for block in content]
        return {**message, "content": blocks}
    return message


def _from_block(facts: _Facts, block: dict[str, Any]) -> dict[str, Any]:
    kind = str(block.get("type", ""))
    if kind.endswith("tool_use"):
        _mint(facts, block.get("id"))
    elif kind.endswith("tool_result"):
        facts.results.append([block.get("content"), bool(block.get("is_error"))])
        return {**block, "content": None}
    return block


def _from_item(facts: _Facts, item: dict[str, Any]) -> dict[str, Any]:
    """Read an item of ``responses``."""
    kind = str(item.get("type", "message"))
    if kind == "message":
        return _from_message(facts, item)
    if kind.endswith("_call"):
        _mint(facts, item.get("call_id") or item.get("id"))
    elif kind.endswith("_output"):
        facts.results.append(item.get("output"))
        return {**item, "output": None}
    elif kind == "mcp_approval_response":
        facts.results.append([item.get("approval_request_id"), bool(item.get("approve"))])
    return item


def _mint(facts: _Facts, name: Any) -> None:
    if isinstance(name, str) and name:
        facts.ids.append("" if name.startswith(PROGRAM_IDS) else name)


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                yield item


def _without_meta(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_meta(item) for key, item in value.items() if key != "_meta"}
    return [_without_meta(item) for item in value] if isinstance(value, list) else value


def _without_minted(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: "<minted>" if _plain(key) in MINTED_ARGUMENTS else _without_minted(item)
            for key, item in value.items()
        }
    return [_without_minted(item) for item in value] if isinstance(value, list) else value


def _plain(key: str) -> str:
    return key.lower().replace("_", "").replace("-", "")


def _bytes(value: Any) -> bytes:
    """JSON with sorted keys: canonical enough for digests that never leave the runtime, and faster."""
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return canonical(value, strict=False)


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\n".join(parts)).hexdigest()[:DIGEST_LENGTH]


# -- rows
_Key = tuple[MatchLevel, str, str]


class Rows:
    """The calls of a run that may answer, found by identity in logarithmic time.

    They grow with the calls of their run, whose budget is their limit.
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._identities: dict[int, Identity] = {}
        self._free: set[int] = set()
        # For each key a heap of calls. One that was consumed or removed stays in it until it comes to the top.
        self._heaps: dict[_Key, list[int]] = {}
        for row in rows:
            self.add(row.call, row.identity)

    def add(self, call: int, identity: Identity) -> None:
        """A call that may answer from now on."""
        known = self._identities.setdefault(call, identity)
        invariant(known == identity, f"call {call} is added with another identity than before", call=call)
        self.release(call)

    def consume(self, call: int) -> None:
        """It answers no further request, until it is released."""
        self._free.discard(call)

    def release(self, call: int) -> None:
        """It may answer again, in its old place; nothing happens to a call that was removed."""
        if call in self._free or call not in self._identities:
            return
        self._free.add(call)
        for key in _keys(self._identities[call]):
            heapq.heappush(self._heaps.setdefault(key, []), call)

    def remove(self, call: int) -> None:
        """It never answers again: it was refused or lost. Its number is not used for another one."""
        self._free.discard(call)
        self._identities.pop(call, None)

    def match(self, asked: Identity, *, weakest: MatchLevel = "ordinal") -> tuple[int, MatchLevel] | None:
        """The first call that may answer, and the strongest level that has one; this does not consume it."""
        last = LEVELS.index(weakest)
        for key in _keys(asked):
            level = key[0]
            if LEVELS.index(level) > last:
                return None
            heap = self._heaps.get(key)
            while heap:
                if heap[0] in self._free:
                    return heap[0], level
                heapq.heappop(heap)
        return None

    def left(self) -> list[int]:
        """The calls that have answered nothing yet, in their order."""
        return sorted(self._free)


def match(
    asked: Identity, rows: Sequence[Row], consumed: Container[int], *, weakest: MatchLevel = "ordinal"
) -> tuple[int, MatchLevel] | None:
    """The first row that is not consumed, at the strongest level; for many requests build :class:`Rows` once."""
    return Rows(row for row in rows if row.call not in consumed).match(asked, weakest=weakest)


def _keys(identity: Identity) -> list[_Key]:
    """Where a row is found and a request looks, strongest first: the table at the top of this module."""
    keys: list[_Key] = [("exact", identity.exact, ""), ("masked", identity.masked, "")]
    if identity.causal:
        keys += (("causal", identity.causal, identity.ordinal), ("causal", identity.causal, ""))
    elif identity.ordinal:
        keys.append(("ordinal", identity.ordinal, ""))
    return keys
