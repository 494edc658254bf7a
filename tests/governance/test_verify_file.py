"""The verifier against every attack that we know, each made on a real file or database, and the verifier run on its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.governance import verify_file
from perdure.governance.checkpoints import checkpoint, sign_checkpoint
from perdure.governance.exports import export_lines, prove
from perdure.governance.merkle import leaf_hash
from perdure.stores.sqlite.maintenance import integrity
from tests.governance.logs import LOG, ORIGIN, THIEF, WITNESS, AuditedLog, cosigned, verify

SIZE = 40


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditedLog]:
    """Forty records, checkpoints after 10, 20, 30 and 40."""
    made = AuditedLog(tmp_path / "perdure.db")
    for _ in range(SIZE // 10):
        made.write(10)
        made.checkpoint()
    yield made
    made.close()


def is_record(line: bytes) -> bool:
    return line.startswith(b'{"hash"')


def records(export: bytes) -> tuple[list[bytes], dict[int, int]]:
    """The lines, and where each record is among them."""
    lines = export.splitlines(keepends=True)
    return lines, dict(enumerate(at for at, line in enumerate(lines) if is_record(line)))


def numbered(lines: list[bytes]) -> bytes:
    """With numbers and hashes as they would be if nothing had happened: what a careful forger writes."""
    found, number = [], 0
    for line in lines:
        if is_record(line):
            leaf = verify_file.LEAF(line).group(3)
            line = b'{"hash":"%b","index":%d,"leaf":%b}\n' % (leaf_hash(leaf).hex().encode(), number, leaf)
            number += 1
        found.append(line)
    return b"".join(found)


def test_what_nobody_touched_is_as_signed(log: AuditedLog, tmp_path: Path) -> None:
    note = log.tx.latest_checkpoint()
    found = verify(tmp_path / "check", log.export(), note)
    assert (found["status"], found["records"], found["findings"]) == (0, SIZE, [])
    older = log.tx.checkpoints()[0]
    assert verify(tmp_path / "check", log.export(), older, seen=(note,))["status"] == 0
    assert verify(tmp_path / "check", log.export(), cosigned(note), witness=WITNESS.text)["status"] == 0
    log.write(3)  # after the last checkpoint: nothing vouches for these
    found = verify(tmp_path / "check", log.export(), note)
    assert (found["status"], found["codes"], found["at"]) == (1, {"uncovered"}, {"uncovered": SIZE})


def test_an_edit_is_found_where_it_is(log: AuditedLog, tmp_path: Path) -> None:
    note = log.tx.latest_checkpoint()
    for index in (0, 9, 10, 25, 39):
        lines, at = records(log.export())
        lines[at[index]] = lines[at[index]].replace(b'"true"', b'"lies"')
        found = verify(tmp_path / "check", b"".join(lines), note)
        assert found["status"] == 1
        assert found["at"]["edited"] == index
        assert found["at"]["root"] == index
        # One who also writes the hash beside it is found to the range between two checkpoints.
        found = verify(tmp_path / "check", numbered(lines), note)
        assert "edited" not in found["codes"]
        (root,) = (item["message"] for item in found["findings"] if item["code"] == "root")
        low, high = map(int, re.search(r"one of (\d+) to (\d+)", root).groups())
        assert (low, high) == (index // 10 * 10, index // 10 * 10 + 9)


def test_a_changed_hash_beside_a_record_is_found(log: AuditedLog, tmp_path: Path) -> None:
    lines, at = records(log.export())
    lines[at[5]] = lines[at[5]].replace(lines[at[5]][9:73], b"0" * 64)
    found = verify(tmp_path / "check", b"".join(lines), log.tx.latest_checkpoint())
    assert (found["status"], found["codes"], found["at"]) == (1, {"edited"}, {"edited": 5})


def test_deletion(log: AuditedLog, tmp_path: Path) -> None:
    note = log.tx.latest_checkpoint()
    for index in (0, 17, 38):
        lines, at = records(log.export())
        del lines[at[index]]
        found = verify(tmp_path / "check", b"".join(lines), note)
        assert found["status"] == 1
        assert found["at"]["missing"] == index
        found = verify(tmp_path / "check", numbered(lines), note)
        assert {"moved", "truncated"} <= found["codes"]
        assert found["at"]["moved"] == index // 10 * 10  # from this record on something is gone
        alone = numbered([line for line in lines if is_record(line) or b"format" in line])
        assert "truncated" in verify(tmp_path / "check", alone, note)["codes"]


def test_insertion(log: AuditedLog, tmp_path: Path) -> None:
    note = log.tx.latest_checkpoint()
    lines, at = records(log.export())
    lines.insert(at[12], lines[at[12]].replace(b'"true"', b'"lies"'))
    assert verify(tmp_path / "check", b"".join(lines), note)["at"]["inserted"] == 12
    found = verify(tmp_path / "check", numbered(lines), note)
    assert found["status"] == 1
    assert {"moved", "root"} <= found["codes"]
    assert found["at"]["moved"] == 10
    lines, at = records(log.export())
    lines.append(lines[at[39]])
    found = verify(tmp_path / "check", numbered(lines), note)
    assert (found["codes"], found["at"]) == ({"uncovered"}, {"uncovered": SIZE})


def test_reordering(log: AuditedLog, tmp_path: Path) -> None:
    note = log.tx.latest_checkpoint()
    lines, at = records(log.export())
    lines[at[21]], lines[at[25]] = lines[at[25]], lines[at[21]]
    found = verify(tmp_path / "check", b"".join(lines), note)
    assert found["status"] == 1
    assert {"reordered", "root"} <= found["codes"]
    assert found["at"]["reordered"] == 21
    found = verify(tmp_path / "check", numbered(lines), note)
    assert found["codes"] == {"root"}


def test_truncation(log: AuditedLog, tmp_path: Path) -> None:
    note = log.tx.latest_checkpoint()
    for kept in (39, 30, 1, 0):
        lines, at = records(log.export())
        found = verify(tmp_path / "check", b"".join(lines[: at[kept]] if kept < SIZE else lines), note)
        assert found["status"] == 1
        assert found["at"]["truncated"] == kept
    found = verify(tmp_path / "check", b"", note)
    assert {"truncated", "origin"} <= found["codes"]
    half = log.export()[:-400]  # cut in the middle of a line
    assert verify(tmp_path / "check", half, note)["status"] == 1


def test_the_empty_log(tmp_path: Path) -> None:
    log = AuditedLog(tmp_path / "empty.db")
    note = log.checkpoint()
    assert verify(tmp_path / "check", log.export(), note)["status"] == 0
    log.write(1)
    assert verify(tmp_path / "check", log.export(), note)["codes"] == {"uncovered"}
    log.close()


def test_a_fork_is_found_by_whoever_saw_the_other_side(log: AuditedLog, tmp_path: Path) -> None:
    """The holder of the log's key rewrites history and signs it: the file fits its checkpoint."""
    other = log.copy(tmp_path / "other.db")
    log.write(10)
    other.write(10, word="lies")
    mine, theirs = log.checkpoint(), other.checkpoint()
    assert verify(tmp_path / "check", other.export(), theirs)["status"] == 0  # alone it cannot be told
    found = verify(tmp_path / "check", other.export(), theirs, seen=(mine,))
    assert found["status"] == 1
    assert "fork" in found["codes"]
    assert (
        "fork" in verify(tmp_path / "check", b"", theirs, seen=(mine,))["codes"]
    )  # the two notes say it alone
    other.write(10, word="more")
    longer = other.checkpoint()
    found = verify(tmp_path / "check", other.export(), longer, seen=(mine,))
    assert "fork" in found["codes"]
    found = verify(tmp_path / "check", other.export(), longer, seen=(cosigned(mine),))
    assert "fork" in found["codes"]
    assert verify(tmp_path / "check", log.export(), mine, seen=(longer,))["status"] == 1
    other.close()


