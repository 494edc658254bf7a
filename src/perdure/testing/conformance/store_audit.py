"""What every ``Store`` must do, fourth part: the audit log, its tree, checkpoints and sealed details."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from perdure.core.audit import AuditRecord, encode_record
from perdure.core.errors import AuditInvalidError, BrokenInvariantError, InputInvalidError
from perdure.governance import merkle
from perdure.governance.checkpoints import checkpoint, cosign, sign_checkpoint
from perdure.governance.notes import parse_note
from perdure.governance.sealed import sealed_digest
from perdure.ports import Store, Transaction
from perdure.testing.conformance.checks import check, refused, same

T = Transaction
_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def _record(number: int, **fields: Any) -> AuditRecord:
    return AuditRecord(**{"kind": "judged", "at_ms": number, "run": "r", "call": number, **fields})


def _root(leaves: list[bytes]) -> bytes:
    """The root as RFC 6962 defines it, the slow way."""
    if len(leaves) < 2:
        return merkle.leaf_hash(leaves[0]) if leaves else merkle.EMPTY_ROOT
    half = 1 << ((len(leaves) - 1).bit_length() - 1)
    return merkle.node_hash(_root(leaves[:half]), _root(leaves[half:]))


def _note(origin: str, size: int, root: bytes, at_ms: int | None = None) -> str:
    return sign_checkpoint(checkpoint(origin, size, root, at_ms), _KEY)


async def records_come_back_as_they_were_written(store: Store) -> None:
    """Every field, in order; by run and by call."""
    full = AuditRecord(
        kind="ended", at_ms=7, run="s", call=3, agent="a", what="tool", name="t", verdict="hold", codes=("c", "é"),
        policy="p", state="succeeded", tier="gvisor", by="ann", jti="j", refs={"b": "2", "a": "1"},
    )  # fmt: skip
    written = [_record(1), full, _record(2), _record(1, at_ms=9), AuditRecord(kind="policy", at_ms=5)]
    places = await store.transact(lambda tx: [tx.audit(record) for record in written])
    same(places, [0, 1, 2, 3, 4], "they are numbered from 0")
    leaves = store.read(lambda tx: tx.audit_records())
    same([leaf.record for leaf in leaves], written, "every field, in order")
    same([leaf.leaf for leaf in leaves], [encode_record(record) for record in written], "the bytes as hashed")
    same([leaf.hash for leaf in leaves], [merkle.leaf_hash(leaf.leaf) for leaf in leaves], "and their hashes")
    same(store.read(lambda tx: tx.audit_records(1, 2)), leaves[2:4], "after a place, at most two")
    same([leaf.index for leaf in store.read(lambda tx: tx.audit_of("r"))], [0, 2, 3], "of a run")
    same([leaf.index for leaf in store.read(lambda tx: tx.audit_of("r", 1))], [0, 3], "of a call")
    same(store.read(lambda tx: tx.audit_of("")), [], "what is of no run is found by its place only")


async def the_tree_is_that_of_the_records(store: Store) -> None:
    """Root and proofs at every size, whether the records came alone or together."""
    same(store.read(lambda tx: tx.audit_head()), (0, merkle.EMPTY_ROOT), "an empty log has a root too")
    leaves: list[bytes] = []
    for size in (1, 2, 5, 1, 9, 3):
        records = [_record(len(leaves) + number) for number in range(size)]
        await store.transact(lambda tx, records=records: [tx.audit(record) for record in records])  # type: ignore[misc]
        leaves += [encode_record(record) for record in records]
        same(
            store.read(lambda tx: tx.audit_head()), (len(leaves), _root(leaves)), "the root over all of them"
        )
    roots = [_root(leaves[:size]) for size in range(len(leaves) + 1)]

    def prove(tx: T) -> None:
        total = len(leaves)
        for size in range(1, total + 1):
            same(merkle.root_at(tx.audit_hash, size), roots[size], "the root of every earlier size")
            path = merkle.consistency_proof(tx.audit_hash, size, total)
            check(
                merkle.verify_consistency(size, roots[size], total, roots[total], path),
                "it extends each of them",
            )
        for index, leaf in enumerate(leaves):
            path = merkle.inclusion_proof(tx.audit_hash, index, total)
            found = merkle.verify_inclusion(merkle.leaf_hash(leaf), index, total, path, roots[total])
            check(found, "each record is in it")

    store.read(prove)
    for level, index in ((0, len(leaves)), (1, len(leaves) // 2), (5, 0)):
        with refused(AuditInvalidError, "a subtree that is not full has no hash"):
            store.read(lambda tx, at=(level, index): tx.audit_hash(*at))  # type: ignore[misc]


async def a_work_that_is_undone_leaves_no_record(store: Store) -> None:
    """Neither a leaf nor a trace in the tree, also for the works that share its commit."""

    def fail(tx: T) -> None:
        for number in range(5):
            tx.audit(_record(100 + number), b"details", "subject")
        raise KeyError("the work fails")

    works = [store.transact(lambda tx, n=number: tx.audit(_record(n))) for number in range(3)]  # type: ignore[misc]
    failing = store.transact(fail)
    works += [store.transact(lambda tx, n=number: tx.audit(_record(n))) for number in range(3, 6)]  # type: ignore[misc]
    same([await work for work in works], [0, 1, 2, 3, 4, 5], "no place is left out")
    with refused(KeyError, "the work's own error"):
        await failing
    with refused(InputInvalidError, "a record that is none"):
        await store.transact(lambda tx: tx.audit(_record(2**53)))
    leaves = [encode_record(_record(number)) for number in range(6)]
    same([leaf.leaf for leaf in store.read(lambda tx: tx.audit_records())], leaves, "only what was committed")
    same(store.read(lambda tx: tx.audit_head()), (6, _root(leaves)), "also in the tree")
    same(store.read(lambda tx: tx.audit_sealed(6)), None, "and no details")


async def checkpoints_are_kept_by_size(store: Store) -> None:
    """One that does not fit the log is refused; a note of the same text adds its signatures to the one before."""
    same(store.read(lambda tx: tx.latest_checkpoint()), None, "none at first")
    roots = [merkle.EMPTY_ROOT]
    for number in range(3):
        await store.transact(lambda tx, n=number: tx.audit(_record(n)))  # type: ignore[misc]
        roots.append(store.read(lambda tx: tx.audit_head())[1])
        await store.transact(partial(_put, _note("log", number + 1, roots[-1])))
    same(
        store.read(lambda tx: tx.checkpoints()),
        [_note("log", size, roots[size]) for size in (1, 2, 3)],
        "the smallest first",
    )
    same(store.read(lambda tx: tx.checkpoints(1, 1)), [_note("log", 2, roots[2])], "over a size, at most one")
    later = _note("log", 3, roots[3], 99)
    await store.transact(partial(_put, later))
    same(store.read(lambda tx: tx.latest_checkpoint()), later, "of one size the last that was made")
    parsed = parse_note(later)
    cosigned = parsed.signed_with(cosign(parsed.body, "witness", _KEY, 5)).text
    await store.transact(partial(_put, cosigned))
    same(store.read(lambda tx: tx.checkpoints(2)), [_note("log", 3, roots[3]), cosigned], "cosigned")
    other = parsed.signed_with(cosign(parsed.body, "other", _KEY, 6)).text  # knows nothing of the first
    await store.transact(partial(_put, other))
    both = parse_note(cosigned).signed_with(parse_note(other).signatures[1]).text
    same(store.read(lambda tx: tx.latest_checkpoint()), both, "no cosignature gets lost")
    for wrong in (_note("log", 4, roots[3]), _note("log", 3, roots[2])):
        with refused(BrokenInvariantError, "a checkpoint of another log, or of more than there is"):
            await store.transact(partial(_put, wrong))
    with refused(AuditInvalidError, "no checkpoint"):
        await store.transact(partial(_put, "nothing\n"))


def _put(note: str, tx: T) -> None:
    tx.put_checkpoint(note)


async def sealed_details_lie_beside_the_log(store: Store) -> None:
    """The record has their digest; erasing a subject takes the key and the name, and no record changes."""
    sealed = b"\x00nonce and ciphertext\xff"

    def fill(tx: T) -> None:
        tx.audit(_record(1), sealed, "ann")
        tx.audit(_record(2))
        tx.put_subject_key("ann", b"wrapped")
        tx.put_subject_key("bob", b"other")

    await store.transact(fill)
    before = store.read(lambda tx: (tx.audit_records(), tx.audit_head()))
    same(before[0][0].record.sealed, sealed_digest(sealed), "the record names them")
    same(before[0][1].record.sealed, "", "and only the one that has some")
    same(store.read(lambda tx: tx.audit_sealed(0)), ("ann", sealed), "they come back")
    same(store.read(lambda tx: tx.audit_sealed(1)), None, "nothing is beside the other")
    same(store.read(lambda tx: tx.subject_key("ann")), b"wrapped", "the key comes back")
    await store.transact(lambda tx: tx.put_subject_key("ann", b"again"))
    same(store.read(lambda tx: tx.subject_key("ann")), b"again", "wrapped anew")
    check(await store.transact(lambda tx: tx.drop_subject_key("ann")), "there was a key")
    check(not await store.transact(lambda tx: tx.drop_subject_key("ann")), "there is none any more")
    same(store.read(lambda tx: tx.subject_key("ann")), None, "erased")
    same(store.read(lambda tx: tx.subject_key("bob")), b"other", "others stay")
    same(store.read(lambda tx: tx.audit_sealed(0)), ("", sealed), "noise without a name")
    same(store.read(lambda tx: (tx.audit_records(), tx.audit_head())), before, "the log is what it was")
    with refused(BrokenInvariantError, "the digest of something else"):
        await store.transact(lambda tx: tx.audit(_record(3, sealed="0" * 64), sealed))


CASES: tuple[Callable[[Store], Any], ...] = (
    records_come_back_as_they_were_written,
    the_tree_is_that_of_the_records,
    a_work_that_is_undone_leaves_no_record,
    checkpoints_are_kept_by_size,
    sealed_details_lie_beside_the_log,
)
