"""Checks an exported audit log: one file, the standard library only, meant to be read by whoever has to trust it.

    python verify_file.py export.jsonl checkpoint.txt public.key [--seen CHECKPOINT]... [--witness KEY]... [--json]
    python verify_file.py --proof bundle.json public.key [--witness KEY]... [--json]

`public.key` holds the log's verifier key (`name+id+base64`) and must have come to you by another way than the export.
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
from collections.abc import Iterable, Iterator
from hashlib import sha256, sha512
from pathlib import Path
from typing import NamedTuple

FORMAT = "perdure-audit/1"
PROOF_FORMAT = "perdure-audit-proof/1"
LINE_BYTES_MAX = 256 * 1024  # a record has 64 KiB at most, a note too
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
        if number & 1:
            found = add(found, point)
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
    if len(public) != 32 or len(signature) != 64:
        return False
    key, commitment = point_of(public), point_of(signature[:32])
    number = int.from_bytes(signature[32:], "little")
    if key is None or commitment is None or number >= Q:
        return False
    challenge = int.from_bytes(sha512(signature[:32] + public + message).digest(), "little") % Q
    left, right = times(number, BASE), add(commitment, times(challenge, key))
    return not (
        (left[0] * right[2] - right[0] * left[2]) % P or (left[1] * right[2] - right[1] * left[2]) % P
    )


# -- notes and checkpoints
class Key(NamedTuple):
    """A verifier key; type 1 signs, type 4 cosigns."""

    name: str
    kind: int
    public: bytes

    @property
    def key_id(self) -> bytes:
        """The hint that stands before its signatures."""
        return sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.public).digest()[:4]


class Head(NamedTuple):
    """A checkpoint: what the log said of itself, with signatures that are not checked yet."""

    origin: str
    size: int
    root: bytes
    body: str
    signatures: tuple[tuple[str, bytes, bytes], ...]  # name, key id, signature


class Finding(NamedTuple):
    """Something that is not as it must be, and the record where it is, if that can be told."""

    code: str
    message: str
    record: int | None = None


def read_key(text: str) -> Key:
    """The key of a verifier key text; ``ValueError`` if it is none."""
    name, key_id, data = text.strip().split("+", 2)
    raw = base64.b64decode(data, validate=True)
    key = Key(name, raw[0] if raw else 0, raw[1:])
    if key.kind not in (1, 4) or len(key.public) != 32 or key.key_id.hex() != key_id:
        raise ValueError("no Ed25519 verifier key, or its id does not fit")
    return key


def read_head(note: str) -> Head:
    """The checkpoint of a signed note; ``ValueError`` if it is none."""
    body, gap, lines = note.rpartition("\n\n")
    origin, size, root, *_ = f"{body}\n\n\n".split("\n")
    data = base64.b64decode(root, validate=True)
    if not gap or not origin or len(data) != 32 or not re.fullmatch("0|[1-9][0-9]{0,18}", size, re.ASCII):
        raise ValueError("no checkpoint: expected origin, size, root, an empty line and signatures")
    signatures = []
    for line in lines.splitlines():
        dash, name, data_text = line.split(" ")
        raw = base64.b64decode(data_text, validate=True)
        if dash != "—":
            raise ValueError("no signature line")
        signatures.append((name, raw[:4], raw[4:]))
    return Head(origin, int(size), data, body + "\n", tuple(signatures))


def signed_by(head: Head, key: Key) -> str:
    """Why the log's key did not sign the checkpoint; empty if it did."""
    if head.origin != key.name:
        return f"it is of the log `{head.origin}`, not of `{key.name}`"
    found = [data for name, key_id, data in head.signatures if (name, key_id) == (key.name, key.key_id)]
    if not found:
        others = ", ".join(f"`{name}` {key_id.hex()}" for name, key_id, _ in head.signatures) or "nobody"
        return f"it is not signed by `{key.name}` {key.key_id.hex()}, but by {others}: another key was used"
    good = all(is_signed(key.public, head.body.encode(), data) for data in found)
    return "" if good else "its signature does not fit: it was changed after it was signed"