def test_a_rollback_is_found_only_with_something_newer(log: AuditedLog, tmp_path: Path) -> None:
    """An older copy of the database with the checkpoint of its time is a true history: nothing in it is wrong."""
    older = log.copy(tmp_path / "older.db")
    then = cosigned(older.tx.latest_checkpoint())
    log.write(10)
    now = cosigned(log.checkpoint(), 1_790_000_900)
    found = verify(tmp_path / "check", older.export(), then, witness=WITNESS.text)
    assert found["status"] == 0  # not noticed, and the documentation says so
    found = verify(tmp_path / "check", older.export(), then, seen=(now,))
    assert (found["codes"], found["at"]) == ({"truncated"}, {"truncated": SIZE})
    older.write(10, word="lies")
    found = verify(tmp_path / "check", older.export(), older.checkpoint(), seen=(now,))
    assert "fork" in found["codes"]
    older.close()


def test_key_swap(log: AuditedLog, tmp_path: Path) -> None:
    """A thief rewrites everything and signs it with a key of his own, under the log's name."""
    forged = AuditedLog(tmp_path / "forged.db")
    forged.write(SIZE, word="lies")
    note = forged.checkpoint(THIEF)
    found = verify(tmp_path / "check", forged.export(), note)
    assert found["status"] == 1
    assert {"signature", "checkpoint"} <= found["codes"]
    forged.close()
    # The true file, signed again by another key: the records are right and still nobody vouches for them.
    again = sign_checkpoint(checkpoint(ORIGIN, *log.tx.audit_head()), THIEF)
    assert verify(tmp_path / "check", log.export(), again)["codes"] == {"signature"}


