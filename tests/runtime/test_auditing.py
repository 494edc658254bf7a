"""The audit log on real runs, and every attack on a real copy of its database."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from perdure import Run, Runtime, agent, tool
from perdure.core.errors import ActionUnknownError, InputInvalidError
from perdure.core.principals import Principal
from perdure.governance import verify_file
from perdure.governance.checkpoints import checkpoint, sign_checkpoint
from perdure.governance.exports import open_envelope
from perdure.governance.merkle import Frontier, leaf_hash
from perdure.governance.notes import VerifierKey
from perdure.runtime.log_keys import PUBLIC
from perdure.runtime.verifying import Verified


@tool
async def pay(to: str) -> str:
    """Pay."""
    if to == "nobody":
        raise ValueError("no such account")
    return f"paid {to}"


@agent("clerk", tools=[pay])
async def clerk(run: Run, names: list[str]) -> int:
    for name in names:
        try:
            await run.act(pay, to=name)
        except Exception:  # noqa: BLE001 - the log is what is looked at
            continue
    return len(names)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with two signed heads."""
    path = tmp_path_factory.mktemp("audit") / "data"

    async def write() -> None:
        for names in (["a", "nobody"], ["b", "c"]):
            async with Runtime.open(path, agents=[clerk]) as runtime:
                handle = await runtime.start(
                    "clerk", {"names": names}, principals=[Principal(kind="user", name="ute")]
                )
                await handle.result()
                await runtime.containment.set("tool:x", "watch", by="anna", reason="a test")

    asyncio.run(write())
    return path


def verified(path: Path, **options: Any) -> Verified:
    async def work() -> Verified:
        async with Runtime.open(path, agents=[clerk], beside=True) as runtime:
            return runtime.audit.verify(**options)

    return asyncio.run(work())


def test_the_log_tells_what_happened_and_is_whole(written: Path) -> None:
    found = verified(written)
    assert found.problems == []
    assert found.signed == found.size > 5

    async def look() -> None:
        async with Runtime.open(written, agents=[clerk], beside=True) as runtime:
            run = runtime.runs(agent="clerk")[-1].id
            leaves = runtime.audit.records(run=run)
            records = [leaf.record for leaf in leaves]
            told = [(item.kind, item.state, item.verdict) for item in records]
            assert told == [
                ("intended", "intended", "allow"), ("ended", "succeeded", ""), ("intended", "intended", "allow"),
                ("ended", "failed", ""),
            ]  # fmt: skip
            assert records[3].codes == ("tool-failed",)
            assert json.loads(runtime.audit.details(leaves[0].index)) == {"to": "a"}
            assert b"ute" not in leaves[0].leaf, "who it is about is beside the log"
            kinds = [leaf.record.kind for leaf in runtime.store.read(lambda tx: tx.audit_records())]
            assert kinds.count("containment") == 2

    asyncio.run(look())
    assert (written / "audit.key").stat().st_mode & 0o077 == 0


# -- attacks: what somebody does who can write to the database
Attack = Callable[[sqlite3.Connection, Path], None]


