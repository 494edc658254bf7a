"""Exports: the file and the proofs are read by the verifier, events fit the OCSF schema, envelopes their key."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.core.audit import AuditLeaf, AuditRecord, encode_record
from perdure.core.errors import AuditInvalidError, InputInvalidError
from perdure.governance import verify_file
from perdure.governance.checkpoints import checkpoint, parse_checkpoint, sign_checkpoint
from perdure.governance.exports import (
    CHECKPOINTS_MAX,
    IN_TOTO,
    envelope,
    export_lines,
    ocsf,
    open_envelope,
    pae,
    paged,
    prove,
    statement,
    tlog_proof,
)
from perdure.governance.merkle import leaf_hash
from tests.governance.logs import LOG, LOG_KEY, ORIGIN, THIEF, AuditedLog, cosigned

# Required by OCSF 1.8.0: of the class API Activity (6003) and of the objects that an event holds.
REQUIRED = {
    "": ("activity_id", "category_uid", "class_uid", "metadata", "severity_id", "time", "type_uid", "actor", "api", "src_endpoint",
         "action_id"),
    "metadata": ("product", "version"),
    "api": ("operation",),
}  # fmt: skip
DISPOSITIONS = {1: {1, 8}, 2: {2, 25}, 3: {17}, 4: {11, 14}}


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditedLog]:
    made = AuditedLog(tmp_path / "perdure.db")
    made.write(12)
    made.checkpoint()
    yield made
    made.close()


def leaf(index: int = 0, **fields) -> AuditLeaf:
    data = encode_record(AuditRecord(**{"kind": "judged", "at_ms": 1_790_000_000_000, **fields}))
    return AuditLeaf(index=index, leaf=data, hash=leaf_hash(data))


def test_every_line_is_json_and_holds_the_bytes_that_were_hashed(log: AuditedLog) -> None:
    lines = log.export().splitlines()
    assert json.loads(lines[0]) == {"format": "perdure-audit/1", "origin": ORIGIN}
    assert json.loads(lines[-1]) == {"checkpoint": log.tx.latest_checkpoint()}
    leaves = log.tx.audit_records()
    for line, found in zip(lines[1:-1], leaves, strict=True):
        values = json.loads(line)
        assert (values["index"], values["hash"]) == (found.index, found.hash.hex())
        assert found.leaf in line
        assert values["leaf"] == json.loads(found.leaf)


def test_pages_give_every_record(log: AuditedLog) -> None:
    for size in (1, 5, 12, 100):
        assert list(paged(log.tx.audit_records, size)) == log.tx.audit_records()


def test_many_checkpoints_are_thinned_and_the_last_stays(tmp_path: Path) -> None:
    log = AuditedLog(tmp_path / "many.db")
    for _ in range(200):
        log.write(1)
        log.checkpoint()
    notes = [
        json.loads(line)["checkpoint"] for line in log.export().splitlines() if b'"checkpoint"' in line[:14]
    ]
    sizes = [parse_checkpoint(note).size for note in notes]
    assert len(sizes) <= CHECKPOINTS_MAX
    assert sizes[-1] == 200
    assert sizes == sorted(set(sizes))
    assert max(b - a for a, b in zip([0, *sizes], sizes, strict=False)) <= 4
    assert verify_file.check_export(log.export().splitlines(), notes[-1], verify_file.read_key(LOG.text)) == (
        200,
        [],
    )
    log.close()


def test_a_proof_needs_a_checkpoint_that_covers_it(log: AuditedLog) -> None:
    note = log.tx.latest_checkpoint()
    log.write(1)
    for make in (prove, tlog_proof):
        with pytest.raises(InputInvalidError):
            make(log.tx.audit_records()[-1], note, log.tx.audit_hash)


def test_a_tlog_proof_is_as_c2sp_says(log: AuditedLog) -> None:
    note = cosigned(log.tx.latest_checkpoint())
    found = log.tx.audit_records()[5]
    head, _, rest = tlog_proof(found, note, log.tx.audit_hash).partition("\n\n")
    version, extra, index, *path = head.split("\n")
    assert (version, index) == ("c2sp.org/tlog-proof@v1", "index 5")
    assert base64.b64decode(extra.removeprefix("extra ")) == found.leaf
    assert rest == note
    proof = [base64.b64decode(line) for line in path]
    root = parse_checkpoint(note).root
    assert verify_file.is_included(leaf_hash(found.leaf), 5, 12, proof, root)


@pytest.mark.parametrize(("fields", "expected"), [
    ({"verdict": "allow"}, (99, 1, 1, 0)), ({"verdict": "deny", "codes": ("c",), "state": "refused"}, (99, 2, 2, 2)),
    ({"verdict": "hold"}, (99, 4, 14, 0)), ({"verdict": "modify"}, (99, 4, 11, 0)), ({"kind": "granted", "by": "ann"}, (99, 1, 8, 0)),
    ({"kind": "rejected", "by": "ann"}, (99, 2, 25, 0)), ({"kind": "policy"}, (3, 3, 17, 0)), ({"kind": "erased"}, (4, 3, 17, 0)),
    ({"kind": "ended", "state": "succeeded", "run": "r", "call": 3, "agent": "a", "what": "tool", "name": "t", "policy": "p"},
     (99, 3, 17, 1)), ({"kind": "doubted", "state": "unknown"}, (99, 3, 17, 2)),
])  # fmt: skip
def test_events_fit_ocsf(fields: dict, expected: tuple) -> None:
    event = ocsf(leaf(7, **fields), ORIGIN, "0.3.0")
    for name, required in REQUIRED.items():
        assert set(required) <= set(event[name] if name else event)
    assert (event["activity_id"], event["action_id"], event["disposition_id"], event["status_id"]) == expected
    assert event["disposition_id"] in DISPOSITIONS[event["action_id"]]
    assert event["type_uid"] == event["class_uid"] * 100 + event["activity_id"]
    assert event["metadata"]["version"] == "1.8.0"
    assert event["metadata"]["uid"] == f"{ORIGIN}/7"
    assert event["actor"].keys() & {"app_name", "session", "user"}
    assert event["unmapped"]["leaf"].encode() == leaf(7, **fields).leaf
    if "call" in fields:
        assert event["api"] == {"operation": "t", "service": {"name": "tool"}, "request": {"uid": "r/3"}}
        assert event["policy"] == {"uid": "p", "is_applied": True}
    json.dumps(event)


def test_what_is_no_record_gives_no_event() -> None:
    with pytest.raises(AuditInvalidError):
        ocsf(AuditLeaf(index=0, leaf=b'{"kind":"other","at_ms":1}', hash=b""), ORIGIN, "1")


def test_statements_name_the_bytes(log: AuditedLog) -> None:
    leaves = log.tx.audit_records(limit=3)
    note = log.tx.latest_checkpoint()
    found = json.loads(statement(ORIGIN, leaves, note))
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert [item["name"] for item in found["subject"]] == [f"{ORIGIN}/{number}" for number in range(3)]
    assert found["predicate"]["records"] == [json.loads(item.leaf) for item in leaves]
    assert found["predicate"]["checkpoint"] == note
    for wrong in ([], leaves * 5_000):
        with pytest.raises(InputInvalidError):
            statement(ORIGIN, wrong)


def test_envelopes_are_signed_over_their_type_too(log: AuditedLog) -> None:
    # The example of the DSSE protocol specification.
    assert (
        pae("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    payload = statement(ORIGIN, log.tx.audit_records(limit=1))
    made = envelope(payload, ORIGIN, LOG_KEY)
    assert open_envelope(made, LOG) == payload
    values = json.loads(made)
    assert values["payloadType"] == IN_TOTO
    for wrong in (
        {"payloadType": "text/plain"}, {"payload": base64.b64encode(b"{}").decode()}, {"signatures": []}, {"payload": "?"},
        {"signatures": [{"sig": "AAAA"}]}, {"signatures": [1]}, {"signatures": [{**values["signatures"][0], "keyid": "00000000"}]},
    ):  # fmt: skip
        with pytest.raises(AuditInvalidError):
            open_envelope(json.dumps({**values, **wrong}).encode(), LOG)
    for wrong in (b"", b"[]", b"\xff", envelope(payload, ORIGIN, THIEF)):
        with pytest.raises(AuditInvalidError):
            open_envelope(wrong, LOG)
    note = sign_checkpoint(checkpoint(ORIGIN, *log.tx.audit_head()), LOG_KEY)
    assert not LOG.has_signed(pae(IN_TOTO, payload), base64.b64decode(note.split()[-1])[4:])


def test_origins_are_checked() -> None:
    with pytest.raises(InputInvalidError):
        next(export_lines("a b", (), ()))