def test_changed_checkpoints(log: AuditedLog, tmp_path: Path) -> None:
    note = log.tx.latest_checkpoint()
    for wrong, code in (
        (note.replace("\n40\n", "\n39\n"), "signature"), (note.replace(ORIGIN, "other.example/log"), "origin"), ("", "checkpoint"),
        ("nonsense", "checkpoint"), (note.partition("\n\n")[0] + "\n\n", "signature"), (note.replace("—", "-"), "checkpoint"),
    ):  # fmt: skip
        found = verify(tmp_path / "check", log.export(), wrong)
        assert found["status"] == 1, wrong
        assert code in found["codes"], wrong
    renamed = b"".join(export_lines("other.example/log", log.tx.audit_records(), ()))
    assert verify(tmp_path / "check", renamed, note)["codes"] == {"origin"}
    for damage in (
        lambda text: text.replace(b"\\n20\\n", b"\\n21\\n"),
        lambda text: text.replace(b'"checkpoint"', b'"checkpaint"', 1),
    ):
        found = verify(tmp_path / "check", damage(log.export()), note)
        assert found["status"] == 1
        assert found["codes"] & {"checkpoint", "malformed"}


def test_a_witness_must_have_cosigned(log: AuditedLog, tmp_path: Path) -> None:
    note = log.tx.latest_checkpoint()
    other = cosigned(log.tx.checkpoints()[0])
    moved = note + other.splitlines(keepends=True)[-1]  # the cosignature of another checkpoint
    late = cosigned(note)
    stranger = WITNESS.__class__("stranger.example", WITNESS.public, WITNESS.kind)
    for wrong, key in ((note, WITNESS), (moved, WITNESS), (late, stranger)):
        assert verify(tmp_path / "check", log.export(), wrong, witness=key.text)["codes"] == {"witness"}


ATTACKS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "edit": ("UPDATE audit_leaves SET leaf = CAST(replace(CAST(leaf AS TEXT), 'true', 'lies') AS BLOB) WHERE place = 23",
             lambda found: found["at"]["edited"] == 23 == found["at"]["root"]),
    "delete": ("DELETE FROM audit_leaves WHERE place = 23", lambda found: found["at"]["missing"] == 23),
    "truncate": ("DELETE FROM audit_leaves WHERE place >= 23", lambda found: found["at"]["truncated"] == 23),
    "empty": ("DELETE FROM audit_leaves", lambda found: found["at"]["truncated"] == 0),
    "swap": ("UPDATE audit_leaves SET place = -1 WHERE place = 3; UPDATE audit_leaves SET place = 3 WHERE place = 4; "
             "UPDATE audit_leaves SET place = 4 WHERE place = -1", lambda found: found["codes"] == {"root"}),
    "hash": ("UPDATE audit_leaves SET hash = zeroblob(32) WHERE place = 5", lambda found: found["at"] == {"edited": 5}),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_on_the_database(log: AuditedLog, tmp_path: Path, attack: str) -> None:
    """The owner of the database changes rows behind the store's back; the checkpoint is with the auditor."""
    note = log.tx.latest_checkpoint()
    statement, is_found = ATTACKS[attack]
    log.connection.executescript(statement)
    found = verify(tmp_path / "check", log.export(), note)
    assert found["status"] == 1
    assert is_found(found), found


