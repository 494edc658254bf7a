"""The Merkle tree of the audit log (RFC 6962, section 2.1; the proofs are checked as in RFC 9162, sections 2.1.3.2 and 2.1.4.2).

A tree of ``size`` leaves is the hashes of its perfect subtrees: ``hashes(level, index)`` gives that of the ``2**level``
leaves from ``index * 2**level`` on. With those at hand every proof reads O(log size) of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from perdure.core.errors import invariant

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()  # of a tree without leaves
PROOF_HASHES_MAX = 63  # of a tree of 2^63 leaves; the C2SP witness protocol sends no more

Hashes = Callable[[int, int], bytes]
Node = tuple[int, int, bytes]  # level, index, hash
Proof = tuple[bytes, ...]


def leaf_hash(leaf: bytes) -> bytes:
    """SHA-256 of 0x00 and the leaf: no leaf can pass for a node."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256 of 0x01 and both children."""
    return hashlib.sha256(b"\x01" + left + right).digest()


@dataclass(frozen=True, slots=True)
class Frontier:
    """The right edge of a tree: all that is needed to append to it and to know its root.

    Attributes:
        size: how many leaves the tree has.
        edge: the hashes of its perfect subtrees, 32 bytes each, the largest (leftmost) first: one for each bit of ``size``.
    """

    size: int = 0
    edge: bytes = b""

    def __post_init__(self) -> None:
        invariant(len(self.edge) == HASH_BYTES * self.size.bit_count(), "the frontier does not fit its size")

    def append(self, leaf: bytes) -> tuple[Frontier, list[Node]]:
        """The tree with one more leaf hash, and the perfect subtrees that it completed (level 1 and up)."""
        nodes: list[Node] = []
        edge, new, level, index = self.edge, leaf, 0, self.size
        while index & 1:  # a left sibling waits
            new = hashlib.sha256(b"\x01" + edge[-HASH_BYTES:] + new).digest()
            edge = edge[:-HASH_BYTES]
            level, index = level + 1, index >> 1
            nodes.append((level, index, new))
        return Frontier(self.size + 1, edge + new), nodes

    @property
    def root(self) -> bytes:
        """The root hash of the tree."""
        parts = [self.edge[at : at + HASH_BYTES] for at in range(0, len(self.edge), HASH_BYTES)]
        return _fold(parts) if parts else EMPTY_ROOT

    def to_bytes(self) -> bytes:
        """Size (8 bytes, big-endian), then the edge."""
        return self.size.to_bytes(8, "big") + self.edge

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """What :meth:`to_bytes` wrote."""
        return cls(int.from_bytes(data[:8], "big"), data[8:])


def _fold(parts: Sequence[bytes]) -> bytes:
    """The hash over perfect subtrees that get smaller to the right."""
    root = parts[-1]
    for left in reversed(parts[:-1]):
        root = node_hash(left, root)
    return root


def _range_hash(hashes: Hashes, begin: int, end: int) -> bytes:
    """The hash of the leaves from ``begin`` to ``end``, where ``begin`` is a multiple of the range's largest power of two."""
    parts = []
    while begin < end:
        level = (end - begin).bit_length() - 1
        parts.append(hashes(level, begin >> level))
        begin += 1 << level
    return _fold(parts)


def _split(size: int) -> int:
    """The largest power of two below ``size``."""
    return 1 << ((size - 1).bit_length() - 1)


def root_at(hashes: Hashes, size: int) -> bytes:
    """The root of the tree when it had ``size`` leaves."""
    return _range_hash(hashes, 0, size) if size else EMPTY_ROOT


def inclusion_proof(hashes: Hashes, index: int, size: int) -> Proof:
    """The audit path of a leaf in the tree of ``size`` leaves (RFC 6962, 2.1.1), its sibling first."""
    invariant(0 <= index < size, "the leaf is not in the tree", index=index, size=size)
    path: list[bytes] = []
    begin, end = 0, size
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            path.append(_range_hash(hashes, middle, end))
            end = middle
        else:
            path.append(_range_hash(hashes, begin, middle))
            begin = middle
    return tuple(reversed(path))


def consistency_proof(hashes: Hashes, old: int, size: int) -> Proof:
    """That the first ``old`` leaves of the tree of ``size`` are the tree of ``old`` (RFC 6962, 2.1.2); empty for 0 and ``size``."""
    invariant(0 <= old <= size, "an older tree is not larger", old=old, size=size)
    if old in (0, size):
        return ()
    path: list[bytes] = []
    begin, end, is_whole = 0, size, True
    while old != end:
        middle = begin + _split(end - begin)
        if old <= middle:
            path.append(_range_hash(hashes, middle, end))
            end = middle
        else:
            path.append(_range_hash(hashes, begin, middle))
            begin, is_whole = middle, False
    if not is_whole:
        path.append(_range_hash(hashes, begin, end))
    return tuple(reversed(path))


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether the leaf hash is at ``index`` of the tree of ``size`` leaves with that root (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size or len(proof) > PROOF_HASHES_MAX:
        return False
    place, last, found = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if place & 1 or place == last:
            found = node_hash(sibling, found)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        place, last = place >> 1, last >> 1
    return last == 0 and found == root


def verify_consistency(old: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the tree of ``size`` leaves begins with the tree of ``old`` (RFC 9162, 2.1.4.2)."""
    if not 0 <= old <= size or len(proof) > PROOF_HASHES_MAX:
        return False
    if old == 0:
        return not proof and old_root == EMPTY_ROOT and (size > 0 or root == EMPTY_ROOT)
    if old == size:
        return not proof and old_root == root
    path = list(proof)
    if old & (old - 1) == 0:  # the old tree is one subtree of the new one, so its root is not sent
        path.insert(0, old_root)
    if not path:
        return False
    place, last = old - 1, size - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    first = second = path[0]
    for part in path[1:]:
        if last == 0:
            return False
        if place & 1 or place == last:
            first, second = node_hash(part, first), node_hash(part, second)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            second = node_hash(second, part)
        place, last = place >> 1, last >> 1
    return last == 0 and first == old_root and second == root
