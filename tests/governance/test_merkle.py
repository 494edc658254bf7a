"""The tree of RFC 6962: its published test vectors, and every tree of up to 64 leaves against the definition."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.errors import BrokenInvariantError
from perdure.governance.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_at,
    verify_consistency,
    verify_inclusion,
)
from perdure.governance.verify_file import Tree, is_included

# From the reference implementation of Certificate Transparency (merkle tests of google/certificate-transparency).
LEAVES = [bytes.fromhex(text) for text in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
)]  # fmt: skip
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
A = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
B = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
C = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
INCLUSIONS = {
    (0, 8): [A, B, C],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        ROOTS[3],
    ],
    (2, 3): [ROOTS[1]],
}
CONSISTENCIES = {
    (1, 8): [A, B, C],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        ROOTS[3],
    ],
    (2, 5): [B, "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"],
}


class Log:
    """A tree with all its hashes, as a store keeps them."""

    def __init__(self, leaves: list[bytes]) -> None:
        self.hashes = {(0, at): leaf_hash(leaf) for at, leaf in enumerate(leaves)}
        self.reads = 0
        self.roots = [EMPTY_ROOT]
        frontier = Frontier()
        for leaf in leaves:
            frontier, nodes = frontier.append(leaf_hash(leaf))
            self.hashes |= {(level, index): found for level, index, found in nodes}
            self.roots.append(frontier.root)
        self.frontier = frontier

    def __call__(self, level: int, index: int) -> bytes:
        self.reads += 1
        return self.hashes[level, index]


def mth(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962, 2.1, as it stands there."""
    if len(leaves) < 2:
        return leaf_hash(leaves[0]) if leaves else EMPTY_ROOT
    half = 1 << ((len(leaves) - 1).bit_length() - 1)
    return node_hash(mth(leaves[:half]), mth(leaves[half:]))


def path(index: int, leaves: list[bytes]) -> list[bytes]:
    """PATH of RFC 6962, 2.1.1."""
    if len(leaves) < 2:
        return []
    half = 1 << ((len(leaves) - 1).bit_length() - 1)
    if index < half:
        return [*path(index, leaves[:half]), mth(leaves[half:])]
    return [*path(index - half, leaves[half:]), mth(leaves[:half])]


def subproof(old: int, leaves: list[bytes], *, is_whole: bool = True) -> list[bytes]:
    """SUBPROOF of RFC 6962, 2.1.2."""
    if old == len(leaves):
        return [] if is_whole else [mth(leaves)]
    half = 1 << ((len(leaves) - 1).bit_length() - 1)
    if old <= half:
        return [*subproof(old, leaves[:half], is_whole=is_whole), mth(leaves[half:])]
    return [*subproof(old - half, leaves[half:], is_whole=False), mth(leaves[:half])]


def leaves_of(size: int) -> list[bytes]:
    return [b"leaf %d" % number for number in range(size)]


def test_the_published_vectors() -> None:
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    log = Log(LEAVES)
    assert [root.hex() for root in log.roots[1:]] == ROOTS
    for (index, size), proof in INCLUSIONS.items():
        assert [item.hex() for item in inclusion_proof(log, index, size)] == proof
    for (old, size), proof in CONSISTENCIES.items():
        assert [item.hex() for item in consistency_proof(log, old, size)] == proof


@pytest.mark.parametrize("size", range(65))
def test_every_small_tree_is_as_defined(size: int) -> None:
    leaves = leaves_of(size)
    log = Log(leaves)
    assert log.frontier.root == mth(leaves) == root_at(log, size)
    assert Frontier.from_bytes(log.frontier.to_bytes()) == log.frontier
    tree = Tree()
    for leaf in leaves:
        tree.append(leaf_hash(leaf))
    assert tree.root == log.frontier.root  # the verifier's own tree
    for index, leaf in enumerate(leaves):
        proof = inclusion_proof(log, index, size)
        assert list(proof) == path(index, leaves)
        assert verify_inclusion(leaf_hash(leaf), index, size, proof, log.roots[size])
        assert is_included(leaf_hash(leaf), index, size, proof, log.roots[size])
    for old in range(size + 1):
        proof = consistency_proof(log, old, size)
        assert list(proof) == (subproof(old, leaves) if old else [])
        assert verify_consistency(old, log.roots[old], size, log.roots[size], proof)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 13, 32, 33])
