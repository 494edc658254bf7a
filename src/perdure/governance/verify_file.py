"""Checks an exported audit log: one file, the standard library only, meant to be read by whoever has to trust it.

    python verify_file.py export.jsonl checkpoint.txt public.key [--seen CHECKPOINT]... [--witness KEY]... [--quorum N] [--json]
    python verify_file.py --proof bundle.json public.key [--witness KEY]... [--quorum N] [--json]

`public.key` holds the log's first verifier key (`name+id+base64`) and must have come to you by another way than the export. Each
later key of the log is named by a record that the key before it signed; there is no other way to a new key.
`checkpoint.txt` is what the log signed. An older copy of everything, with the checkpoint of its time, is a true history that
ends early: only a later checkpoint that you or a witness kept (`--seen`), or the age of a cosignature (`--witness`), tells.

The hashes are those of RFC 6962, section 2.1; signatures are Ed25519 (RFC 8032) on C2SP signed notes, checkpoints and cosignatures.
Exit status: 0 nothing found, 1 something found, 2 the check could not be made.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from hashlib import sha256, sha512
from itertools import islice
from pathlib import Path
from typing import NamedTuple

FORMAT = "perdure-audit/1"
PROOF_FORMAT = "perdure-audit-proof/1"
LINE_BYTES_MAX = 256 * 1024  # a record has 64 KiB at most, a note too
EMPTY = sha256(b"").digest()  # the root of no records
GAPS_MAX = 1_000  # looked through for each record that comes late
FINDINGS_MAX = 20  # of one sort: whoever changed more changed everything
LEAF = re.compile(rb'\{"hash":"([0-9a-f]{64})","index":(0|[1-9][0-9]{0,18}),"leaf":(\{.*\})\}\n?').fullmatch


# -- Ed25519, as in RFC 8032, section 6. Points are (X, Y, Z, T) with x = X/Z, y = Y/Z, xy = T/Z.
P = 2**255 - 19
Q = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT = pow(2, (P - 1) // 4, P)
Point = tuple[int, int, int, int]


def add(a: Point, b: Point) -> Point:
    """The sum of two points."""
    e, f = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    g, h = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    e, f, g, h = f - e, h - g, h + g, f + e
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(number: int, point: Point) -> Point:
    """A multiple of a point."""
    found: Point = (0, 1, 1, 0)
    while number:
        found = add(found, point) if number & 1 else found
        point, number = add(point, point), number >> 1
    return found


def point_of(data: bytes) -> Point | None:
    """The point that 32 bytes stand for, if they do."""
    number = int.from_bytes(data, "little")
    sign, y = number >> 255, number & (1 << 255) - 1
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT % P
    if y >= P or (x * x - square) % P or (x == 0 and sign):
        return None
    x = P - x if x & 1 != sign else x
    return x, y, 1, x * y % P


BASE = point_of((4 * pow(5, P - 2, P) % P).to_bytes(32, "little")) or (0, 1, 1, 0)


def is_signed(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether an Ed25519 signature is good (RFC 8032, 5.1.7)."""
    key, commitment = point_of(public), point_of(signature[:32])
    number = int.from_bytes(signature[32:], "little")
    if key is None or commitment is None or number >= Q or (len(public), len(signature)) != (32, 64):
        return False
    challenge = int.from_bytes(sha512(signature[:32] + public + message).digest(), "little")
    left, right = times(number, BASE), add(commitment, times(challenge, key))
    return all((left[axis] * right[2] - right[axis] * left[2]) % P == 0 for axis in (0, 1))


# -- notes and checkpoints
class Key(NamedTuple):
    """A verifier key, and the id that stands before its signatures."""

    name: str
    key_id: bytes
    public: bytes


class Head(NamedTuple):
    """A checkpoint: what the log said of itself, with signatures that are not checked yet."""

    origin: str
    size: int
    root: bytes
    body: str
    signatures: list[tuple[str, bytes, bytes]]  # name, key id, signature


class Finding(NamedTuple):
    """Something that is not as it must be, and the record where it is, if that can be told."""

    code: str
    message: str
    record: int | None = None


