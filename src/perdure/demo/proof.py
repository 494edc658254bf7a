"""The proof at the end of the demo: the journal compared with the step's own log. Pure functions over both.

The claim is: a step that was recorded never runs again, and nothing that was recorded is lost. A step that ran but was
not recorded when the worker died runs again; that is counted and shown, not hidden.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from perdure.core import entries as e
from perdure.core.values import Payload
from perdure.demo.desk import LEDGER_FILE
from perdure.demo.evidence import Line, digest_of, label_of

KINDS = ("list_mails", "read_mail", "extract_mail", "write_ledger")
Key = tuple[str, str]


class KindProof(msgspec.Struct, frozen=True):
    """The counts of one kind of step.

    Attributes:
        recorded: steps with a result in the journal.
        executed: lines in the step's own log.
        repeated_recorded: executions after the result was recorded; must be 0.
        repeated_unrecorded: executions again because the kill came between execution and record.
        lost: expected steps without a record, records without an execution, and records that vanished; must be 0.
    """

    kind: str
    recorded: int = 0
    executed: int = 0
    repeated_recorded: int = 0
    repeated_unrecorded: int = 0
    lost: int = 0


class Proof(msgspec.Struct, frozen=True):
    """All counts, and whether what was in the journal at the kill is still there, entry for entry."""

    kinds: tuple[KindProof, ...]
    is_prefix_kept: bool
    is_ended: bool
    recorded_at_kill: int

    @property
    def is_proved(self) -> bool:
        """Whether every claim holds."""
        clean = all(item.lost == 0 and item.repeated_recorded == 0 for item in self.kinds)
        return clean and self.is_prefix_kept and self.is_ended


class _Recorded(msgspec.Struct, frozen=True):
    at_ms: int
    digest: str


def prove(
    before: Sequence[e.AnyEntry],
    after: Sequence[e.AnyEntry],
    log: Sequence[Line],
    files: Sequence[str],
    second_pid: int,
    bytes_of: Callable[[Payload], bytes],
) -> Proof:
    """Compare journal and log.

    Args:
        before: the journal as it was found after the kill.
        after: the journal at the end.
        log: the step's own log at the end.
        files: the mails that there are.
        second_pid: the worker that was started after the kill.
        bytes_of: the JSON of a payload.
    """
    kept = _recorded(before, bytes_of)
    final = _recorded(after, bytes_of)
    expected = {("list_mails", "-"), ("write_ledger", LEDGER_FILE)}
    expected |= {(kind, label_of(file)) for kind in ("read_mail", "extract_mail") for file in files}
    return Proof(
        kinds=tuple(_kind(kind, kept, final, log, expected, second_pid) for kind in KINDS),
        is_prefix_kept=list(after[: len(before)]) == list(before),
        is_ended=any(isinstance(entry, e.RunCompleted) for entry in after),
        recorded_at_kill=sum(len(items) for items in kept.values()),
    )


def _recorded(
    journal: Sequence[e.AnyEntry], bytes_of: Callable[[Payload], bytes]
) -> dict[Key, list[_Recorded]]:
    found: dict[Key, list[_Recorded]] = {}
    for entry in journal:
        if isinstance(entry, e.StepCompleted):
            data = bytes_of(entry.result)
            key = (entry.name, _file_of(entry.name, data))
            found.setdefault(key, []).append(_Recorded(entry.at_ms, digest_of(data)))
    return found


def _file_of(name: str, data: bytes) -> str:
    if name in ("read_mail", "extract_mail"):
        return label_of(str(msgspec.json.decode(data)["source"]))
    return LEDGER_FILE if name == "write_ledger" else "-"


def _kind(
    kind: str,
    kept: dict[Key, list[_Recorded]],
    final: dict[Key, list[_Recorded]],
    log: Sequence[Line],
    expected: set[Key],
    second_pid: int,
) -> KindProof:
    lines = [line for line in log if line.step == kind]
    executions = Counter(line.file for line in lines)
    wrong = 0
    lost = 0
    for step, file in sorted({key for key in expected | set(final) | set(kept) if key[0] == kind}):
        records = final.get((step, file), [])
        digests = {line.digest for line in lines if line.file == file}
        if not records or any(record.digest not in digests for record in records):
            lost += 1
        if len(records) > 1:
            wrong += len(records) - 1  # recorded twice is as wrong as run twice
        wrong += sum(_is_late(line, kept, final, second_pid) for line in lines if line.file == file)
    repeats = sum(count - 1 for count in executions.values())
    return KindProof(
        kind=kind,
        recorded=sum(len(records) for (step, _), records in final.items() if step == kind),
        executed=len(lines),
        repeated_recorded=wrong,
        repeated_unrecorded=max(0, repeats - wrong),
        lost=lost,
    )


def _is_late(
    line: Line, kept: dict[Key, list[_Recorded]], final: dict[Key, list[_Recorded]], second_pid: int
) -> bool:
    """Whether an execution came after its record: by the second worker though recorded at the kill, or by the clock."""
    key = (line.step, line.file)
    if line.pid == second_pid and key in kept:
        return True
    return any(line.at_ns // 1_000_000 > record.at_ms for record in final.get(key, []))
