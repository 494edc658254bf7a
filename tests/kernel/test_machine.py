"""The pure run machine: tables, examples, properties."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core import entries as e
from perdure.core.errors import BrokenInvariantError, PayloadTooLargeError
from perdure.core.ids import child_id, run_id
from perdure.core.records import ENDED, Status
from perdure.core.values import Payload, decode, encode, pack
from perdure.kernel.machine import TRANSITIONS, is_allowed, transition
from perdure.kernel.retry import delay_ms
from perdure.kernel.run import Block, Drive, Leave, RequestCancel, Rules, decide, fold

RULES = Rules(version="v1", recoveries_max=3)
START = e.RunStarted(
    seq=1, at_ms=10, agent="a", version="v1", input=Payload(inline=msgspec.Raw(b"1")), chance=7
)


def journal(*more: Any) -> list[Any]:
    """RunStarted and then entries given as (class, fields)."""
    found: list[Any] = [START]
    for kind, fields in more:
        found.append(kind(seq=len(found) + 1, at_ms=10 + len(found), **fields))
    return found


STEP = (e.StepCompleted, {"call": 1, "name": "s", "digest": "d", "result": Payload(inline=msgspec.Raw(b"2"))})


def test_every_state_but_the_ended_can_be_left_and_reached() -> None:
    left = {before for _, befores, _ in TRANSITIONS for before in befores}
    reached = {after for _, _, after in TRANSITIONS}
    assert left == set(Status) - ENDED
    assert reached | {Status.PENDING} == set(Status)


@pytest.mark.parametrize("status", sorted(ENDED))
def test_nothing_follows_an_end(status: Status) -> None:
    for event, _, _ in TRANSITIONS:
        assert not is_allowed(status, event)
        with pytest.raises(BrokenInvariantError):
            transition(status, event)


def test_fold_tells_the_state() -> None:
    state = fold(journal(STEP, (e.RunParked, {"waits": (e.Wait(call=2, kind="sleep", name=""),)})))
    assert (state.seq, state.status, state.calls) == (3, Status.WAITING, frozenset({1}))
    assert state.waits[0].call == 2
    done = fold(journal(STEP, (e.RunCompleted, {"result": STEP[1]["result"]})))
    assert done.status is Status.COMPLETED
    assert done.result == STEP[1]["result"]


def test_fold_in_parts_is_fold_at_once() -> None:
    whole = journal(STEP, (e.RunRecovered, {"worker": "w", "fence": 2}), (e.PatchApplied, {"name": "p"}))
    for cut in range(1, len(whole)):
        assert fold(whole[cut:], fold(whole[:cut])) == fold(whole)


@pytest.mark.parametrize(
    "broken",
    [
        [msgspec.structs.replace(START, seq=2)],
        [*journal(STEP), journal(STEP)[1]],
        [START, e.RunUnblocked(seq=2, at_ms=9)],
        [START, START],
        journal(STEP, STEP),
        journal((e.RunCompleted, {"result": STEP[1]["result"]}), (e.RunUnblocked, {})),
    ],
    ids=["gap at start", "gap", "back in time", "two starts", "call ended twice", "after the end"],
)
def test_a_journal_that_cannot_be_is_refused(broken: list[Any]) -> None:
    with pytest.raises(BrokenInvariantError):
        fold(broken)


def test_decide() -> None:
    recovered = (e.RunRecovered, {"worker": "w", "fence": 2})
    assert decide(fold(journal()), 0, RULES) == Drive()
    assert decide(fold(journal(recovered, recovered)), 0, RULES) == Drive()
    poison = decide(fold(journal(recovered, recovered, recovered)), 0, RULES)
    assert isinstance(poison, Block)
    assert poison.error.code == "run-quarantined"
    assert decide(fold(journal(recovered, recovered, STEP, recovered)), 0, RULES) == Drive()  # it got on
    changed = decide(fold(journal()), 0, Rules("v2", 3))
    assert isinstance(changed, Block)
    assert (changed.expected, changed.found) == ("v1", "v2")
    assert decide(fold(journal()), 0, Rules("v2", 3, migrate=True)) == Drive()
    assert decide(fold(journal((e.RunMigrated, {"version": "v2"}))), 0, Rules("v2", 3)) == Drive()
    late = [msgspec.structs.replace(START, deadline_ms=50)]
    assert decide(fold(late), 49, RULES) == Drive()
    assert isinstance(decide(fold(late), 50, RULES), RequestCancel)
    assert decide(fold(journal((e.RunFailed, {"error": e.Failure("c", "m")}))), 0, RULES) == Leave()
    assert decide(fold(journal((e.RunBlocked, {"error": e.Failure("c", "m")}))), 0, RULES) == Leave()


@given(attempt=st.integers(1, 2_000), first=st.integers(0, 10_000), chance=st.integers(0, 65_535))
def test_backoff_stays_within_its_limits(attempt: int, first: int, chance: int) -> None:
    wait = delay_ms(attempt, first_ms=first, max_ms=60_000, chance=chance)
    full = min(60_000, first * 2 ** min(attempt - 1, 30))
    assert full // 2 <= wait <= full


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
def test_values_come_out_as_they_went_in(value: Any) -> None:
    data = encode(value)
    assert decode(data) == value
    payload, blobs = pack(data, 10_000_000)
    assert bytes(payload.inline) == data
    assert blobs == {}


def test_large_payloads_become_blobs_and_larger_ones_are_refused() -> None:
    payload, blobs = pack(b'"' + b"x" * 70_000 + b'"', 100_000)
    assert list(blobs) == [payload.blob]
    assert payload.size == 70_002
    with pytest.raises(PayloadTooLargeError):
        pack(b"x" * 101, 100)


@given(st.lists(st.integers(0, 2**45), min_size=2, unique=True), st.integers(0, 2**60 - 1))
def test_ids_sort_by_time(times: list[int], chance: int) -> None:
    ids = [run_id(time, chance) for time in times]
    assert [ids.index(item) for item in sorted(ids)] == [times.index(time) for time in sorted(times)]
    assert {len(item) for item in ids} == {22}
    assert child_id(ids[0], 3) == f"{ids[0]}.3"


@pytest.mark.parametrize("kind", e.ENTRY_TYPES, ids=lambda kind: kind.__name__)
def test_every_entry_survives_json(kind: type[e.Entry]) -> None:
    samples: dict[str, Any] = {
        "input": Payload(inline=msgspec.Raw(b"[1]")),
        "error": e.Failure("c", "m"),
        "waits": (),
        "what": "tool",
        "digests": {"book": "d"},
    }
    samples |= {"result": samples["input"], "question": samples["input"], "value": samples["input"]}
    samples |= {"request": samples["input"]}
    fields = {}
    for field in msgspec.structs.fields(kind):
        if field.required:
            known = {"seq": 1, "at_ms": 2}.get(field.name, samples.get(field.name))
            known = samples["error"] if field.type is e.Failure else known
            fields[field.name] = known if known is not None else (3 if field.type is int else "text")
    entry = kind(**fields)
    assert e.encode_entry(e.decode_entry(e.encode_entry(entry))) == e.encode_entry(entry)
