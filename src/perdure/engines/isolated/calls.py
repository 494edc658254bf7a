"""Durable calls on their way: from a worker's frame to a request, from a recorded entry to an answer, and back."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from perdure.agents import requests as r
from perdure.agents.codec import to_json
from perdure.agents.run import Message
from perdure.agents.step import BACKOFF_MS_MAX, RETRIES_MAX, Step
from perdure.core import entries as e
from perdure.core.errors import PerdureError, RequestInvalidError, UsageError, error_for
from perdure.core.ids import checked_name, checked_topic
from perdure.core.limits import NAME_LENGTH_MAX
from perdure.core.values import Payload, decode, digest
from perdure.engines.embedded.results import value_of
from perdure.engines.isolated import wire

MS_MAX = 10**14  # of a duration: three thousand years
DIGEST_LENGTH_MAX = 64
RUN_LENGTH_MAX = 2_000  # characters: a run's id grows with each generation of children


@dataclass(frozen=True, slots=True)
class RemoteStep:
    """What the runtime knows of a step whose function is in a worker: its policy. ``give_up_on`` is judged there."""

    name: str
    retries: int
    backoff_ms: int
    backoff_ms_max: int
    is_threaded: bool
    timeout_ms: int | None = None
    give_up_on: tuple[type[Exception], ...] = ()


# -- in the runtime
def request_of(call: wire.Call, names: Collection[str]) -> r.Request:
    """The request that a worker's frame stands for; digests are made here, but for those of a step's arguments.

    Args:
        call: the frame.
        names: what the run is and was called: it may ask for the results of its own children only.

    Raises:
        RequestInvalidError: it is none, or asks for what is another run's.
    """
    try:
        return _request(call, names)
    except (UsageError, msgspec.MsgspecError) as error:
        if isinstance(error, RequestInvalidError):
            raise
        raise RequestInvalidError(f"call {call.call} (`{call.kind:.80}`) is not allowed: {error}") from error


def _request(call: wire.Call, names: Collection[str]) -> r.Request:
    data = bytes(call.data) or b"null"
    match call.kind:
        case "step":
            return _step(call)
        case "act" | "model":
            asked = to_json(msgspec.json.decode(data, type=dict[str, Any]))
            what: Any = "tool" if call.kind == "act" else "model"
            name = checked_name("a tool or model", call.name)
            confidence = call.confidence
            if confidence is not None and not 0 <= confidence <= 100:
                raise RequestInvalidError(f"a confidence is a percentage from 0 to 100, found {confidence}")
            if len(call.endpoint) > NAME_LENGTH_MAX:
                raise RequestInvalidError(f"no endpoint has {len(call.endpoint)} characters")
            return r.ActCall(name, digest(asked), decode, what, asked, call.endpoint, None, confidence)
        case "sleep":
            ms = _ms(call.ms)
            return r.SleepCall("", digest(str(ms).encode()), decode, ms)
        case "receive":
            timeout_ms = None if call.ms is None else _ms(call.ms)
            return r.ReceiveCall(checked_topic(call.name), "", decode, timeout_ms)
        case "ask":
            question = to_json(decode(data))
            timeout_ms = None if call.ms is None else _ms(call.ms)
            return r.AskCall("", digest(question), decode, question, timeout_ms)
        case "result":
            if not any(call.name.startswith(f"{name}.") for name in names):
                raise RequestInvalidError(f"run `{call.name:.200}` is no child of this one")
            return r.ResultCall(call.name, "", decode)
        case _:
            return _request_of_store(call, data)


def _request_of_store(call: wire.Call, data: bytes) -> r.Request:
    match call.kind:
        case "send":
            body = to_json(decode(data))
            key = digest(call.to.encode() + b"\0" + body)
            if len(call.to) > RUN_LENGTH_MAX:
                raise RequestInvalidError(f"no run has an id of {len(call.to)} characters")
            return r.SendCall(checked_topic(call.name), key, decode, call.to, body)
        case "publish":
            body = to_json(decode(data))
            key = digest((call.key or "").encode() + b"\0" + body)
            session = None if call.key is None else checked_name("a session", call.key)
            return r.PublishCall(checked_topic(call.name), key, decode, body, session)
        case "spawn":
            given = to_json(decode(data))
            due_ms = None if call.ms is None else _ms(call.ms)
            name = checked_name("an agent", call.name)
            session = None if call.key is None else checked_name("a session", call.key)
            return r.SpawnCall(name, digest(given), decode, given, session, call.priority, due_ms)
        case "state.get":
            return r.StateGetCall(checked_name("a key", call.name), "", decode)
        case "state.set":
            value = to_json(decode(data)) if bytes(call.data) else None
            found = "" if value is None else digest(value)
            return r.StateSetCall(checked_name("a key", call.name), found, decode, value)
        case _:
            raise RequestInvalidError(f"there is no durable call `{call.kind:.80}`")


def _step(call: wire.Call) -> r.StepCall:
    if not 0 <= call.retries <= RETRIES_MAX or min(call.backoff_ms, call.backoff_ms_max) < 0:
        raise RequestInvalidError(f"step `{call.name:.80}` has {call.retries} retries, at most {RETRIES_MAX}")
    if not 0 < len(call.digest) <= DIGEST_LENGTH_MAX or not call.digest.isalnum():
        raise RequestInvalidError("a step needs a digest of its arguments: letters and digits")
    step = RemoteStep(
        checked_name("the name of a step", call.name), call.retries, call.backoff_ms,
        min(call.backoff_ms_max, BACKOFF_MS_MAX), call.is_threaded,
    )  # fmt: skip
    return r.StepCall(step.name, call.digest, decode, cast("Step[..., Any]", step), b"")


def _ms(ms: int | None) -> int:
    if ms is None or not 0 <= ms <= MS_MAX:
        raise RequestInvalidError(f"a duration is 0 to {MS_MAX} milliseconds, found {ms}")
    return ms


def value_of_entry(
    entry: e.CallEntry, fetch: Callable[[Payload], bytes]
) -> tuple[msgspec.Raw, wire.Problem | None]:
    """What the code gets for the end of a call: JSON, or an error to raise."""
    found = value_of(entry, _raw, fetch)
    if isinstance(found, PerdureError):
        return msgspec.Raw(b"null"), problem_of(found)
    if isinstance(entry, e.StateRead) and found is not None:
        return msgspec.Raw(b'{"value":' + found + b"}"), None
    return msgspec.Raw(to_json(found)), None


def _raw(data: bytes | msgspec.Raw) -> msgspec.Raw:
    return data if isinstance(data, msgspec.Raw) else msgspec.Raw(data)


def problem_of(error: PerdureError) -> wire.Problem:
    """An error of ours as it travels."""
    return wire.Problem(error.code, error.message, str(error.facts.get("type", "")), dict(error.facts))


# -- in the worker
def call_of(number: int, request: r.Request) -> wire.Call:
    """The frame for a request."""
    common: dict[str, Any] = {"call": number, "kind": request.kind, "name": request.name}
    match request:
        case r.StepCall(step=step, digest=found):
            return wire.Call(
                **common, digest=found, retries=step.retries, backoff_ms=step.backoff_ms,
                backoff_ms_max=step.backoff_ms_max, is_threaded=not step.is_async,
            )  # fmt: skip
        case r.ActCall(what=what, arguments=data, endpoint=endpoint, confidence=confidence):
            kind = "act" if what == "tool" else "model"
            return wire.Call(
                **{**common, "kind": kind}, data=msgspec.Raw(data), endpoint=endpoint, confidence=confidence
            )
        case r.SleepCall(ms=ms):
            return wire.Call(**common, ms=ms)
        case r.ReceiveCall(timeout_ms=timeout_ms):
            return wire.Call(**common, ms=timeout_ms)
        case r.AskCall(question=data, timeout_ms=timeout_ms):
            return wire.Call(**common, data=msgspec.Raw(data), ms=timeout_ms)
        case r.SendCall(to=to, body=data):
            return wire.Call(**common, to=to, data=msgspec.Raw(data))
        case r.PublishCall(body=data, key=key):
            return wire.Call(**common, data=msgspec.Raw(data), key=key)
        case r.SpawnCall():
            return wire.Call(
                **common, data=msgspec.Raw(request.input), key=request.session, priority=request.priority,
                ms=request.deadline_ms,
            )  # fmt: skip
        case r.StateSetCall(value=value):
            return wire.Call(**common, data=wire.NOTHING if value is None else msgspec.Raw(value))
        case r.ResultCall() | r.StateGetCall():
            return wire.Call(**common)
        case _:
            raise UsageError(f"an isolated agent cannot make a call of kind `{request.kind}`")


def value_for(request: r.Request, answer: wire.Answer) -> Any:
    """What the code gets for an answer: a value of its type, or an exception to raise.

    Raises:
        ValueError: the value does not fit the type.
    """
    if answer.error is not None:
        problem = answer.error
        facts = dict(problem.facts)
        if problem.type:
            facts["type"] = problem.type
        return error_for(problem.code)(problem.message, **facts)
    data = bytes(answer.value)
    match request:
        case r.StateGetCall():
            found = msgspec.json.decode(data, type=dict[str, msgspec.Raw] | None)
            return None if found is None else bytes(found["value"])
        case r.ReceiveCall():
            mail = msgspec.json.decode(data, type=_Mail | None)
            if mail is None:
                return None
            return Message(mail.topic, request.read(mail.body), mail.sender, mail.sent_ms)
        case r.AskCall():
            return None if data == b"null" else request.read(data)
        case r.SleepCall() | r.StateSetCall():
            return None
        case r.StepCall() | r.ResultCall():
            return request.read(data)
        case _:
            return decode(data)


class _Mail(msgspec.Struct):
    topic: str
    body: msgspec.Raw
    sender: str
    sent_ms: int