def cosigned_by(head: Head, key: Key) -> str:
    """Why the witness did not cosign the checkpoint; empty if it did."""
    found = [data for name, key_id, data in head.signatures if (name, key_id) == (key.name, key.key_id)]
    for data in found:
        time_s = int.from_bytes(data[:8], "big")
        if not is_signed(key.public, f"cosignature/v1\ntime {time_s}\n{head.body}".encode(), data[8:]):
            return f"the cosignature of `{key.name}` does not fit"
    return "" if found else f"the witness `{key.name}` did not cosign it"


# -- the tree
class Tree:
    """Grows leaf by leaf; keeps the right edge only."""

    def __init__(self) -> None:
        self.size = 0
        self.edge: list[bytes] = []

    def append(self, leaf: bytes) -> None:
        """One more leaf hash."""
        bits = self.size
        while bits & 1:
            leaf = sha256(b"\x01" + self.edge.pop() + leaf).digest()
            bits >>= 1
        self.edge.append(leaf)
        self.size += 1

    @property
    def root(self) -> bytes:
        """The root now."""
        root = self.edge[-1] if self.edge else sha256(b"").digest()
        for left in reversed(self.edge[:-1]):
            root = sha256(b"\x01" + left + root).digest()
        return root


def is_included(leaf: bytes, index: int, size: int, proof: Iterable[bytes], root: bytes) -> bool:
    """Whether a leaf hash is in the tree (RFC 9162, 2.1.3.2)."""
    place, last = index, size - 1
    if not 0 <= index < size:
        return False
    for sibling in proof:
        if last == 0:
            return False
        if place & 1 or place == last:
            leaf = sha256(b"\x01" + sibling + leaf).digest()
            while place and not place & 1:
                place, last = place >> 1, last >> 1
        else:
            leaf = sha256(b"\x01" + leaf + sibling).digest()
        place, last = place >> 1, last >> 1
    return last == 0 and leaf == root


# -- the exported file
class Order:
    """Where the numbers of the records have gaps, step back or repeat."""

    def __init__(self) -> None:
        self.next, self.gaps, self.late, self.again = 0, list[range](), list[int](), list[int]()

    def see(self, index: int) -> None:
        """One more record."""
        if index >= self.next:
            if index > self.next:
                self.gaps.append(range(self.next, index))
            self.next = index + 1
            return
        at = next((at for at, gap in enumerate(self.gaps) if index in gap), None)
        if at is None:
            self.again.append(index)
            return
        gap = self.gaps[at]
        self.gaps[at : at + 1] = [
            part for part in (range(gap.start, index), range(index + 1, gap.stop)) if part
        ]
        self.late.append(index)

    def findings(self) -> Iterator[Finding]:
        """What that means."""
        for gap in self.gaps[:FINDINGS_MAX]:
            some = f"record {gap.start} is" if len(gap) == 1 else f"records {gap.start} to {gap[-1]} are"
            yield Finding("missing", f"{some} missing", gap.start)
        for index in sorted(self.late)[:FINDINGS_MAX]:
            yield Finding("reordered", f"record {index} is not in its place", index)
        for index in self.again[:FINDINGS_MAX]:
            yield Finding("inserted", f"there is a second record {index}", index)