def read_key(text: str) -> Key:
    """The key of a verifier key text; ``ValueError`` if it is none."""
    name, key_id, data = text.strip().split("+", 2)
    raw = base64.b64decode(data, validate=True)
    found = sha256(f"{name}\n".encode() + raw).digest()[:4]
    if len(raw) != 33 or raw[0] not in (1, 4) or found.hex() != key_id:  # 1 signs, 4 cosigns
        raise ValueError("no Ed25519 verifier key, or its id does not fit")
    return Key(name, found, raw[1:])


def read_head(note: str) -> Head:
    """The checkpoint of a signed note; ``ValueError`` if it is none."""
    body, gap, lines = note.rpartition("\n\n")
    origin, size, root, *_ = f"{body}\n\n\n".split("\n")
    data = base64.b64decode(root, validate=True)
    if not gap or not origin or len(data) != 32 or not re.fullmatch("0|[1-9][0-9]{0,18}", size, re.ASCII):
        raise ValueError("no checkpoint: expected origin, size, root, an empty line and signatures")
    parts = (line.removeprefix("— ").split(" ") for line in lines.splitlines())
    raw = [(name, base64.b64decode(encoded, validate=True)) for name, encoded in parts]
    return Head(origin, int(size), data, body + "\n", [(name, item[:4], item[4:]) for name, item in raw])


def signed_by(head: Head, *keys: Key) -> str:
    """Why none of the log's keys signed the checkpoint; empty if one did."""
    name, key_id, _ = keys[-1]
    if head.origin != name:
        return f"it is of the log `{head.origin}`, not of `{name}`"
    found = [(key, data) for key in keys for *by, data in head.signatures if tuple(by) == key[:2]]
    if not found:
        others = (
            ", ".join(f"`{other}` {other_id.hex()}" for other, other_id, _ in head.signatures) or "nobody"
        )
        return f"it is not signed by `{name}` {key_id.hex()}, but by {others}: another key was used"
    good = all(is_signed(key.public, head.body.encode(), data) for key, data in found)
    return "" if good else "its signature does not fit: it was changed after it was signed"


def cosigned_by(head: Head, key: Key) -> str:
    """Why the witness did not cosign the checkpoint; empty if it did."""
    found = [data for name, key_id, data in head.signatures if (name, key_id) == (key.name, key.key_id)]
    for data in found:
        time_s = int.from_bytes(data[:8], "big")
        if not is_signed(key.public, f"cosignature/v1\ntime {time_s}\n{head.body}".encode(), data[8:]):
            return f"the cosignature of `{key.name}` does not fit"
    return "" if found else f"the witness `{key.name}` did not cosign it"


# -- the keys of a log, and from how many records on each of them signs
Keys = list[tuple[int, Key]]


def keys_at(keys: Keys, size: int) -> list[Key]:
    """Those that may sign a checkpoint of that size; one that ends with the record that names the next key: both."""
    ends = [*(start for start, _ in keys[1:]), size]
    return [key for (start, key), end in zip(keys, ends, strict=True) if start <= size <= end]


def follow(keys: Keys, index: int, leaf: bytes) -> bool:
    """Take up the key that a record names, if it names one; whether the key before it signed that."""
    try:
        said = json.loads(leaf)
        if said.get("kind") != "key":
            return True
        named, signature = said["refs"]["key"], base64.b64decode(said["refs"]["signature"], validate=True)
        new = read_key(named)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    start, last = keys[-1]
    text = f"perdure-audit-key/v1\n{last.name}\n{index}\n{named}\n"
    if new.name != last.name or index < start or not is_signed(last.public, text.encode(), signature):
        return False
    keys.append((index + 1, new))
    return True


# -- the tree
class Tree:
    """Grows leaf by leaf; keeps the right edge only."""

    def __init__(self) -> None:
        self.size, self.edge = 0, list[bytes]()

    def append(self, leaf: bytes) -> None:
        """One more leaf hash."""
        bits, self.size = self.size, self.size + 1
        while bits & 1:
            leaf, bits = sha256(b"\x01" + self.edge.pop() + leaf).digest(), bits >> 1
        self.edge.append(leaf)

    @property
    def root(self) -> bytes:
        """The root now."""
        return reduce(lambda old, left: sha256(b"\x01" + left + old).digest(), (self.edge or [EMPTY])[::-1])


