"""What derives from a source: the actions of a run, and of the runs below it, that one poisoned document may be behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from perdure.core import entries as e
from perdure.core.errors import UsageError
from perdure.core.ids import action_key, child_id
from perdure.core.records import RunRecord
from perdure.core.values import Payload
from perdure.engines.embedded import works
from perdure.gateway.seen import Seen
from perdure.governance.flow import FlowRules
from perdure.ports import Store

How = Literal["arguments", "context"]
SHOWN_MAX = 20  # sources that are named when there is no such one


@dataclass(frozen=True, slots=True)
class Causes:
    """The actions that derive from a source, by run and call, and whether those are all."""

    found: Mapping[tuple[str, int], How]
    is_complete: bool


def derived_from(
    store: Store, run: str, source: str, bytes_of: Callable[[Payload], bytes], rules: FlowRules
) -> Causes:
    """What derives from a source in a run and the runs below it.

    Args:
        store: where the journals are.
        run: the run at the top.
        source: such as ``tool:mail.read``, ``run:ID/CALL``, ``message``, ``step:fetch``.
        bytes_of: the JSON of a payload.
        rules: what is declared, for values whose labels are not recorded.

    Raises:
        UsageError: nothing in these runs comes from there.
        RunUnknownError: there is no such run.
    """
    top = store.read(lambda tx: works.find(tx, run))
    runs = _tree(store, top)
    seen = {item.id: _seen(store, item, bytes_of, rules) for item in runs}
    known = dict.fromkeys(name for one in seen.values() for name in one.context.sources())
    if source not in known:
        offered = ", ".join(f"`{name}`" for name in list(known)[:SHOWN_MAX]) or "none"
        raise UsageError(
            f"nothing in run `{run}` comes from `{source:.200}`; the sources are {offered}", source=source
        )
    found: dict[tuple[str, int], How] = {}
    sources, whole = {source}, set[str]()
    while True:  # what a child brings back may be a cause in the run above it
        count = len(found) + len(whole)
        for item in runs:
            context = seen[item.id].context
            if item.id in whole:
                for call in context.calls():
                    found.setdefault((item.id, call), "context")
                    sources.add(context.name_of(call))
            for one in context.derived_from(sources):
                found[item.id, one.call] = one.how
                sources.add(context.name_of(one.call))
            whole.update(
                child.id
                for child in runs
                if child.parent == item.id and _is_started_by(child, item.id, found)
            )
        if len(found) + len(whole) == count:
            return Causes(found, all(one.context.is_complete for one in seen.values()))


def _tree(store: Store, top: RunRecord) -> list[RunRecord]:
    """A run and all below it, those above first."""
    found = [top]
    for item in found:
        found += store.read(lambda tx, name=item.id: tx.children(name))  # type: ignore[misc]
    return found


def _seen(store: Store, record: RunRecord, bytes_of: Callable[[Payload], bytes], rules: FlowRules) -> Seen:
    seen = Seen(rules)
    for entry in store.read(lambda tx: tx.journal(record.id)):
        if isinstance(entry, e.RunStarted):
            seen.begin(record.id, record.agent, entry, bytes_of(entry.input))
        elif isinstance(entry, e.CallEntry):
            seen.take(entry, bytes_of)
    return seen


def _is_started_by(child: RunRecord, parent: str, found: Mapping[tuple[str, int], How]) -> bool:
    """Whether one of the calls found is the one that started a child: its id or key is made of the call's number."""
    return any(
        run == parent and (child.id == child_id(run, call) or child.idempotency_key == action_key(run, call))
        for run, call in found
    )
