"""The audit log on real runs, and every attack on a real copy of its database."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from perdure import Run, Runtime, agent, tool
from perdure.core.errors import ActionUnknownError, InputInvalidError
from perdure.core.principals import Principal
from perdure.governance import verify_file
from perdure.governance.checkpoints import Head, Signer
from perdure.governance.merkle import completed
from perdure.governance.sealed import digest
from perdure.runtime.auditing import PUBLIC, Verified


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
    assert (found.checkpoints >= 2, found.signed_size) == (True, found.size)

    async def look() -> None:
        async with Runtime.open(written, agents=[clerk], beside=True) as runtime:
            run = runtime.runs(agent="clerk")[-1].id
            records = runtime.audit.records(run=run)
            told = [(item["kind"], item.get("state", "")) for _, item in records]
            assert told == [
                ("intended", "intended"),
                ("ended", "succeeded"),
                ("intended", "intended"),
                ("ended", "failed"),
            ]
            assert records[3][1]["codes"] == ["tool-failed"]
            place, record = records[0]
            assert json.loads(runtime.audit.details(place)) == {"to": "a"}
            assert "ute" not in json.dumps(record), "who it is about is beside the log"
            kinds = [row.data["kind"] for row in runtime.store.read(lambda tx: list(tx.audit_rows()))]
            assert kinds.count("containment") == 2

    asyncio.run(look())
    assert (written / "audit.key").stat().st_mode & 0o077 == 0


# -- attacks: what somebody does who can write to the database
Attack = Callable[[sqlite3.Connection, Path], None]


def last(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT max(place) FROM audit").fetchone()[0])


def edit(connection: sqlite3.Connection, _: Path) -> None:
    connection.execute(
        "UPDATE audit SET leaf = CAST(replace(CAST(leaf AS TEXT), 'failed', 'succeeded') AS BLOB) WHERE place = 3"
    )


def delete(connection: sqlite3.Connection, _: Path) -> None:
    connection.execute("DELETE FROM audit WHERE place = 1")


def insert(connection: sqlite3.Connection, _: Path) -> None:
    connection.execute(
        "INSERT INTO audit SELECT max(place) + 1, '', 0, x'7b226b696e64223a226b6579227d' FROM audit"
    )


def reorder(connection: sqlite3.Connection, _: Path) -> None:
    for old, new in ((0, -1), (2, 0), (-1, 2)):
        connection.execute("UPDATE audit SET place = ? WHERE place = ?", (new, old))


def truncate(connection: sqlite3.Connection, _: Path) -> None:
    connection.execute("DELETE FROM audit WHERE place >= ?", (last(connection) - 2,))


def empty(connection: sqlite3.Connection, _: Path) -> None:
    for table in ("audit", "audit_nodes"):
        connection.execute(f"DELETE FROM {table}")


def rehash(connection: sqlite3.Connection) -> bytes:
    """Make the stored hashes fit the leaves again; the new root over all."""
    from perdure.governance.merkle import root

    connection.execute("DELETE FROM audit_nodes")
    kept: dict[tuple[int, int], bytes] = {}
    for place, leaf in connection.execute("SELECT place, leaf FROM audit ORDER BY place").fetchall():
        for level, index, found in completed(place, leaf, lambda *at: kept[at]):
            kept[level, index] = found
            connection.execute("INSERT INTO audit_nodes VALUES (?, ?, ?)", (level, index, found))
    return root(last(connection) + 1, lambda *at: kept[at])


def edit_and_rehash(connection: sqlite3.Connection, path: Path) -> None:
    edit(connection, path)
    rehash(connection)


def cut_cleanly(connection: sqlite3.Connection, path: Path) -> None:
    truncate(connection, path)
    rehash(connection)


def sign_with_another_key(connection: sqlite3.Connection, path: Path) -> None:
    """Rewrites everything and signs it with a key of its own."""
    edit(connection, path)
    found = rehash(connection)
    name = (path / PUBLIC).read_text().partition("+")[0]
    signer = Signer(name, bytes(32))
    connection.execute("DELETE FROM audit_checkpoints")
    size = last(connection) + 1
    connection.execute(
        "INSERT INTO audit_checkpoints VALUES (?, ?, 1)", (size, signer.sign(Head(name, size, found)))
    )


def change_the_ledger(connection: sqlite3.Connection, _: Path) -> None:
    connection.execute("UPDATE actions SET state = 'succeeded' WHERE state = 'failed'")


def drop_from_the_ledger(connection: sqlite3.Connection, _: Path) -> None:
    connection.execute("DELETE FROM actions WHERE call = 2")


def drop_the_signatures(connection: sqlite3.Connection, _: Path) -> None:
    connection.execute("DELETE FROM audit_checkpoints")


ATTACKS: dict[str, tuple[Attack, str]] = {
    "edit": (edit, "record 3 is not what was written"),
    "delete": (delete, "record 1 is missing"),
    "insert": (insert, "is not what was written"),
    "reorder": (reorder, "record 0 is not what was written"),
    "truncate": (truncate, "cut off"),
    "empty": (empty, "cut off"),
    "edit and rehash": (edit_and_rehash, "not those that were signed"),
    "cut and rehash": (cut_cleanly, "cut off"),
    "another key": (sign_with_another_key, "not signed with the key"),
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
    assert any(match in problem for problem in found.problems), found.problems


def test_only_what_was_kept_elsewhere_shows_an_older_copy_and_a_swapped_key(
    written: Path, tmp_path: Path
) -> None:
    """Who has the whole directory, key included, can do this; the threat model says so."""
    copy = tmp_path / "copy"
    shutil.copytree(written, copy)

    async def checkpoint() -> tuple[str, str]:
        async with Runtime.open(written, agents=[clerk], beside=True) as runtime:
            return await runtime.audit.checkpoint(), runtime.audit.verifier()

    kept, key = asyncio.run(checkpoint())
    with closing(sqlite3.connect(copy / "perdure.db", isolation_level=None)) as connection:
        sign_with_another_key(connection, copy)
        connection.execute("UPDATE actions SET state = 'succeeded' WHERE state = 'failed'")
    secret = json.loads((copy / "audit.key").read_text())
    (copy / "audit.key").write_text(json.dumps({**secret, "log": bytes(32).hex()}))
    assert verified(copy).problems == [], "a rewritten log with its own key is whole in itself"
    assert verified(copy, key=key).problems
    assert any("rewritten or forked" in item for item in verified(copy, known=kept).problems)
    older = tmp_path / "older"
    shutil.copytree(written, older)
    with closing(sqlite3.connect(older / "perdure.db", isolation_level=None)) as connection:
        size = connection.execute("SELECT min(size) FROM audit_checkpoints").fetchone()[0]
        connection.execute("DELETE FROM audit_checkpoints WHERE size > ?", (size,))
        connection.execute("DELETE FROM audit WHERE place >= ?", (size,))
        connection.execute("DELETE FROM actions WHERE run <> (SELECT min(run) FROM actions)")
        rehash(connection)
    assert verified(older).problems == []
    assert any("cut off" in item for item in verified(older, known=kept).problems)


# -- the verifier of one file
def exported(path: Path, form: Any = "jsonl") -> list[str]:
    async def work() -> list[str]:
        async with Runtime.open(path, agents=[clerk], beside=True) as runtime:
            await runtime.audit.checkpoint()
            return list(runtime.audit.export(form))

    return asyncio.run(work())


def check(folder: Path, lines: list[str], key: str, *more: str) -> subprocess.CompletedProcess[str]:
    """Run the file by itself, without Perdure in sight."""
    script = folder / "verify_file.py"
    shutil.copy(verify_file.__file__, script)
    (folder / "log.jsonl").write_text("\n".join(lines))
    command = [sys.executable, "-I", "-S", str(script), str(folder / "log.jsonl"), "--key", key, *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_file_for_auditors_checks_an_export(written: Path, tmp_path: Path) -> None:
    key = (written / PUBLIC).read_text().strip()
    lines = exported(written)
    found = check(tmp_path, lines, key)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("whole: ")
    leaves = [number for number, line in enumerate(lines) if '"leaf"' in line]
    notes = [number for number, line in enumerate(lines) if '"checkpoint"' in line]
    swapped = [*lines]
    swapped[leaves[0]], swapped[leaves[1]] = lines[leaves[1]], lines[leaves[0]]
    first = "\n".join(lines).replace("intended", "INTENDED", 1).split("\n")
    attacks = {
        "edit": first,
        "delete": [line for number, line in enumerate(lines) if number != leaves[1]],
        "swap": swapped,
        "cut": [line for number, line in enumerate(lines) if number != leaves[-1]],
        "unsigned": [line for number, line in enumerate(lines) if number not in notes],
        "added": [*lines, json.dumps({"leaf": "{}"})],
    }
    for name, changed in attacks.items():
        found = check(tmp_path, changed, key)
        assert (found.returncode, "NOT WHOLE" in found.stdout) == (1, True), name
    other = Signer(key.partition("+")[0], bytes(32)).verifier
    assert check(tmp_path, lines, other).returncode == 1
    (tmp_path / "kept.txt").write_text(json.loads(lines[notes[-1]])["checkpoint"])
    earlier = [line for number, line in enumerate(lines) if number not in (notes[-1], leaves[-1])]
    found = check(tmp_path, earlier, key, "--checkpoint", str(tmp_path / "kept.txt"))
    assert "cut off or rolled back" in found.stdout
    assert check(tmp_path, ["no json"], key).returncode == 2
    assert check(tmp_path, lines, "nonsense").returncode == 2


def test_the_proof_of_one_action_is_checked_without_the_log(written: Path, tmp_path: Path) -> None:
    key = (written / PUBLIC).read_text().strip()

    async def work() -> dict[str, Any]:
        async with Runtime.open(written, agents=[clerk], beside=True) as runtime:
            with pytest.raises(ActionUnknownError):
                await runtime.audit.prove("nothing/1")
            run = runtime.runs(agent="clerk")[0].id
            return await runtime.audit.prove(f"{run}/2")

    bundle = asyncio.run(work())
    assert [json.loads(item["leaf"])["kind"] for item in bundle["records"]] == ["intended", "ended"]
    assert check(tmp_path, [json.dumps(bundle)], key).returncode == 0
    forged = json.dumps(bundle).replace("succeeded", "failed")
    found = check(tmp_path, [forged], key)
    assert (found.returncode, "is not in the log" in found.stdout) == (1, True)
    other = {**bundle, "action": "other/2"}
    assert "about another action" in check(tmp_path, [json.dumps(other)], key).stdout


def test_erasing_a_subject_leaves_the_log_whole(written: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(written, copy)

    async def work() -> None:
        async with Runtime.open(copy, agents=[clerk], beside=True) as runtime:
            place = next(
                row.index
                for row in runtime.store.read(lambda tx: list(tx.audit_rows()))
                if row.data.get("sealed")
            )
            record = runtime.store.read(lambda tx: tx.audit_sealed(place))
            assert record is not None
            assert digest(record[1]) == next(
                row.data["sealed"]
                for row in runtime.store.read(lambda tx: list(tx.audit_rows()))
                if row.index == place
            )
            runtime.audit.details(place)
            assert await runtime.audit.erase("user:ute", by="anna", reason="asked for")
            assert not await runtime.audit.erase("user:ute", by="anna")
            with pytest.raises(InputInvalidError, match="were erased"):
                runtime.audit.details(place)
            await runtime.audit.checkpoint()
            assert runtime.audit.verify().problems == []

    asyncio.run(work())


def test_other_forms(written: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    events = [json.loads(line) for line in exported(written, "ocsf")]
    assert {event["class_uid"] for event in events} == {6003}
    assert {event["type_uid"] for event in events} == {600399}
    assert all(
        event["category_uid"] == 6 and event["time"] and event["metadata"]["version"] for event in events
    )
    key = (written / PUBLIC).read_text().strip()
    public = Ed25519PublicKey.from_public_bytes(verify_file.read_key(key)[1])
    for line in exported(written, "dsse"):
        envelope = json.loads(line)
        payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"].encode()
        signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
        public.verify(base64.b64decode(envelope["signatures"][0]["sig"]), signed)