def is_included(leaf: bytes, index: int, size: int, proof: Iterable[bytes], root: bytes) -> bool:
    """Whether a leaf hash is in the tree (RFC 9162, 2.1.3.2)."""
    place, last = index, size - 1
    for sibling in proof:
        if last <= 0:
            return False
        is_right = place & 1 or place == last
        leaf = sha256(b"\x01" + (sibling + leaf if is_right else leaf + sibling)).digest()
        while is_right and place and not place & 1:
            place, last = place >> 1, last >> 1
        place, last = place >> 1, last >> 1
    return last == 0 <= index < size and leaf == root


# -- the exported file
class Order:
    """Where the numbers of the records have gaps, step back or repeat."""

    def __init__(self) -> None:
        self.next, self.gaps, self.late, self.again = 0, list[range](), list[int](), list[int]()

    def see(self, index: int) -> None:
        """One more record."""
        if index >= self.next:
            if index > self.next and len(self.gaps) < GAPS_MAX:
                self.gaps.append(range(self.next, index))
            self.next = index + 1
            return None
        for at, gap in enumerate(self.gaps):
            if index in gap:
                self.gaps[at : at + 1] = filter(None, (range(gap.start, index), range(index + 1, gap.stop)))
                return self.late.append(index)
        return self.again.append(index)

    def findings(self) -> Iterator[Finding]:
        """What that means."""
        gone = ((gap.start, f"of the records {gap.start} to {gap[-1]} none is there") for gap in self.gaps)
        late = ((index, f"record {index} is not in its place") for index in sorted(self.late))
        again = ((index, f"there is a second record {index}") for index in self.again)
        for code, found in (("missing", gone), ("reordered", late), ("inserted", again)):
            yield from (Finding(code, message, index) for index, message in islice(found, FINDINGS_MAX))