class Check:
    """Reads an export once and compares its tree with every checkpoint at the size that it speaks of."""

    def __init__(self, key: Key, heads: list[Head]) -> None:
        self.key, self.heads, self.due = key, heads, {head.size for head in heads}
        self.tree, self.order = Tree(), Order()
        self.beside = Tree()  # over the hashes as they stand beside the records, from the first wrong one on
        self.is_beside_signed = False  # so the wrong records are those that do not have these hashes
        self.has_begun = self.has_moved = False
        self.findings: list[Finding] = []
        self.edited: list[int] = []
        self.good = 0  # the largest size at which the file is what the log signed
        self.bad: int | None = None  # the smallest at which it is not

    def read(self, lines: Iterable[bytes]) -> None:
        """Every line of the file."""
        self.compare_due()
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
            self.tree.append(hashed.digest())
            if self.tree.size in self.due:
                self.compare_due()

    def other(self, number: int, line: bytes) -> None:
        """A line that is no record: the beginning of the file, or a checkpoint."""
        try:
            found = json.loads(line)
            if number > 1 or "checkpoint" in found:
                self.embedded(read_head(found["checkpoint"]))
            elif found["format"] == FORMAT and found["origin"] == self.key.name:
                self.has_begun = True
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            message = f"line {number} is neither a record nor a checkpoint"
            self.findings.append(Finding("malformed", message, self.tree.size))

    def embedded(self, head: Head) -> None:
        """A checkpoint in the file; it stands after the last record that it speaks of."""
        why = signed_by(head, self.key)
        if why:
            message = f"a checkpoint in the export, of {head.size} records: {why}"
            self.findings.append(Finding("checkpoint", message))
        elif head.size == self.tree.size:
            self.compare(head)
        elif not self.has_moved:
            self.has_moved = True
            message = f"the checkpoint of {head.size} records stands after {self.tree.size}: some were removed or added"
            self.findings.append(Finding("moved", f"{message}, from {self.good} on", self.good))

    def compare_due(self) -> None:
        """The checkpoints from outside that speak of this size."""
        for head in self.heads:
            if head.size == self.tree.size:
                self.compare(head)
                self.is_beside_signed |= bool(self.edited) and self.beside.root == head.root

    def compare(self, head: Head) -> None:
        """Whether the file, as far as it was read, is what the log signed."""
        if self.tree.root == head.root:
            self.good = max(self.good, head.size)
        else:
            self.bad = head.size if self.bad is None else min(self.bad, head.size)

    def end(self) -> list[Finding]:
        """What was found."""
        size, findings = self.tree.size, [*self.findings[:FINDINGS_MAX], *self.order.findings()]
        if not self.has_begun:
            message = (
                f"the export does not begin with its format, `{FORMAT}`, and the origin `{self.key.name}`"
            )
            findings.append(Finding("origin", message))
        text = "was edited" if self.is_beside_signed else "does not have the hash that stands beside it"
        findings += [Finding("edited", f"record {at} {text}", at) for at in self.edited[:FINDINGS_MAX]]
        missing = sum(len(gap) for gap in self.order.gaps)
        signed = max(self.due, default=0)
        if size + missing < signed:
            message = f"the file ends after {size} records and {signed} were signed: it was truncated or rolled back"
            findings.append(Finding("truncated", message, size))
        if self.bad is not None:
            where = self.edited[0] if self.is_beside_signed else None
            message = f"the records do not give the root that the log signed for {self.bad} of them"
            if where is None:
                message += (
                    f"; the first wrong one is between {min(self.good, self.bad - 1)} and {self.bad - 1}"
                )
            findings.append(Finding("root", message, where))
            if self.good >= self.bad:
                message = (
                    f"the log signed {self.good} records that fit and {self.bad} that do not: two histories"
                )
                findings.append(Finding("fork", message))
        elif size > max(self.good, signed):
            message = f"no checkpoint covers the records from {max(self.good, signed)} on"
            findings.append(Finding("uncovered", message, max(self.good, signed)))
        return findings


def check_head(note: str, key: Key, witnesses: Iterable[Key], what: str) -> tuple[list[Head], list[Finding]]:
    """A checkpoint from outside, if the log signed it, and what is wrong with its form, signature and cosignatures."""
    try:
        head = read_head(note)
    except ValueError as error:
        return [], [Finding("checkpoint", f"{what} is malformed: {error}")]
    why = signed_by(head, key)
    if why:
        return [], [Finding("origin" if head.origin != key.name else "signature", f"{what}: {why}")]
    reasons = [cosigned_by(head, witness) for witness in witnesses]
    return [head], [Finding("witness", f"{what}: {why}") for why in reasons if why]