def test_proofs_of_one_record(log: AuditedLog, tmp_path: Path) -> None:
    note, leaves = log.tx.latest_checkpoint(), log.tx.audit_records()
    key = verify_file.read_key(LOG.text)
    for leaf in leaves:
        bundle = prove(leaf, note, log.tx.audit_hash).decode()
        assert verify_file.check_proof(bundle, key) == []
    values = json.loads(prove(leaves[7], note, log.tx.audit_hash))
    thief = sign_checkpoint(checkpoint(ORIGIN, *log.tx.audit_head()), THIEF)
    for change, code in (
        ({"leaf": values["leaf"].replace("true", "lies")}, "proof"), ({"index": 8}, "proof"), ({"index": True}, "malformed"),
        ({"proof": values["proof"][1:]}, "proof"), ({"proof": values["proof"] * 20}, "proof"), ({"checkpoint": thief}, "signature"),
        ({"checkpoint": log.tx.checkpoints()[0]}, "proof"), ({"format": "x"}, "malformed"), ({"leaf": 1}, "malformed"),
        ({"proof": ["x"]}, "malformed"), ({"checkpoint": "x"}, "checkpoint"), ({"index": -1}, "proof"),
    ):  # fmt: skip
        assert {item.code for item in verify_file.check_proof(json.dumps({**values, **change}), key)} == {
            code
        }, change
    assert [item.code for item in verify_file.check_proof("[]", key)] == ["malformed"]
    assert [item.code for item in verify_file.check_proof("{", key)] == ["malformed"]
    unwitnessed = verify_file.check_proof(json.dumps(values), key, [verify_file.read_key(WITNESS.text)])
    assert [item.code for item in unwitnessed] == ["witness"]


