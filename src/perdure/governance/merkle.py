"""The Merkle tree of the audit log: RFC 6962, section 2.1.

Complete subtrees are kept as nodes: node ``(level, index)`` covers the leaves from ``index * 2**level`` on. A proof reads as
many nodes as the tree is high.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256

Node = Callable[[int, int], bytes]  # (level, index) -> hash of a complete subtree
EMPTY = sha256(b"").digest()


def leaf_hash(leaf: bytes) -> bytes:
    """The hash of a leaf."""
    return sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return sha256(b"\x01" + left + right).digest()


def completed(index: int, leaf: bytes, node: Node) -> Iterator[tuple[int, int, bytes]]:
    """The complete subtrees that leaf number ``index`` makes, from its own hash up."""
    level, found = 0, leaf_hash(leaf)
    yield level, index, found
    while index & 1:
        found = node_hash(node(level, index - 1), found)
        level, index = level + 1, index >> 1
        yield level, index, found


def root(size: int, node: Node) -> bytes:
    """The root of the first ``size`` leaves."""
    return _range(0, size, node) if size else EMPTY


def _range(start: int, end: int, node: Node) -> bytes:
    """The hash over leaves ``start`` to ``end``; ``start`` is a multiple of the largest power of two that fits."""
    size = end - start
    if size & (size - 1) == 0:
        level = size.bit_length() - 1
        return node(level, start >> level)
    split = 1 << (size.bit_length() - 1)
    return node_hash(_range(start, start + split, node), _range(start + split, end, node))


def inclusion(index: int, size: int, node: Node) -> list[bytes]:
    """The proof that a leaf is in the tree of the first ``size``: RFC 6962, 2.1.1.

    Raises:
        ValueError: there is no such leaf in it.
    """
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not among the first {size}")
    return _path(index, 0, size, node)


def _path(index: int, start: int, end: int, node: Node) -> list[bytes]:
    size = end - start
    if size == 1:
        return []
    split = 1 << ((size - 1).bit_length() - 1)
    middle = start + split
    if index < split:
        return [*_path(index, start, middle, node), _range(middle, end, node)]
    return [*_path(index - split, middle, end, node), _range(start, middle, node)]


def consistency(old: int, size: int, node: Node) -> list[bytes]:
    """The proof that the tree of the first ``old`` leaves is the beginning of that of ``size``: RFC 6962, 2.1.2.

    Raises:
        ValueError: the sizes do not fit.
    """
    if not 0 <= old <= size:
        raise ValueError(f"{old} leaves are not the beginning of {size}")
    return [] if old in (0, size) else _subproof(old, 0, size, node, is_whole=True)


def _subproof(old: int, start: int, end: int, node: Node, *, is_whole: bool) -> list[bytes]:
    size = end - start
    if old == size:
        return [] if is_whole else [_range(start, end, node)]
    split = 1 << ((size - 1).bit_length() - 1)
    middle = start + split
    if old <= split:
        return [*_subproof(old, start, middle, node, is_whole=is_whole), _range(middle, end, node)]
    return [*_subproof(old - split, middle, end, node, is_whole=False), _range(start, middle, node)]


def is_included(leaf: bytes, index: int, size: int, proof: Sequence[bytes], expected: bytes) -> bool:
    """Whether a proof shows that a leaf is in the tree with root ``expected``: RFC 9162, 2.1.3.2."""
    if not 0 <= index < size:
        return False
    position, last, found = index, size - 1, leaf_hash(leaf)
    for item in proof:
        if last == 0:
            return False
        if position & 1 or position == last:
            found = node_hash(item, found)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            found = node_hash(found, item)
        position, last = position >> 1, last >> 1
    return last == 0 and found == expected


def is_consistent(old: int, size: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether a proof shows that the tree with ``old_root`` is the beginning of that with ``new_root``: RFC 9162, 2.1.4.2."""
    if not 0 <= old <= size:
        return False
    if old == size:
        return not proof and old_root == new_root
    if old == 0:
        return not proof
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not path:
        return False
    position, last = old - 1, size - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    first = second = path[0]
    for item in path[1:]:
        if last == 0:
            return False
        if position & 1 or position == last:
            first, second = node_hash(item, first), node_hash(item, second)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            second = node_hash(second, item)
        position, last = position >> 1, last >> 1
    return last == 0 and first == old_root and second == new_root


class Frontier:
    """The right edge of a growing tree: all that is needed to append and to know the root."""

    def __init__(self) -> None:
        self.size = 0
        self._edge: list[bytes] = []  # hashes of the complete subtrees, the largest first

    def append(self, leaf: bytes) -> None:
        """Add a leaf."""
        found, position = leaf_hash(leaf), self.size
        while position & 1:
            found = node_hash(self._edge.pop(), found)
            position >>= 1
        self._edge.append(found)
        self.size += 1

    @property
    def root(self) -> bytes:
        """The root of what was appended."""
        if not self._edge:
            return EMPTY
        found = self._edge[-1]
        for item in reversed(self._edge[:-1]):
            found = node_hash(item, found)
        return found