def test_wrong_proofs_are_refused(size: int) -> None:
    log = Log(leaves_of(size))
    root = log.roots[size]
    for index in range(size):
        proof = inclusion_proof(log, index, size)
        hashed = log(0, index)
        wrong = [proof[:-1], (*proof, EMPTY_ROOT), (EMPTY_ROOT, *proof)]
        wrong += [proof[:at] + (EMPTY_ROOT,) + proof[at + 1 :] for at in range(len(proof))]
        wrong += [(*proof[:at], b, a, *proof[at + 2 :]) for at, (a, b) in enumerate(pairwise(proof))]
        for check in (verify_inclusion, is_included):
            assert not any(check(hashed, index, size, bad, root) for bad in wrong if bad != proof)
            assert not check(leaf_hash(b"another"), index, size, proof, root)
            assert not check(hashed, index, size, proof, EMPTY_ROOT)
            assert not any(
                check(hashed, other, size, proof, root) for other in range(-1, size + 2) if other != index
            )
    for old in range(1, size):
        proof = consistency_proof(log, old, size)
        wrong = [proof[:-1], (*proof, EMPTY_ROOT), (EMPTY_ROOT, *proof)]
        wrong += [proof[:at] + (EMPTY_ROOT,) + proof[at + 1 :] for at in range(len(proof))]
        assert not any(
            verify_consistency(old, log.roots[old], size, root, bad) for bad in wrong if bad != proof
        )
        assert not verify_consistency(old, EMPTY_ROOT, size, root, proof)
        assert not verify_consistency(old, log.roots[old], size, EMPTY_ROOT, proof)
        assert not verify_consistency(size, root, old, log.roots[old], proof)
    assert not verify_consistency(0, root, size, root, ())
    assert not verify_consistency(size, root, size, EMPTY_ROOT, ())
    assert not verify_consistency(size, root, size, root, (root,))
    assert not verify_consistency(0, EMPTY_ROOT, 0, root, ())
    assert not verify_consistency(-1, EMPTY_ROOT, size, root, ())


def test_a_node_never_passes_for_a_leaf() -> None:
    left, right = leaf_hash(b"a"), leaf_hash(b"b")
    assert leaf_hash(left + right) != node_hash(left, right)
    assert Log([left + right]).frontier.root != Log([b"a", b"b"]).frontier.root


@given(st.integers(1, 5_000), st.data())
def test_large_trees_need_few_reads(size: int, data: st.DataObject) -> None:
    log = BIG
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size))
    log.reads = 0
    proof = inclusion_proof(log, index, size)
    assert log.reads <= 2 * size.bit_length()
    assert verify_inclusion(log.hashes[0, index], index, size, proof, log.roots[size])
    log.reads = 0
    proof = consistency_proof(log, old, size)
    assert log.reads <= 3 * size.bit_length()
    assert verify_consistency(old, log.roots[old], size, log.roots[size], proof)


BIG = Log(leaves_of(5_000))


def test_what_makes_no_sense_is_a_bug() -> None:
    log = Log(leaves_of(4))
    for wrong in (
        lambda: inclusion_proof(log, 4, 4),
        lambda: consistency_proof(log, 5, 4),
        lambda: Frontier(3, b"x" * 32),
        lambda: Frontier.from_bytes((2).to_bytes(8, "big")),
    ):
        with pytest.raises(BrokenInvariantError):
            wrong()
