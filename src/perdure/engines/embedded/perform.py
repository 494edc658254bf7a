"""Durable calls that the store itself carries out: each is one transaction with its entry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perdure.agents.requests import (
    AskCall,
    PublishCall,
    SendCall,
    SpawnCall,
    StateGetCall,
    StateSetCall,
)
from perdure.core import entries as e
from perdure.core.errors import AgentUnknownError, InputInvalidError, PerdureError, SessionBusyError
from perdure.core.ids import child_id
from perdure.core.records import Question
from perdure.core.values import Payload, pack
from perdure.engines.embedded import works
from perdure.engines.embedded.attempts import failure_of
from perdure.engines.embedded.host import Host
from perdure.engines.embedded.open_call import OpenCall
from perdure.engines.embedded.waits import position, record
from perdure.ports import Transaction

if TYPE_CHECKING:
    from perdure.engines.embedded.worker import Worker


async def perform(worker: Worker, host: Host, open_call: OpenCall) -> None:
    """Carry out a call that is not a step and does not wait."""
    request = open_call.request
    now_ms = worker.wall_ms()
    touched: list[str] = []
    common: dict[str, Any] = {"call": open_call.number, "name": request.name, "digest": request.digest}
    match request:
        case SpawnCall():
            make = _spawn(worker, host, open_call, request, touched, now_ms)
        case SendCall():
            make = _send(worker, host, open_call, request, touched, now_ms)
        case PublishCall():
            make = _publish(worker, host, open_call, request, touched, now_ms)
        case AskCall():
            make = _ask(worker, host, open_call, request, now_ms)
        case StateGetCall():
            make = _state_get(host, request)
        case StateSetCall():
            make = _state_set(worker, host, request)
        case _:
            return

    def work(tx: Transaction) -> e.Entry:
        kind, fields = make(tx)
        return record(tx, host, kind(**position(host, now_ms), **common, **fields))

    entry = await worker.engine.store.transact(work)
    worker.deliver(host, entry)
    worker.engine.look_after(touched)
    if isinstance(entry, e.QuestionAsked):
        worker.settle(host, forced=True)


def _spawn(
    worker: Worker, host: Host, open_call: OpenCall, request: SpawnCall, touched: list[str], now_ms: int
) -> Any:
    """The child's id is made of the parent's and the call's number: the same on every attempt."""
    engine = worker.engine
    agent = engine.agents.get(request.name)
    try:
        if agent is None:
            raise AgentUnknownError(f"no agent is called `{request.name}`; register it with the runtime")
        agent.parameters.read_input(request.input)
        payload, blobs = pack(request.input, engine.settings.payload_bytes_max)
        payload = host.labelled(payload, request.input, agent.parameters.names)
    except (AgentUnknownError, InputInvalidError, PerdureError) as error:
        refused = failure_of(error, error.code)
        return lambda _: (e.ChildStarted, {"error": refused})
    deadline_ms = None if request.deadline_ms is None else now_ms + request.deadline_ms
    new = engine.new_run(
        agent, payload, blobs, id=child_id(host.run_id, open_call.number), parent=host.run_id,
        session=request.session, priority=request.priority, deadline_ms=deadline_ms, principals=host.principals,
    )  # fmt: skip

    def make(tx: Transaction) -> tuple[type[e.CallEntry], dict[str, Any]]:
        try:
            child, others = works.start(tx, new, now_ms)
        except SessionBusyError as error:
            return e.ChildStarted, {"error": failure_of(error, error.code)}
        touched.extend([child.id, *others])
        return e.ChildStarted, {"child": child.id}

    return make


def _send(
    worker: Worker, host: Host, open_call: OpenCall, request: SendCall, touched: list[str], now_ms: int
) -> Any:
    payload, blobs = pack(request.body, worker.engine.settings.payload_bytes_max)
    payload = host.labelled(payload, request.body)
    key = f"{host.run_id}/{open_call.number}"

    def make(tx: Transaction) -> tuple[type[e.CallEntry], dict[str, Any]]:
        target = tx.run(request.to)
        if target is None or target.status.is_ended:
            return e.MessageSent, {"to": request.to, "delivered": False}
        works.send(tx, request.to, request.name, payload, blobs, sender=host.run_id, now_ms=now_ms, key=key)
        touched.append(request.to)
        return e.MessageSent, {"to": request.to}

    return make


def _publish(
    worker: Worker, host: Host, open_call: OpenCall, request: PublishCall, touched: list[str], now_ms: int
) -> Any:
    engine = worker.engine
    payload, blobs = pack(request.body, engine.settings.payload_bytes_max)
    payload = host.labelled(payload, request.body)
    targets = [agent for agent in engine.agents.values() if request.name in agent.subscribes]
    news = [
        engine.new_run(
            agent,
            payload,
            blobs,
            id=f"{child_id(host.run_id, open_call.number)}.{index}",
            session=request.key,
            principals=host.principals,
        )
        for index, agent in enumerate(sorted(targets, key=lambda item: item.name))
    ]

    def make(tx: Transaction) -> tuple[type[e.CallEntry], dict[str, Any]]:
        started: list[str] = []
        for new in news:
            try:
                run, others = works.start(tx, new, now_ms)
            except SessionBusyError:
                continue  # the subscriber's own rule: one at a time, later ones are not wanted
            started.append(run.id)
            touched.extend([run.id, *others])
        return e.Published, {"runs": tuple(started)}

    return make


def _ask(worker: Worker, host: Host, open_call: OpenCall, request: AskCall, now_ms: int) -> Any:
    payload, blobs = pack(request.question, worker.engine.settings.payload_bytes_max)
    due_ms = open_call.wait_due_ms

    def make(tx: Transaction) -> tuple[type[e.CallEntry], dict[str, Any]]:
        question = Question(
            run=host.run_id, call=open_call.number, agent=host.agent.name, question=payload, asked_ms=now_ms,
            due_ms=due_ms,
        )  # fmt: skip
        tx.append(host.run_id, host.fence, (), blobs)
        tx.open_question(question)
        return e.QuestionAsked, {"question": payload, "due_ms": due_ms}

    return make


def _owner(host: Host) -> str:
    """Whose state: the session's, or the run's own."""
    return f"session/{host.session}" if host.session is not None else f"run/{host.run_id}"


def _state_get(host: Host, request: StateGetCall) -> Any:
    def make(tx: Transaction) -> tuple[type[e.CallEntry], dict[str, Any]]:
        return e.StateRead, {"value": tx.state(host.agent.name, _owner(host), request.name)}

    return make


def _state_set(worker: Worker, host: Host, request: StateSetCall) -> Any:
    payload: Payload | None = None
    blobs: dict[str, bytes] = {}
    if request.value is not None:
        payload, blobs = pack(request.value, worker.engine.settings.payload_bytes_max)
        payload = host.labelled(payload, request.value)

    def make(tx: Transaction) -> tuple[type[e.CallEntry], dict[str, Any]]:
        tx.set_state(host.agent.name, _owner(host), request.name, payload, blobs)
        return e.StateChanged, {"value": payload}

    return make