def last(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT max(place) FROM audit_leaves").fetchone()[0])


def edit(connection: sqlite3.Connection, _: Path) -> None:
    connection.execute(
        "UPDATE audit_leaves SET leaf = CAST(replace(CAST(leaf AS TEXT), 'failed', 'broken') AS BLOB) WHERE place = 3"
    )


def delete(connection: sqlite3.Connection, _: Path) -> None:
    connection.execute("DELETE FROM audit_leaves WHERE place = 1")


def reorder(connection: sqlite3.Connection, _: Path) -> None:
    for old, new in ((0, -1), (2, 0), (-1, 2)):
        connection.execute("UPDATE audit_leaves SET place = ? WHERE place = ?", (new, old))


def truncate(connection: sqlite3.Connection, _: Path) -> None:
    connection.execute("DELETE FROM audit_leaves WHERE place >= ?", (last(connection) - 2,))


def empty(connection: sqlite3.Connection, _: Path) -> None:
    for table in ("audit_leaves", "audit_hashes"):
        connection.execute(f"DELETE FROM {table}")


def rehash(connection: sqlite3.Connection) -> tuple[int, bytes]:
    """Make every stored hash fit the leaves again; size and root."""
    frontier = Frontier(0, b"")
    connection.execute("DELETE FROM audit_hashes")
    for place, leaf in connection.execute("SELECT place, leaf FROM audit_leaves ORDER BY place").fetchall():
        connection.execute("UPDATE audit_leaves SET hash = ? WHERE place = ?", (leaf_hash(leaf), place))
        frontier, nodes = frontier.append(leaf_hash(leaf))
        connection.executemany("INSERT INTO audit_hashes VALUES (?, ?, ?)", nodes)
    connection.execute("UPDATE audit_head SET size = ?, edge = ?", (frontier.size, frontier.edge))
    return frontier.size, frontier.root


def edit_and_rehash(connection: sqlite3.Connection, path: Path) -> None:
    edit(connection, path)
    rehash(connection)


def cut_cleanly(connection: sqlite3.Connection, path: Path) -> None:
    truncate(connection, path)
    rehash(connection)


def sign_with_another_key(connection: sqlite3.Connection, path: Path) -> None:
    """Rewrites everything and signs it with a key of its own."""
    connection.execute(
        "UPDATE audit_leaves SET leaf = CAST(replace(CAST(leaf AS TEXT), 'tool-failed', 'no-money') AS BLOB)"
    )
    size, found = rehash(connection)
    name = (path / PUBLIC).read_text().partition("+")[0]
    made = checkpoint(name, size, found, 1)
    connection.execute("DELETE FROM audit_checkpoints")
    connection.execute(
        "INSERT INTO audit_checkpoints (size, body, note) VALUES (?, ?, ?)",
        (size, made.body, sign_checkpoint(made, Ed25519PrivateKey.from_private_bytes(bytes(32)))),
    )


def change_the_ledger(connection: sqlite3.Connection, _: Path) -> None:
    connection.execute("UPDATE actions SET state = 'succeeded' WHERE state = 'failed'")


def drop_from_the_ledger(connection: sqlite3.Connection, _: Path) -> None:
    connection.execute("DELETE FROM actions WHERE call = 2")


def drop_the_signatures(connection: sqlite3.Connection, _: Path) -> None:
    connection.execute("DELETE FROM audit_checkpoints")


ATTACKS: dict[str, tuple[Attack, str]] = {
    "edit": (edit, "record 3 was edited|record 3 does not have the hash"),
    "delete": (delete, "records 1 to 1 none is there"),
    "reorder": (reorder, "root that the log signed for"),
    "truncate": (truncate, "were signed and the file ends after"),
    "empty": (empty, "were signed and the file ends after"),
    "edit and rehash": (edit_and_rehash, "do not give the root that the log signed"),
    "cut and rehash": (cut_cleanly, "were signed and the file ends after"),
    "another key": (sign_with_another_key, "sign"),
    "the ledger": (change_the_ledger, "`succeeded` in the ledger and `failed` in the log"),
    "a row of the ledger": (drop_from_the_ledger, "the ledger does not have it"),
    "no signatures": (drop_the_signatures, "no head of the log is signed"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_seen(written: Path, tmp_path: Path, name: str) -> None:
    attack, match = ATTACKS[name]
    copy = tmp_path / "copy"
    shutil.copytree(written, copy)
    with closing(sqlite3.connect(copy / "perdure.db", isolation_level=None)) as connection:
        attack(connection, copy)
    found = verified(copy)
    assert any(re.search(match, problem) for problem in found.problems), found.problems


def test_only_what_was_kept_elsewhere_shows_a_swapped_key_and_an_older_copy(
    written: Path, tmp_path: Path
) -> None:
    """Who has the whole directory, key included, can do this; the threat model says so."""
    copy = tmp_path / "copy"
    shutil.copytree(written, copy)

    async def keep() -> tuple[str, str]:
        async with Runtime.open(written, agents=[clerk], beside=True) as runtime:
            return await runtime.audit.checkpoint(), runtime.audit.verifier()

    kept, key = asyncio.run(keep())
    with closing(sqlite3.connect(copy / "perdure.db", isolation_level=None)) as connection:
        sign_with_another_key(connection, copy)
    secret = json.loads((copy / "audit.key").read_text())
    (copy / "audit.key").write_text(json.dumps({**secret, "log": bytes(32).hex()}))
    assert verified(copy).problems == [], "a rewritten log with its own key is whole in itself"
    assert verified(copy, key=key).problems
    assert verified(copy, known=kept).problems
    older = tmp_path / "older"
    shutil.copytree(written, older)
    with closing(sqlite3.connect(older / "perdure.db", isolation_level=None)) as connection:
        size = connection.execute("SELECT min(size) FROM audit_checkpoints").fetchone()[0]
        connection.execute("DELETE FROM audit_checkpoints WHERE size > ?", (size,))
        connection.execute("DELETE FROM audit_leaves WHERE place >= ?", (size,))
        connection.execute("DELETE FROM actions WHERE run <> (SELECT min(run) FROM actions)")
        rehash(connection)
    assert verified(older).problems == []
    assert any("were signed and the file ends after" in item for item in verified(older, known=kept).problems)


# -- the verifier of one file
def exported(path: Path, form: Any = "jsonl") -> tuple[list[bytes], str]:
    async def work() -> tuple[list[bytes], str]:
        async with Runtime.open(path, agents=[clerk], beside=True) as runtime:
            note = await runtime.audit.checkpoint()
            return list(runtime.audit.export(form)), note

    return asyncio.run(work())


def check(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the file by itself, without Perdure in sight."""
    script = folder / "verify_file.py"
    shutil.copy(verify_file.__file__, script)
    command = [sys.executable, "-I", "-S", str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


def test_the_file_for_auditors_checks_an_export_and_a_proof(written: Path, tmp_path: Path) -> None:
    lines, note = exported(written)
    (tmp_path / "log.jsonl").write_bytes(b"".join(lines))
    (tmp_path / "note.txt").write_text(note)
    shutil.copy(written / PUBLIC, tmp_path / "key")
    assert check(tmp_path, "log.jsonl", "note.txt", "key").returncode == 0
    (tmp_path / "log.jsonl").write_bytes(b"".join(lines).replace(b"tool-failed", b"tool-denied", 1))
    assert check(tmp_path, "log.jsonl", "note.txt", "key").returncode == 1

    async def prove() -> bytes:
        async with Runtime.open(written, agents=[clerk], beside=True) as runtime:
            with pytest.raises(ActionUnknownError):
                await runtime.audit.prove("nothing/1")
            run = runtime.runs(agent="clerk")[0].id
            return await runtime.audit.prove(f"{run}/2")

    bundle = asyncio.run(prove())
    assert json.loads(json.loads(bundle)["leaf"])["kind"] == "ended"
    (tmp_path / "proof.json").write_bytes(bundle)
    assert check(tmp_path, "--proof", "proof.json", "key").returncode == 0
    (tmp_path / "proof.json").write_bytes(bundle.replace(b"succeeded", b"failed"))
    assert check(tmp_path, "--proof", "proof.json", "key").returncode == 1


def test_erasing_a_subject_leaves_the_log_whole(written: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(written, copy)

    async def work() -> None:
        async with Runtime.open(copy, agents=[clerk], beside=True) as runtime:
            leaves = runtime.store.read(lambda tx: tx.audit_records())
            place = next(leaf.index for leaf in leaves if leaf.record.sealed)
            runtime.audit.details(place)
            assert await runtime.audit.erase("user:ute", by="anna", reason="asked for")
            assert not await runtime.audit.erase("user:ute", by="anna")
            with pytest.raises(InputInvalidError, match="were erased"):
                runtime.audit.details(place)
            await runtime.audit.checkpoint()
            assert runtime.audit.verify().problems == []

    asyncio.run(work())


def test_other_forms(written: Path) -> None:
    events = [json.loads(line) for line in exported(written, "ocsf")[0]]
    assert {event["class_uid"] for event in events} == {6003}
    [envelope] = exported(written, "dsse")[0]
    key = VerifierKey.parse((written / PUBLIC).read_text().strip())
    statement = json.loads(open_envelope(envelope, key))
    assert len(statement["subject"]) == len(events)