def test_the_command(log: AuditedLog, tmp_path: Path) -> None:
    """Alone, as text, with its exit status; without what it needs it says that nothing was checked."""
    script = tmp_path / "verify_file.py"
    script.write_bytes(Path(verify_file.__file__).read_bytes())
    note = log.tx.latest_checkpoint()
    (tmp_path / "bundle.json").write_bytes(prove(log.tx.audit_records()[7], note, log.tx.audit_hash))
    (tmp_path / "public.key").write_text(LOG.text)
    (tmp_path / "wrong.key").write_text("nothing")
    (tmp_path / "export.jsonl").write_bytes(log.export())
    (tmp_path / "checkpoint.txt").write_text(note)

    def run(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-I", "-S", str(script), *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout

    assert run("--proof", "bundle.json", "public.key") == (0, f"1 record(s) of `{ORIGIN}`: as signed\n")
    assert run("export.jsonl", "checkpoint.txt", "public.key") == (
        0,
        f"40 record(s) of `{ORIGIN}`: as signed\n",
    )
    (tmp_path / "export.jsonl").write_bytes(log.export().replace(b'"true"', b'"lies"', 1))
    status, text = run("export.jsonl", "checkpoint.txt", "public.key")
    assert status == 1
    assert "edited: record 0 was edited\n" in text
    assert text.endswith("NOT as signed\n")
    for arguments in (
        ("export.jsonl", "checkpoint.txt"), ("export.jsonl", "checkpoint.txt", "wrong.key"), ("nowhere", "checkpoint.txt", "public.key"),
        ("export.jsonl", "nowhere", "public.key"), ("--proof", "bundle.json"), ("export.jsonl", "export.jsonl", "--what"), (),
        ("export.jsonl", "checkpoint.txt", "public.key", "--witness", "wrong.key"),
    ):  # fmt: skip
        assert run(*arguments)[0] == 2, arguments


def test_it_needs_nothing_but_the_standard_library() -> None:
    source = Path(verify_file.__file__).read_text(encoding="utf-8")
    names = re.findall(r"^(?:from|import) ([a-z_0-9]+)", source, re.MULTILINE)
    assert set(names) <= set(sys.stdlib_module_names)
    assert source.count("\n") <= 460, "it is meant to be read"


def test_only_records_of_their_kind_name_keys(log: AuditedLog) -> None:
    log.write(1, refs={"kind": "key", "key": "x"}, name='"kind":"key"')
    key = verify_file.read_key(LOG.text)
    assert verify_file.check_export(log.export().splitlines(), log.checkpoint(), key)[1] == []
    log.write(50, kind="key", refs={"key": LOG.text, "signature": "A" * 88})
    found = verify_file.check_export(log.export().splitlines(), log.checkpoint(), key)[1]
    assert [(item.code, item.record) for item in found] == [("key", SIZE + 1)]


def test_many_wrong_lines_are_told_shortly(log: AuditedLog, tmp_path: Path) -> None:
    lines, at = records(log.export())
    for index in at.values():
        lines[index] = b"garbage\n"
    found = verify(tmp_path / "check", b"".join(lines), log.tx.latest_checkpoint())
    assert "malformed" in found["codes"]
    assert len(found["findings"]) < 60
    backwards, at = records(log.export())
    backwards = [backwards[0], *reversed(backwards[1:])]
    found = verify(tmp_path / "check", b"".join(backwards), log.tx.latest_checkpoint())
    assert "reordered" in found["codes"]
    assert len(found["findings"]) < 100


def test_no_change_of_a_byte_and_no_move_of_a_record_is_missed(tmp_path: Path) -> None:
    log = AuditedLog(tmp_path / "small.db")
    log.write(6)
    log.checkpoint()
    log.write(3)
    note, export = log.checkpoint(), log.export()
    key = verify_file.read_key(LOG.text)

    def found(lines: list[bytes]) -> list[verify_file.Finding]:
        return verify_file.check_export(lines, note, key)[1]

    assert found(export.splitlines(keepends=True)) == []
    # In the last character of a signature's base64 there are unused bits: what it says does not change with them.
    unused = {at.start() for at in re.finditer(rb'.=\\n"\}', export)}
    for at in range(0, len(export), 23):
        for bit in (1, 32):
            changed = export[:at] + bytes([export[at] ^ bit]) + export[at + 1 :]
            assert found(changed.splitlines(keepends=True)) or at in unused, (at, export[at - 20 : at + 20])
    lines, places = records(export)
    for first in places.values():
        without = [line for at, line in enumerate(lines) if at != first]
        assert found(without)
        assert found(numbered(without).splitlines(keepends=True))
        for second in places.values():
            moved = list(without)
            moved.insert(second, lines[first])
            assert bool(found(moved)) == (first != second)
            assert bool(found(numbered(moved).splitlines(keepends=True))) == (first != second)
            twice = [*lines[:second], lines[first], *lines[second:]]
            assert found(twice)
            assert found(numbered(twice).splitlines(keepends=True))
    log.close()


@pytest.mark.parametrize(("statement", "word"), [
    ("UPDATE audit_leaves SET leaf = zeroblob(9) WHERE place = 23", "record 23 of the audit log was changed"),
    ("DELETE FROM audit_leaves WHERE place = 23", "record 23 of the audit log is missing"),
    ("DELETE FROM audit_leaves WHERE place > 38", "the head of the audit log"),
    ("UPDATE audit_hashes SET hash = zeroblob(32) WHERE level = 2 AND place = 3", "hash 3 on level 2"),
    ("DELETE FROM audit_head", "the head of the audit log"),
])  # fmt: skip
def test_damage_is_found_by_the_integrity_check(log: AuditedLog, statement: str, word: str) -> None:
    assert integrity(log.path) == []
    log.connection.execute(statement)
    (problem,) = integrity(log.path)
    assert word in problem
