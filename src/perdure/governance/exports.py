"""The audit log for others: a file that anybody can verify, a proof of one record, OCSF events, DSSE envelopes.

Only the first two prove something by themselves. OCSF events are for search and alarms; each names the record it was made from.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from perdure.core.audit import AuditLeaf, AuditRecord
from perdure.core.errors import AuditInvalidError, InputInvalidError
from perdure.governance.checkpoints import parse_checkpoint
from perdure.governance.merkle import Hashes, inclusion_proof
from perdure.governance.notes import VerifierKey, check_name

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FORMAT = "perdure-audit/1"
PROOF_FORMAT = "perdure-audit-proof/1"
PAGE = 10_000  # records that are in memory at once: 10 MB
CHECKPOINTS_MAX = 64  # in one file: each costs a verifier without libraries 5 ms, and helps to find a change
STATEMENTS_MAX = 10_000  # records in one envelope: it is read as a whole
IN_TOTO = "application/vnd.in-toto+json"
PREDICATE = "urn:perdure:audit-records:1"

OCSF_VERSION = "1.8.0"
_ACTIVITY = {"policy": 3, "keys": 3, "configuration": 3, "containment": 3, "key": 3, "erased": 4, "undo": 4}
_ACTIVITY_NAMES = {
    3: "Update",
    4: "Delete",
    99: "Invoke",
}  # a tool is called; whether it reads or writes is not known
_CONTROL = {
    "": (3, 17),
    "allow": (1, 1),
    "modify": (4, 11),
    "hold": (4, 14),
    "deny": (2, 2),
}  # action, disposition
_DISPOSITIONS = {
    1: "Allowed",
    2: "Blocked",
    8: "Approved",
    11: "Corrected",
    14: "Delayed",
    17: "Logged",
    25: "Rejected",
}
_FAILED = frozenset({"failed", "lost", "refused", "unknown"})


# -- the file
def paged(read: Callable[[int, int], Sequence[AuditLeaf]], size: int = PAGE) -> Iterator[AuditLeaf]:
    """Every record of a log, some at a time: ``paged(tx.audit_records)``."""
    after = -1
    while page := read(after, size):
        yield from page
        after = page[-1].index


def export_lines(origin: str, leaves: Iterable[AuditLeaf], notes: Sequence[str]) -> Iterator[bytes]:
    """The whole log, line by line, as ``verify_file.py`` reads it.

    First the format, then each record with its number and hash, and after the last record of each checkpoint that checkpoint.
    Of many checkpoints at most ``CHECKPOINTS_MAX`` are taken, evenly; the last is among them.

    Args:
        origin: the log's name.
        leaves: every record, from the first on.
        notes: signed checkpoints, the smallest first.
    """
    due: dict[int, list[bytes]] = {}
    for note in _some(notes):
        due.setdefault(parse_checkpoint(note).size, []).append(_line({"checkpoint": note}))
    yield _line({"format": FORMAT, "origin": check_name(origin)})
    yield from due.get(0, ())
    for leaf in leaves:
        yield b'{"hash":"%b","index":%d,"leaf":%b}\n' % (leaf.hash.hex().encode(), leaf.index, leaf.leaf)
        yield from due.get(leaf.index + 1, ())


def _some(notes: Sequence[str]) -> Iterator[str]:
    step = max(1, -(-len(notes) // CHECKPOINTS_MAX))
    return reversed(notes[::-1][::step])


def _line(value: Any) -> bytes:
    return msgspec.json.encode(value) + b"\n"


# -- one record
def prove(leaf: AuditLeaf, note: str, hashes: Hashes, named: Sequence[AuditLeaf] = ()) -> bytes:
    """A bundle that shows that a record is in the log; ``verify_file.py --proof`` reads it.

    Args:
        leaf: the record.
        note: a signed checkpoint that covers it.
        hashes: of the tree, as long as the checkpoint at least.
        named: the records that led from the log's first key to the one that signed the checkpoint.

    Raises:
        InputInvalidError: the checkpoint is older than the record.
    """

    def shown(one: AuditLeaf) -> dict[str, Any]:
        return {"index": one.index, "leaf": one.leaf.decode(), "proof": _path(one, note, hashes)}

    keys = {"keys": [shown(one) for one in named]} if named else {}
    return _line({"format": PROOF_FORMAT, **shown(leaf), **keys, "checkpoint": note})


def tlog_proof(leaf: AuditLeaf, note: str, hashes: Hashes) -> str:
    """The same as a C2SP tlog-proof (v1), with the record as its extra data."""
    extra = base64.b64encode(leaf.leaf).decode()
    head = ("c2sp.org/tlog-proof@v1", f"extra {extra}", f"index {leaf.index}", *_path(leaf, note, hashes))
    return "".join(f"{line}\n" for line in head) + f"\n{note}"


def _path(leaf: AuditLeaf, note: str, hashes: Hashes) -> list[str]:
    size = parse_checkpoint(note).size
    if leaf.index >= size:
        message = f"the checkpoint covers {size} records and this is record {leaf.index}; take a newer one"
        raise InputInvalidError(message, index=leaf.index, size=size)
    return [base64.b64encode(item).decode() for item in inclusion_proof(hashes, leaf.index, size)]


# -- OCSF
def ocsf(leaf: AuditLeaf, origin: str, version: str) -> dict[str, Any]:
    """A record as an OCSF 1.8.0 event of class 6003, API Activity, with the profile ``security_control``.

    Args:
        leaf: the record.
        origin: the log's name.
        version: of Perdure.
    """
    record = leaf.record
    activity = _ACTIVITY.get(record.kind, 99)
    denied = record.verdict in ("deny", "hold") or record.kind in ("rejected", "expired")
    event: dict[str, Any] = {
        "activity_id": activity, "activity_name": _ACTIVITY_NAMES[activity], "category_name": "Application Activity",
        "category_uid": 6, "class_name": "API Activity", "class_uid": 6003, "type_uid": 600_300 + activity,
        "time": record.at_ms, "severity_id": 2 if denied else 1, **_status(record), **_control(record),
        "metadata": {
            "version": OCSF_VERSION, "product": {"name": "Perdure", "vendor_name": "Perdure", "version": version},
            "profiles": ["security_control"], "uid": f"{origin}/{leaf.index}", "sequence": leaf.index,
            "log_name": origin, "event_code": record.kind,
        },
        "actor": _actor(record),
        "api": {"operation": record.name or record.kind, "service": {"name": record.what or "runtime"}},
        "src_endpoint": {"name": record.agent or "perdure", "svc_name": "perdure"},
        "unmapped": {"leaf": leaf.leaf.decode(), "leaf_hash": leaf.hash.hex()},
    }  # fmt: skip
    if record.run:
        event["api"]["request"] = {"uid": f"{record.run}/{0 if record.call is None else record.call}"}
        event["metadata"]["correlation_uid"] = record.run
    if record.policy:
        event["policy"] = {"uid": record.policy, "is_applied": True}
    return event


def _actor(record: AuditRecord) -> dict[str, Any]:
    actor: dict[str, Any] = {"app_name": record.agent or "perdure"}
    if record.run:
        actor["session"] = {"uid": record.run}
    if record.by:
        actor["user"] = {"name": record.by}
    return actor


def _status(record: AuditRecord) -> dict[str, Any]:
    if not record.state:
        return {"status_id": 0, "status": "Unknown"}
    is_failed = record.state in _FAILED
    code = {"status_code": record.codes[0]} if record.codes else {}
    known = {"status_id": 2 if is_failed else 1, "status": "Failure" if is_failed else "Success"}
    return known | {"status_detail": record.state} | code


def _control(record: AuditRecord) -> dict[str, Any]:
    """What the gates did: allowed, denied, modified or only observed, and how (profile ``security_control``)."""
    if record.kind in ("granted", "rejected", "expired"):
        action, disposition = (1, 8) if record.kind == "granted" else (2, 25)
    else:
        action, disposition = _CONTROL[record.verdict]
    return {"action_id": action, "disposition_id": disposition, "disposition": _DISPOSITIONS[disposition]}


# -- DSSE
def statement(origin: str, leaves: Sequence[AuditLeaf], note: str = "") -> bytes:
    """An in-toto statement (v1) about records: each a subject with the SHA-256 of its bytes.

    Args:
        origin: the log's name.
        leaves: one record, or a range of them.
        note: a checkpoint that covers them, if there is one.

    Raises:
        InputInvalidError: there is no record, or there are more than ``STATEMENTS_MAX``.
    """
    if not 0 < len(leaves) <= STATEMENTS_MAX:
        message = f"a statement is about 1 to {STATEMENTS_MAX} records, found {len(leaves)}"
        raise InputInvalidError(message, found=len(leaves))
    subjects = [
        {"name": f"{origin}/{leaf.index}", "digest": {"sha256": hashlib.sha256(leaf.leaf).hexdigest()}}
        for leaf in leaves
    ]
    predicate = {"origin": origin, "records": [msgspec.Raw(leaf.leaf) for leaf in leaves], "checkpoint": note}
    return msgspec.json.encode(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": subjects,
            "predicateType": PREDICATE,
            "predicate": predicate,
        }
    )


def pae(payload_type: str, payload: bytes) -> bytes:
    """What a DSSE signature is over (DSSE v1, pre-authentication encoding)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def envelope(payload: bytes, name: str, private: Ed25519PrivateKey, payload_type: str = IN_TOTO) -> bytes:
    """A DSSE envelope with one Ed25519 signature; ``keyid`` is the verifier key's id.

    Its signature never passes for a checkpoint's: a log's name has no spaces and what is signed here begins with `DSSEv1 `.
    """
    signature = private.sign(pae(payload_type, payload))
    signed = {
        "keyid": VerifierKey.of(name, private).key_id.hex(),
        "sig": base64.b64encode(signature).decode(),
    }
    body = base64.b64encode(payload).decode()
    return _line({"payload": body, "payloadType": payload_type, "signatures": [signed]})


def open_envelope(data: bytes, key: VerifierKey) -> bytes:
    """The payload of an envelope, if ``key`` signed it.

    Raises:
        AuditInvalidError: it is none, or not signed by that key.
    """
    try:
        found = json.loads(data)
        payload, kind = base64.b64decode(found["payload"], validate=True), str(found["payloadType"])
        signatures = [
            base64.b64decode(item["sig"], validate=True)
            for item in found["signatures"]
            if item.get("keyid") in (None, key.key_id.hex())
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AuditInvalidError(f"the envelope is malformed: {error}") from error
    if not any(key.has_signed(pae(kind, payload), signature) for signature in signatures):
        raise AuditInvalidError(f"the envelope is not signed by `{key.name}` {key.key_id.hex()}")
    return payload
