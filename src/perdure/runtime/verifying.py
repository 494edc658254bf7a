"""Verifying the audit log where it lies: the same check as the file for auditors, and the ledger held against it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from perdure.core.audit import AuditLeaf
from perdure.core.errors import AuditInvalidError, InputInvalidError
from perdure.governance import exports, verify_file
from perdure.governance.checkpoints import cosigned_at_s, parse_checkpoint
from perdure.governance.notes import COSIGNS, VerifierKey, parse_note
from perdure.ports import Transaction

SEEN_MAX = 64  # older checkpoints that are looked at too: each costs a verifier without libraries 5 ms


@dataclass(slots=True)
class Verified:
    """What a verification found.

    Attributes:
        size: how many records there are.
        signed: how many of them the newest checkpoint covers.
        cosigned: how many of them the newest one covers that enough witnesses have cosigned.
        witnesses: the same for each witness by itself.
        problems: what is wrong; empty if nothing was found.
    """

    size: int = 0
    signed: int = 0
    cosigned: int = 0
    witnesses: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verified(
    tx: Transaction,
    key: verify_file.Key,
    known: Sequence[str],
    witnesses: Sequence[VerifierKey] = (),
    quorum: int | None = None,
) -> Verified:
    """Look at every record, every hash and every signature (see ``Audit.verify``).

    Raises:
        InputInvalidError: the quorum does not fit the witnesses, or one is none.
    """
    needed = len(witnesses) if quorum is None else quorum
    if not min(1, len(witnesses)) <= needed <= len(witnesses) or any(
        item.kind != COSIGNS for item in witnesses
    ):
        raise InputInvalidError(f"a quorum of {needed} does not fit {len(witnesses)} keys of witnesses")
    found = Verified()
    notes = tx.checkpoints()
    states: dict[str, dict[int, str]] = {}

    def leaves() -> Iterator[AuditLeaf]:
        for leaf in exports.paged(tx.audit_records):
            said = json.loads(leaf.leaf)
            if said.get("run") and said.get("state") and said.get("call") is not None:
                states.setdefault(said["run"], {})[said["call"]] = said["state"]
            yield leaf

    cosigned = _cosigned(notes, witnesses, needed, found)
    lines = exports.export_lines(key.name, leaves(), notes)
    if not notes:
        found.size = sum(1 for _ in lines) - 1
        found.problems += ["no head of the log is signed"] if found.size else []
    else:
        seen = [*notes[:-1][-SEEN_MAX:], *cosigned, *known]
        found.size, findings = verify_file.check_export(lines, notes[-1], key, seen)
        found.problems += [item.message for item in findings if item.code != "uncovered"]
        found.signed = min(found.size, parse_checkpoint(notes[-1]).size)
    if known and not notes:
        found.problems.append("the log has no signed head, and one was kept: its end was cut off")
    if tx.audit_head()[0] != found.size:
        found.problems.append(f"the head says {tx.audit_head()[0]} records, there are {found.size}")
    found.problems += _of_the_ledger(tx, states)
    return found


def _cosigned(
    notes: Sequence[str], witnesses: Sequence[VerifierKey], needed: int, found: Verified
) -> list[str]:
    """The newest head that enough witnesses have cosigned; a forged cosignature is no cosignature."""
    if not witnesses:
        return []
    found.witnesses = {witness.name: 0 for witness in witnesses}
    chosen: list[str] = []
    for note in reversed(notes):
        parsed, size = parse_note(note), parse_checkpoint(note).size
        good = []
        for witness in witnesses:
            if parsed.by(witness):
                try:
                    cosigned_at_s(parsed, witness)
                except AuditInvalidError as error:
                    found.problems.append(error.message)
                    continue
                good.append(witness.name)
                found.witnesses[witness.name] = max(size, found.witnesses[witness.name])
        if len(good) >= needed and not chosen:
            chosen, found.cosigned = [note], size
        if chosen and all(found.witnesses.values()):
            break
    if not chosen:
        found.problems.append(f"no head of the log is cosigned by {needed} of {len(witnesses)} witnesses")
    return chosen


def _of_the_ledger(tx: Transaction, states: dict[str, dict[int, str]]) -> Iterator[str]:
    """Every row of the ledger must be in the state that the log says it is in."""
    for run, calls in states.items():
        rows = {row.call: row for row in tx.run_actions(run)}
        for call, state in calls.items():
            row = rows.get(call)
            if row is None:
                yield f"the log tells of action {run}/{call}, the ledger does not have it"
            elif row.state.value != state:
                yield f"action {run}/{call} is `{row.state}` in the ledger and `{state}` in the log"