class Check:
    """Reads an export once and compares its tree with every checkpoint at the size that it speaks of."""

    def __init__(self, key: Key, heads: list[tuple[str, Head]]) -> None:
        self.keys, self.heads, self.due = [(0, key)], heads, {head.size for _, head in heads}
        self.roots, self.is_followed = (
            dict[int, bytes](),
            True,
        )  # of the heads that the log signed; the keys so far
        self.tree, self.order = Tree(), Order()
        self.beside = Tree()  # over the hashes as they stand beside the records, from the first wrong one on
        self.is_beside_signed = False  # so the wrong records are those that do not have these hashes
        self.has_begun = self.has_moved = False
        self.findings, self.edited = list[Finding](), list[int]()
        self.good = 0  # the largest size at which the file is what the log signed
        self.bad: int | None = None  # the smallest at which it is not
        self.found: Callable[..., None] = lambda *said: self.findings.append(Finding(*said))

    def read(self, lines: Iterable[bytes]) -> None:
        """Every line of the file."""
        self.arrive(0)
        for number, line in enumerate(lines, start=1):
            match = LEAF(line)
            if match is None:
                self.other(number, line)
                continue
            claimed, index, leaf = match.groups()
            hashed = sha256(b"\x00" + leaf)
            self.order.see(int(index))
            if hashed.hexdigest().encode() != claimed:
                if not self.edited:
                    self.beside.size, self.beside.edge = self.tree.size, list(self.tree.edge)
                self.edited.append(self.tree.size)
            if self.edited:
                self.beside.append(bytes.fromhex(claimed.decode()))
            # After one that fails no other is looked at: each costs 5 ms, and anybody can write a million that fail.
            if b'"kind":"key"' in leaf and self.is_followed and not follow(self.keys, self.tree.size, leaf):
                self.is_followed = False
                self.found("key", "a record names a key that the key before it did not", self.tree.size)
            self.tree.append(hashed.digest())
            if self.tree.size in self.due:
                self.arrive(self.tree.size)

    def other(self, number: int, line: bytes) -> None:
        """A line that is no record: the beginning of the file, or a checkpoint."""
        try:
            found = json.loads(line)
            if number > 1 or "checkpoint" in found:
                self.embedded(read_head(found["checkpoint"]))
            else:
                self.has_begun = found["format"] == FORMAT and found["origin"] == self.keys[0][1].name
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self.found("malformed", f"line {number} is neither a record nor a checkpoint", self.tree.size)

    def embedded(self, head: Head) -> None:
        """A checkpoint in the file; it stands after the last record that it speaks of."""
        why, size = signed_by(head, *keys_at(self.keys, head.size)), self.tree.size
        if why:
            self.found("checkpoint", f"a checkpoint in the export, of {head.size} records: {why}")
            return
        if head.size != size and not self.has_moved:
            self.has_moved = True
            self.found("moved", f"a checkpoint of {head.size} records stands after {size}", self.good)
        self.compare(head)

    def arrive(self, size: int, after: int = -1) -> None:
        """The checkpoints from outside of that size, or of more than ``after``: now it is known which key had to sign."""
        for what, head in self.heads:
            if head.size == size or head.size > after >= 0:
                if why := signed_by(head, *keys_at(self.keys, head.size)):
                    code = "origin" if head.origin != self.keys[0][1].name else "signature"
                    self.found(code, f"{what}: {why}")
                    continue
                if self.roots.setdefault(head.size, head.root) != head.root:
                    self.found("fork", f"the log signed two histories of {head.size} records")
                self.compare(head)

    def compare(self, head: Head) -> None:
        """Whether the file, as far as it was read, is what the log signed."""
        if head.size == self.tree.size and head.root == self.tree.root:
            self.good = max(self.good, head.size)
        elif head.size == self.tree.size:
            self.bad = head.size if self.bad is None else min(self.bad, head.size)
            self.is_beside_signed |= bool(self.edited) and self.beside.root == head.root

    def end(self) -> list[Finding]:
        """What was found."""
        self.findings[FINDINGS_MAX:] = self.order.findings()
        self.arrive(-1, after=self.tree.size)
        size, signed = self.tree.size, max(self.roots, default=0)
        if not self.has_begun:
            self.found("origin", f"the file does not begin with the format `{FORMAT}` and its origin")
        text = "was edited" if self.is_beside_signed else "does not have the hash that stands beside it"
        for at in self.edited[:FINDINGS_MAX]:
            self.found("edited", f"record {at} {text}", at)
        if size + sum(len(gap) for gap in self.order.gaps) < signed:
            self.found("truncated", f"{signed} records were signed and the file ends after {size}", size)
        if self.bad is not None:
            text = f"the records do not give the root that the log signed for {self.bad} of them"
            if not self.is_beside_signed:
                text += f"; the first wrong one is one of {min(self.good, self.bad - 1)} to {self.bad - 1}"
            self.found("root", text, self.edited[0] if self.is_beside_signed else None)
            if self.good >= self.bad:
                self.found("fork", f"the log signed {self.good} records that fit and {self.bad} that do not")
        elif size > max(self.good, signed):
            self.found("uncovered", "no checkpoint covers the records from here on", max(self.good, signed))
        return self.findings


def check_head(
    note: str, what: str, witnesses: Sequence[Key] = (), quorum: int = 0
) -> tuple[list[tuple[str, Head]], list[Finding]]:
    """A checkpoint from outside, and what is wrong with its form and cosignatures; who signed it is seen later."""
    try:
        head = read_head(note)
    except ValueError as error:
        return [], [Finding("checkpoint", f"{what} is malformed: {error}")]
    reasons = [why for why in (cosigned_by(head, witness) for witness in witnesses) if why]
    is_enough = 0 < quorum <= len(witnesses) - len(reasons)
    return [(what, head)], [] if is_enough else [Finding("witness", f"{what}: {why}") for why in reasons]


