"""The Merkle tree: RFC 6962's own numbers, every small tree, and proofs that lie."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.governance import merkle, verify_file
from perdure.governance.merkle import (
    completed,
    consistency,
    inclusion,
    is_consistent,
    is_included,
    leaf_hash,
    root,
)

# The leaves and roots of the test of Certificate Transparency's reference implementation.
LEAVES = [
    bytes.fromhex(item)
    for item in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


class Nodes:
    """What the store keeps."""

    def __init__(self, leaves: list[bytes]) -> None:
        self.kept: dict[tuple[int, int], bytes] = {}
        for index, leaf in enumerate(leaves):
            for level, place, found in completed(index, leaf, self):
                self.kept[level, place] = found

    def __call__(self, level: int, place: int) -> bytes:
        return self.kept[level, place]


def leaves(count: int) -> list[bytes]:
    return [b"leaf %d" % number for number in range(count)]


def naive(items: list[bytes]) -> bytes:
    """RFC 6962, 2.1, word for word."""
    if not items:
        return sha256(b"").digest()
    if len(items) == 1:
        return sha256(b"\x00" + items[0]).digest()
    split = 1
    while split * 2 < len(items):
        split *= 2
    return sha256(b"\x01" + naive(items[:split]) + naive(items[split:])).digest()


def test_the_published_numbers() -> None:
    nodes = Nodes(LEAVES)
    assert [root(size, nodes).hex() for size in range(1, 9)] == ROOTS
    assert root(0, nodes) == merkle.EMPTY == sha256(b"").digest()


def test_every_tree_up_to_64_every_leaf_and_every_pair() -> None:
    items = leaves(64)
    nodes = Nodes(items)
    roots = [root(size, nodes) for size in range(65)]
    frontier, tree = merkle.Frontier(), verify_file.Tree()
    for size in range(65):
        assert roots[size] == naive(items[:size]) == frontier.root == tree.root()
        for index in range(size):
            proof = inclusion(index, size, nodes)
            assert len(proof) <= 6
            assert is_included(items[index], index, size, proof, roots[size])
            assert verify_file.root_from(items[index], index, size, proof) == roots[size]
            assert not is_included(items[index] + b"x", index, size, proof, roots[size])
        for old in range(size + 1):
            assert is_consistent(old, size, roots[old], roots[size], consistency(old, size, nodes))
        if size < 64:
            frontier.append(items[size])
            tree.append(items[size])


@given(st.integers(2, 200), st.data())
def test_a_proof_that_was_changed_shows_nothing(size: int, data: st.DataObject) -> None:
    nodes = Nodes(leaves(size))
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion(index, size, nodes)
    other = data.draw(st.sampled_from(["drop", "add", "flip", "swap", "index", "size"]))
    wrong, place, total = list(proof), index, size
    position = data.draw(st.integers(0, max(0, len(proof) - 1)))
    if other == "drop":
        wrong.pop(position)
    elif other == "add":
        wrong.insert(position, leaf_hash(b"x"))
    elif other == "flip":
        wrong[position] = bytes([wrong[position][0] ^ 1]) + wrong[position][1:]
    elif other == "swap":
        wrong.reverse()
    elif other == "index":
        place = (index + 1) % size
    else:
        total = size * 2 + 1
    if (wrong, place, total) == (proof, index, size):
        return
    expected = root(size, nodes)
    assert not is_included(b"leaf %d" % index, place, total, wrong, expected)


@given(st.integers(1, 200), st.integers(1, 200), st.data())
def test_a_rewritten_beginning_is_not_consistent(old: int, more: int, data: st.DataObject) -> None:
    size = old + more
    before = leaves(old)
    position = data.draw(st.integers(0, old - 1))
    rewritten = leaves(size)
    rewritten[position] = b"other"
    nodes = Nodes(rewritten)
    proof = consistency(old, size, nodes)
    assert not is_consistent(old, size, naive(before), root(size, nodes), proof)


def test_sizes_that_do_not_fit() -> None:
    nodes = Nodes(leaves(4))
    for call in (
        lambda: inclusion(4, 4, nodes),
        lambda: inclusion(-1, 4, nodes),
        lambda: consistency(5, 4, nodes),
    ):
        with pytest.raises(ValueError, match="leaf|leaves"):
            call()
    assert not is_included(b"", 5, 4, [], b"")
    assert not is_consistent(5, 4, b"", b"", [])
