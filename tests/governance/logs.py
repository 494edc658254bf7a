"""A real audit log for the tests: a database with records and checkpoints, exported to files."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from perdure.core.audit import AuditRecord
from perdure.governance import verify_file
from perdure.governance.checkpoints import add_cosignatures, checkpoint, cosign, sign_checkpoint
from perdure.governance.exports import export_lines
from perdure.governance.notes import COSIGNS, VerifierKey, parse_note
from perdure.stores.sqlite.schema import open_connection
from perdure.stores.sqlite.transaction import SqliteTransaction

LOG_KEY = Ed25519PrivateKey.from_private_bytes(b"l" * 32)
WITNESS_KEY = Ed25519PrivateKey.from_private_bytes(b"w" * 32)
THIEF = Ed25519PrivateKey.from_private_bytes(b"t" * 32)
ORIGIN = "perdure.example/log"
LOG = VerifierKey.of(ORIGIN, LOG_KEY)
WITNESS = VerifierKey.of("witness.example/w1", WITNESS_KEY, COSIGNS)


class AuditedLog:
    """A database that is written to and exported."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection = open_connection(path)
        self.tx = SqliteTransaction(self.connection)

    def write(self, count: int, *, word: str = "true", **fields: Any) -> None:
        """More records."""
        size, _ = self.tx.audit_head()
        self.connection.execute("BEGIN")
        for number in range(size, size + count):
            values = {
                "kind": "ended",
                "run": f"r{number % 7}",
                "call": number,
                "name": word,
                "state": "succeeded",
                **fields,
            }
            self.tx.audit(AuditRecord(at_ms=1_000 + number, **values))
        self.connection.execute("COMMIT")

    def checkpoint(self, key: Ed25519PrivateKey = LOG_KEY, at_ms: int | None = None) -> str:
        """Sign what there is."""
        note = sign_checkpoint(checkpoint(ORIGIN, *self.tx.audit_head(), at_ms), key)
        self.tx.put_checkpoint(note)
        return note

    def export(self, origin: str = ORIGIN) -> bytes:
        """The whole file."""
        return b"".join(export_lines(origin, self.tx.audit_records(), self.tx.checkpoints()))

    def copy(self, path: Path) -> AuditedLog:
        """An older copy, or one that goes another way."""
        other = sqlite3.connect(path)
        self.connection.backup(other)
        other.close()
        return AuditedLog(path)

    def close(self) -> None:
        self.connection.close()


def cosigned(note: str, time_s: int = 1_790_000_000) -> str:
    """As the witness gives it back."""
    line = cosign(parse_note(note).body, WITNESS.name, WITNESS_KEY, time_s)
    return add_cosignatures(note, [line], [WITNESS])


def verify(
    folder: Path,
    export: bytes,
    note: str,
    *,
    key: str = LOG.text,
    seen: tuple[str, ...] = (),
    witness: str = "",
) -> dict:
    """Run the verifier as an auditor does: alone, without this package and without site packages."""
    folder.mkdir(exist_ok=True)
    script = folder / "verify_file.py"
    script.write_bytes(Path(verify_file.__file__).read_bytes())
    (folder / "export.jsonl").write_bytes(export)
    (folder / "checkpoint.txt").write_text(note, encoding="utf-8")
    (folder / "public.key").write_text(key + "\n", encoding="utf-8")
    command = [
        sys.executable,
        "-I",
        "-S",
        str(script),
        "export.jsonl",
        "checkpoint.txt",
        "public.key",
        "--json",
    ]
    for number, text in enumerate(seen):
        (folder / f"seen{number}.txt").write_text(text, encoding="utf-8")
        command += ["--seen", f"seen{number}.txt"]
    if witness:
        (folder / "witness.key").write_text(witness, encoding="utf-8")
        command += ["--witness", "witness.key"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    if done.returncode == 2:
        return {"status": 2, "error": done.stderr, "codes": set(), "at": {}}
    found = json.loads(done.stdout)
    assert found["ok"] == (done.returncode == 0), done
    codes = {item["code"] for item in found["findings"]}
    at = {item["code"]: item["record"] for item in reversed(found["findings"])}
    return {**found, "status": done.returncode, "codes": codes, "at": at}
