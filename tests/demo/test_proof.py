"""The proof finds each thing that it claims to find: planted violations, one at a time."""

from __future__ import annotations

import msgspec
import pytest

from perdure.core import entries as e
from perdure.core.values import NULL, Payload
from perdure.demo import evidence
from perdure.demo.evidence import Line, digest_of
from perdure.demo.proof import prove

FIRST, SECOND = 11, 22
RESULTS = (
    ("list_mails", "-", ["a.eml"]),
    ("read_mail", "a.eml", {"source": "a.eml", "text": "x"}),
    ("extract_mail", "a.eml", {"source": "a.eml"}),
    ("write_ledger", "ledger", {"booked": 1}),
)


def record(seq, step, result):
    payload = Payload(inline=msgspec.Raw(msgspec.json.encode(result)))
    return e.StepCompleted(seq=seq, at_ms=seq * 1000, call=seq, name=step, result=payload)


def line(seq, step, file, result, pid, late_ms=0):
    return Line(
        step, file, pid, (seq * 1000 - 5 + late_ms) * 1_000_000, digest_of(msgspec.json.encode(result))
    )


@pytest.fixture
def journal():
    steps = [record(seq, step, result) for seq, (step, _, result) in enumerate(RESULTS, start=1)]
    return [*steps, e.RunCompleted(seq=5, at_ms=5000, result=NULL)]


@pytest.fixture
def log():
    return [
        line(seq, step, file, result, FIRST if seq <= 2 else SECOND)
        for seq, (step, file, result) in enumerate(RESULTS, start=1)
    ]


def proof_of(journal, log, before=2):
    kept = journal[:before] if isinstance(before, int) else before
    return prove(kept, journal, log, ["a.eml"], SECOND, lambda payload: bytes(payload.inline))


def counts(proof, kind):
    return next(item for item in proof.kinds if item.kind == kind)


def test_a_clean_run_is_proved(journal, log):
    proof = proof_of(journal, log)
    assert proof.is_proved
    assert proof.recorded_at_kill == 2
    assert [(item.recorded, item.executed) for item in proof.kinds] == [(1, 1)] * 4


def test_a_repeat_before_the_record_is_counted_and_allowed(journal, log):
    step, file, result = RESULTS[2]
    proof = proof_of(journal, [*log, line(2, step, file, result, FIRST)])
    assert counts(proof, step).repeated_unrecorded == 1
    assert proof.is_proved


@pytest.mark.parametrize("late_ms", [0, 5000])
def test_a_recorded_step_that_ran_again_is_found(journal, log, late_ms):
    step, file, result = RESULTS[1]
    proof = proof_of(journal, [*log, line(2, step, file, result, SECOND, late_ms)])
    assert counts(proof, step).repeated_recorded == 1
    assert not proof.is_proved


def test_a_repeat_by_the_clock_alone_is_found(journal, log):
    step, file, result = RESULTS[2]
    proof = proof_of(journal, [*log, line(3, step, file, result, SECOND, 100)])
    assert counts(proof, step).repeated_recorded == 1


def test_a_step_recorded_twice_is_found(journal, log):
    step, _, result = RESULTS[1]
    proof = proof_of([*journal[:2], record(2, step, result), *journal[2:]], log)
    assert not proof.is_proved


def test_a_missing_record_is_found(journal, log):
    proof = proof_of([*journal[:2], *journal[3:]], log)
    assert counts(proof, "extract_mail").lost == 1
    assert not proof.is_proved


def test_a_record_without_an_execution_is_found(journal, log):
    proof = proof_of(journal, [log[0], *log[2:]])
    assert counts(proof, "read_mail").lost == 1


def test_a_record_with_another_result_is_found(journal, log):
    proof = proof_of(journal, [log[0], msgspec.structs.replace(log[1], digest="0" * 16), *log[2:]])
    assert counts(proof, "read_mail").lost == 1


def test_a_changed_or_shorter_journal_is_found(journal, log):
    changed = [msgspec.structs.replace(journal[0], at_ms=1), journal[1]]
    assert not proof_of(journal, log, changed).is_proved
    assert not proof_of(journal[:-1], log).is_proved


def test_the_log_is_durable_lines_and_a_torn_one_is_left_out(tmp_path):
    path = tmp_path / evidence.LOG_NAME
    assert evidence.read(path) == []
    evidence.append(path, "read_mail", "tab\tand\nline.eml", {"b": 1, "a": 2})
    with path.open("a") as file:
        file.write("read_mail\ta.eml\t1")
    (found,) = evidence.read(path)
    assert found.file == "tab?and?line.eml"
    assert found.digest == digest_of(b'{"a":2,"b":1}')