def check_export(
    lines: Iterable[bytes], note: str, key: Key, seen: Iterable[str] = (), witnesses: Iterable[Key] = ()
) -> tuple[int, list[Finding]]:
    """How many records an export has, and what is wrong with it: held against a checkpoint and others seen before."""
    heads, findings = check_head(note, key, witnesses, "the checkpoint")
    for number, other in enumerate(seen, start=1):
        more, wrong = check_head(other, key, (), f"checkpoint {number} of those seen before")
        heads, findings = heads + more, findings + wrong
    roots: dict[int, bytes] = {}
    for head in heads:
        if roots.setdefault(head.size, head.root) != head.root:
            message = f"the log signed two different histories of {head.size} records"
            findings.append(Finding("fork", message))
    check = Check(key, heads)
    check.read(lines)
    return check.tree.size, findings + check.end()


def check_proof(bundle: str, key: Key, witnesses: Iterable[Key] = ()) -> list[Finding]:
    """What is wrong with a bundle that proves one record."""
    try:
        found = json.loads(bundle)
        leaf, index, note = found["leaf"].encode(), found["index"], str(found["checkpoint"])
        proof = [base64.b64decode(item, validate=True) for item in found["proof"]]
        if found["format"] != PROOF_FORMAT or type(index) is not int:
            raise ValueError("it has another format")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return [Finding("malformed", f"the bundle is no proof: {error}")]
    heads, findings = check_head(note, key, witnesses, "the checkpoint")
    for head in heads:
        if not is_included(sha256(b"\x00" + leaf).digest(), index, head.size, proof, head.root):
            findings.append(
                Finding("proof", f"the record is not record {index} of the {head.size} signed", index)
            )
    return findings


def lines_of(path: str) -> Iterator[bytes]:
    """The lines of a file; one that is too long comes in parts, which are no records."""
    with Path(path).open("rb") as file:
        yield from iter(lambda: file.readline(LINE_BYTES_MAX), b"")


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", metavar="FILE", help="export.jsonl checkpoint.txt public.key")
    parser.add_argument("--proof", action="store_true", help="FILE is: bundle.json public.key")
    parser.add_argument("--seen", action="append", default=[], help="a checkpoint that you or a witness kept")
    parser.add_argument("--witness", action="append", default=[], help="a witness that must have cosigned")
    parser.add_argument("--json", action="store_true", help="the findings as JSON")
    chosen = parser.parse_args(arguments)
    if len(chosen.files) != (2 if chosen.proof else 3):
        parser.error("expected export, checkpoint and key, or with --proof bundle and key")
    try:
        key = read_key(Path(chosen.files[-1]).read_text("utf-8"))
        witnesses = [read_key(Path(path).read_text("utf-8")) for path in chosen.witness]
        if chosen.proof:
            size, findings = 1, check_proof(Path(chosen.files[0]).read_text("utf-8"), key, witnesses)
        else:
            note, *seen = (Path(path).read_text("utf-8") for path in (chosen.files[1], *chosen.seen))
            size, findings = check_export(lines_of(chosen.files[0]), note, key, seen, witnesses)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"the check could not be made: {error}\n")
        return 2
    if chosen.json:
        rows = [{"code": item.code, "message": item.message, "record": item.record} for item in findings]
        sys.stdout.write(json.dumps({"ok": not rows, "records": size, "findings": rows}) + "\n")
    else:
        sys.stdout.writelines(f"{item.code}: {item.message}\n" for item in findings)
        sys.stdout.write(f"{size} record(s) of `{key.name}`: {'NOT ' if findings else ''}as signed\n")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
