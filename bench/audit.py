"""Measure of the audit log: appending through the real store, verifying an export, proving one record.

python -m bench.audit [--records 1000000]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from perdure.core.audit import AuditRecord
from perdure.governance import verify_file
from perdure.governance.checkpoints import checkpoint, sign_checkpoint
from perdure.governance.exports import export_lines, paged
from perdure.governance.merkle import inclusion_proof, leaf_hash, verify_inclusion
from perdure.governance.notes import VerifierKey
from perdure.stores.sqlite import SqliteStore

ORIGIN = "bench.example/log"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
BATCHES = (1, 10, 100, 1_000)
BATCH_S = 2.0
PAGE = 10_000


def record(number: int) -> AuditRecord:
    """As a governed tool call writes it."""
    return AuditRecord(
        kind="judged", at_ms=1_790_000_000_000 + number, run=f"01JB{number // 40:022d}", call=number % 40, agent="desk",
        what="tool", name="payments.transfer", verdict="allow", codes=("policy-permits", "rule-7"),
        policy="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", tier="namespace",
    )  # fmt: skip


async def measure(directory: Path, *, records: int = 1_000_000) -> dict[str, Any]:
    """Rates of durable appends by batch, then the times at ``records`` records."""
    store = SqliteStore(directory / "bench.db")
    count = 0
    rates: dict[str, float] = {}
    for batch in BATCHES:
        before, began = count, time.perf_counter()
        while time.perf_counter() - began < BATCH_S:
            # Each is a work of its own; those that wait together share a commit, as in the runtime.
            works = [store.transact(lambda tx, n=count + at: tx.audit(record(n))) for at in range(batch)]
            await asyncio.gather(*works)
            count += batch
        rates[str(batch)] = (count - before) / (time.perf_counter() - began)
    cost = await store.transact(lambda tx: _cost(tx, count, 20_000))
    count += 20_000
    began, first = time.perf_counter(), count
    while count < records:
        many = min(PAGE, records - count)
        await store.transact(lambda tx, n=count, many=many: [tx.audit(record(n + at)) for at in range(many)])
        count += many
    result: dict[str, Any] = {
        "records": count, "append_per_s_by_batch": rates, "append_us": cost,
        "append_per_s_in_one_work": (count - first) / (time.perf_counter() - began),
    }  # fmt: skip
    began = time.perf_counter()
    note = sign_checkpoint(checkpoint(ORIGIN, *store.read(lambda tx: tx.audit_head())), KEY)
    await store.transact(lambda tx: tx.put_checkpoint(note))
    result["checkpoint_us"] = (time.perf_counter() - began) * 1e6
    result["inclusion"] = store.read(lambda tx: _proofs(tx, count))
    result["database_bytes"] = (directory / "bench.db").stat().st_size
    result |= _verify(directory, store, note)
    await store.close()
    return result


def _cost(tx: Any, count: int, many: int) -> dict[str, float]:
    """Microseconds per record, and how much of that is the row alone; the rows are taken back."""
    execute = tx._execute
    began = time.perf_counter()
    for number in range(count, count + many):
        tx.audit(record(number))
    whole = (time.perf_counter() - began) / many * 1e6
    leaves = [(leaf.index + many, leaf.leaf, leaf.hash) for leaf in tx.audit_records(count - 1)]
    execute("SAVEPOINT rows")
    began = time.perf_counter()
    for number, (place, leaf, hashed) in enumerate(leaves):
        made = record(count + number)  # making it belongs to the caller
        execute("INSERT INTO audit_leaves VALUES (?, ?, ?, ?, ?)", (place, leaf, hashed, made.run, made.call))
    row = (time.perf_counter() - began) / many * 1e6
    execute("ROLLBACK TO rows")
    execute("RELEASE rows")
    return {"whole": whole, "row": row, "beyond_row": whole - row}


def _proofs(tx: Any, count: int) -> dict[str, float]:
    """Microseconds to make and to check the proof of a record, in a log of ``count``."""
    chance = random.Random(7)
    size, root = tx.audit_head()
    making, checking = [], []
    for index in (chance.randrange(count) for _ in range(500)):
        leaf = tx.audit_records(index - 1, 1)[0].leaf
        began = time.perf_counter()
        proof = inclusion_proof(tx.audit_hash, index, size)
        made = time.perf_counter()
        assert verify_inclusion(leaf_hash(leaf), index, size, proof, root)
        checking.append((time.perf_counter() - made) * 1e6)
        making.append((made - began) * 1e6)
    return {
        "make_p50_us": statistics.median(making), "make_p99_us": statistics.quantiles(making, n=100)[98],
        "check_p50_us": statistics.median(checking),
    }  # fmt: skip


def _verify(directory: Path, store: SqliteStore, note: str) -> dict[str, float]:
    """Export everything, then run the verifier on its own, as an auditor does."""
    export = directory / "export.jsonl"
    began = time.perf_counter()
    with export.open("wb") as file:
        store.read(
            lambda tx: file.writelines(export_lines(ORIGIN, paged(tx.audit_records), tx.checkpoints()))
        )
    exported = time.perf_counter()
    (directory / "checkpoint.txt").write_text(note)
    (directory / "public.key").write_text(VerifierKey.of(ORIGIN, KEY).text)
    script = Path(verify_file.__file__)
    files = [str(export), str(directory / "checkpoint.txt"), str(directory / "public.key")]
    subprocess.run([sys.executable, "-I", "-S", str(script), *files], check=True, capture_output=True)
    return {
        "export_s": exported - began, "verify_s": time.perf_counter() - exported, "export_bytes": export.stat().st_size,
    }  # fmt: skip


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(measure(Path(folder), records=chosen.records)), indent=1))


if __name__ == "__main__":
    main()
