"""Checks an exported audit log, or the proof of one action. One file, Python's standard library only: read it before you trust it.

    python verify_file.py LOG.jsonl --key 'NAME+ID+KEY' [--checkpoint NOTE.txt]
    python verify_file.py PROOF.json --key 'NAME+ID+KEY'

The key must come from elsewhere than the file: whoever rewrites a log can sign it with a key of their own. The log is a Merkle
tree (RFC 6962), its heads are signed notes (C2SP signed-note, Ed25519: RFC 8032). Exit codes: 0 whole, 1 not, 2 cannot be read.
"""

# ruff: noqa: T201, B905, C901, PTH123, UP006, UP035 - a script of its own that runs on any Python 3

from __future__ import annotations

import base64
import hashlib
import json
import sys
from typing import Any, Tuple

# -- Ed25519, verification only: RFC 8032, section 5.1 ----------------------------------------------
Point = Tuple[int, int, int, int]
P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT = pow(2, (P - 1) // 4, P)


def _x_of(y: int, sign: int) -> int | None:
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    if square == 0:
        return None if sign else 0
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT % P
    if (x * x - square) % P:
        return None
    return P - x if x & 1 != sign else x


def _add(one: Point, other: Point) -> Point:
    a = (one[1] - one[0]) * (other[1] - other[0]) % P
    b = (one[1] + one[0]) * (other[1] + other[0]) % P
    c = 2 * one[3] * other[3] * D % P
    d = 2 * one[2] * other[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return (e * f % P, g * h % P, f * g % P, e * h % P)


def _times(number: int, point: Point) -> Point:
    found = (0, 1, 1, 0)
    while number:
        if number & 1:
            found = _add(found, point)
        point = _add(point, point)
        number >>= 1
    return found


def _point(data: bytes) -> Point | None:
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & (2**255 - 1)
    x = _x_of(y, sign)
    return None if x is None else (x, y, 1, x * y % P)


BASE_Y = 4 * pow(5, P - 2, P) % P
BASE_X = _x_of(BASE_Y, 0) or 0
BASE = (BASE_X, BASE_Y, 1, BASE_X * BASE_Y % P)


def is_signed_by(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether an Ed25519 signature is good."""
    if len(public) != 32 or len(signature) != 64:
        return False
    a, r = _point(public), _point(signature[:32])
    s = int.from_bytes(signature[32:], "little")
    if a is None or r is None or s >= L:
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % L
    one, other = _times(s, BASE), _add(r, _times(k, a))
    return (one[0] * other[2] - other[0] * one[2]) % P == 0 and (
        one[1] * other[2] - other[1] * one[2]
    ) % P == 0


# -- the Merkle tree: RFC 6962, section 2.1 ---------------------------------------------------------
def leaf_hash(leaf: bytes) -> bytes:
    """The hash of a record."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two subtrees."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """Grows by one record at a time and knows its root."""

    def __init__(self) -> None:
        self.size = 0
        self.edge: list[bytes] = []

    def append(self, leaf: bytes) -> None:
        """Add a record."""
        found, place = leaf_hash(leaf), self.size
        while place & 1:
            found, place = node_hash(self.edge.pop(), found), place >> 1
        self.edge.append(found)
        self.size += 1

    def root(self) -> bytes:
        """The root now."""
        if not self.edge:
            return hashlib.sha256(b"").digest()
        found = self.edge[-1]
        for item in reversed(self.edge[:-1]):
            found = node_hash(item, found)
        return found


def root_from(leaf: bytes, place: int, size: int, proof: list[bytes]) -> bytes | None:
    """The root that an inclusion proof leads to, or None: RFC 9162, section 2.1.3.2."""
    if not 0 <= place < size:
        return None
    last, found = size - 1, leaf_hash(leaf)
    for item in proof:
        if last == 0:
            return None
        if place & 1 or place == last:
            found = node_hash(item, found)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            found = node_hash(found, item)
        place, last = place >> 1, last >> 1
    return found if last == 0 else None


# -- signed notes: C2SP signed-note and tlog-checkpoint ---------------------------------------------
def read_key(text: str) -> tuple[str, bytes]:
    """Name and public key of ``name+id+key``."""
    name, hashed, encoded = text.strip().split("+", 2)
    data = base64.b64decode(encoded, validate=True)
    if data[:1] != b"\x01" or key_id(name, data[1:]).hex() != hashed:
        raise ValueError("the id of the key does not fit the key")
    return name, data[1:]


def key_id(name: str, public: bytes) -> bytes:
    """Four bytes that tell keys apart."""
    return hashlib.sha256(name.encode() + b"\n\x01" + public).digest()[:4]


def read_note(note: str, name: str, public: bytes) -> tuple[int, bytes, bool]:
    """Size, root, and whether the key has signed it."""
    text, _, signatures = note.partition("\n\n")
    origin, size, root = (text + "\n").split("\n")[:3]
    good = False
    for line in signatures.splitlines():
        _, signer, encoded = line.split(" ")
        data = base64.b64decode(encoded, validate=True)
        if signer == name and data[:4] == key_id(name, public):
            good = good or is_signed_by(public, (text + "\n").encode(), data[4:])
    return int(size), base64.b64decode(root), good and origin == name


# -- checking ---------------------------------------------------------------------------------------
def check_log(
    lines: list[str], name: str, public: bytes, kept: str | None = None
) -> tuple[list[str], int, int]:
    """Problems of an exported log, and how many records are covered by a good signature."""
    problems: list[str] = []
    notes: list[str] = []
    roots: dict[int, bytes] = {}
    tree = Tree()
    wanted: set[int] = set()
    for line in lines:
        item = json.loads(line)
        if "checkpoint" in item:
            notes.append(item["checkpoint"])
            wanted.add(int(item["checkpoint"].split("\n")[1]))
    if kept is not None:
        wanted.add(int(kept.split("\n")[1]))
    for line in lines:
        item = json.loads(line)
        if "leaf" in item:
            tree.append(item["leaf"].encode())
            if tree.size in wanted:
                roots[tree.size] = tree.root()
    signed, before = 0, 0
    for note in sorted(notes, key=lambda item: int(item.split("\n")[1])):
        size, root, good = read_note(note, name, public)
        if not good:
            problems.append(f"the checkpoint over {size} records is not signed with the key of `{name}`")
        elif size > tree.size:
            problems.append(
                f"a checkpoint covers {size} records, the file has {tree.size}: its end was cut off"
            )
        elif roots.get(size) != root:
            problems.append(f"records {before} to {size - 1}: changed, removed, added or moved")
            break
        else:
            signed = before = size
    if kept is not None:
        size, root, good = read_note(kept, name, public)
        if not good:
            problems.append(f"the checkpoint that was kept is not signed with the key of `{name}`")
        elif size > tree.size:
            problems.append(
                f"the checkpoint that was kept covers {size} records, the file has {tree.size}: cut off or rolled back"
            )
        elif roots.get(size) != root:
            problems.append(
                f"the first {size} records are not those of the checkpoint that was kept: rewritten or forked"
            )
    if not problems and signed < tree.size:
        problems.append(f"{tree.size - signed} records at the end are not covered by a signature")
    return problems, tree.size, signed


def check_proof(bundle: dict[str, Any], name: str, public: bytes) -> tuple[list[str], int, int]:
    """Problems of the proof of one action."""
    size, root, good = read_note(bundle["checkpoint"], name, public)
    problems = [] if good else [f"the checkpoint is not signed with the key of `{name}`"]
    for record in bundle["records"]:
        proof = [base64.b64decode(item) for item in record["proof"]]
        if root_from(record["leaf"].encode(), record["place"], size, proof) != root:
            problems.append(f"record {record['place']} is not in the log")
        said = json.loads(record["leaf"])
        if f"{said.get('run')}/{said.get('call', 0)}" != bundle["action"]:
            problems.append(f"record {record['place']} is about another action")
    return problems, size, size if good else 0


def main(arguments: list[str]) -> int:
    """The command."""
    options = dict(zip(arguments[1::2], arguments[2::2]))
    if (
        len(arguments) % 2 == 0
        or not arguments
        or set(options) - {"--key", "--checkpoint"}
        or "--key" not in options
    ):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        name, public = read_key(options["--key"])
        with open(arguments[0], encoding="utf-8") as file:
            text = file.read()
        kept = None
        if "--checkpoint" in options:
            with open(options["--checkpoint"], encoding="utf-8") as file:
                kept = file.read()
        lines = [line for line in text.splitlines() if line]
        if '"perdure-audit-proof/1"' in text[:200]:
            problems, size, signed = check_proof(json.loads(text), name, public)
        else:
            problems, size, signed = check_log(lines, name, public, kept)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        print(f"cannot be read: {error!r}", file=sys.stderr)
        return 2
    for problem in problems:
        print(f"NOT WHOLE: {problem}")
    if not problems:
        print(f"whole: {size} records, {signed} covered by signatures of `{name}`")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