def check_export(
    lines: Iterable[bytes], note: str, key: Key, seen: Iterable[str] = (), witnesses: Sequence[Key] = (), quorum: int = 0
) -> tuple[int, list[Finding]]:  # fmt: skip
    """How many records an export has, and what is wrong with it: held against a checkpoint and others seen before."""
    heads, findings = check_head(note, "the checkpoint", witnesses, quorum)
    for number, other in enumerate(seen, start=1):
        more, wrong = check_head(other, f"checkpoint {number} of those seen before")
        heads, findings = heads + more, findings + wrong
    check = Check(key, heads)
    check.read(lines)
    return check.tree.size, findings + check.end()


def check_proof(bundle: str, key: Key, witnesses: Sequence[Key] = (), quorum: int = 0) -> list[Finding]:
    """What is wrong with a bundle that proves one record, and before it those that name keys."""
    try:
        found = json.loads(bundle)
        records = [
            (item["leaf"].encode(), item["index"], item["proof"]) for item in (*found.get("keys", ()), found)
        ]
        proofs = [[base64.b64decode(part, validate=True) for part in proof] for _, _, proof in records]
        note = str(found["checkpoint"])
        if found["format"] != PROOF_FORMAT or any(type(index) is not int for _, index, _ in records):
            raise ValueError("it has another format")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return [Finding("malformed", f"the bundle is no proof: {error}")]
    heads, findings = check_head(note, "the checkpoint", witnesses, quorum)
    keys: Keys = [(0, key)]
    if not all(follow(keys, index, leaf) for leaf, index, _ in records[:-1]):
        findings.append(Finding("key", "a record names a key that the key before it did not"))
    for what, head in heads:
        if why := signed_by(head, *keys_at(keys, head.size)):
            findings.append(Finding("origin" if head.origin != key.name else "signature", f"{what}: {why}"))
        for (leaf, index, _), proof in zip(records, proofs, strict=True):
            if not is_included(sha256(b"\x00" + leaf).digest(), index, head.size, proof, head.root):
                findings.append(
                    Finding("proof", f"it is not record {index} of those that were signed", index)
                )
    return findings


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", metavar="FILE", help="export.jsonl checkpoint.txt public.key")
    parser.add_argument("--proof", action="store_true", help="FILE is: bundle.json public.key")
    parser.add_argument("--seen", action="append", default=[], help="a checkpoint that you or a witness kept")
    parser.add_argument("--witness", action="append", default=[], help="a witness that must have cosigned")
    parser.add_argument("--quorum", type=int, default=0, help="how many of them must have (default: all)")
    parser.add_argument("--json", action="store_true", help="the findings as JSON")
    chosen = parser.parse_args(arguments)
    try:
        if len(chosen.files) != (2 if chosen.proof else 3):
            raise ValueError("expected export, checkpoint and key; with --proof, bundle and key")
        key = read_key(Path(chosen.files[-1]).read_text("utf-8"))
        given = (read_key(Path(path).read_text("utf-8")) for path in chosen.witness)
        witnesses = list({item.public: item for item in given}.values())
        if not 0 <= chosen.quorum <= len(witnesses):
            raise ValueError(f"a quorum of {chosen.quorum} does not fit {len(witnesses)} witnesses")
        if chosen.proof:
            bundle = Path(chosen.files[0]).read_text("utf-8")
            size, findings = 1, check_proof(bundle, key, witnesses, chosen.quorum)
        else:
            note, *seen = (Path(path).read_text("utf-8") for path in (chosen.files[1], *chosen.seen))
            with Path(chosen.files[0]).open("rb") as file:
                lines = iter(lambda: file.readline(LINE_BYTES_MAX), b"")  # a longer one comes in parts
                size, findings = check_export(lines, note, key, seen, witnesses, chosen.quorum)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"the check could not be made: {error}\n")
        return 2
    verdict = f"{size} record(s) of `{key.name}`: {'NOT ' if findings else ''}as signed"
    text = "\n".join([*(f"{item.code}: {item.message}" for item in findings), verdict])
    told = {"ok": not findings, "records": size, "findings": [item._asdict() for item in findings]}
    sys.stdout.write(f"{json.dumps(told) if chosen.json else text}\n")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
