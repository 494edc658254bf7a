"""What a data directory signs and seals with: the key of its audit log, the one that follows it, and the master key of the details.

All are in one file that its owner alone can read. Which key is in force is a fact in the database, written in the transaction of the record
that names it: whoever signs looks there first, so a process that was open before a rotation signs nothing with the old key.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from perdure.core.errors import DataDirInvalidError, UsageError
from perdure.governance.notes import VerifierKey
from perdure.ports import Transaction

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

LOG_KEYS = "audit.key"  # in the data directory
PUBLIC = "audit.pub"  # beside it: the first public key, from which a verifier follows the others
SEED_BYTES = 32
CHAIN = "audit-keys"  # the fact that holds the chain


class Chain(msgspec.Struct, frozen=True):
    """The key in force, and the places of the records that led to it; before the first rotation, none."""

    key: str = ""
    records: tuple[int, ...] = ()


def chain_of(tx: Transaction) -> Chain:
    """Which key is in force."""
    return msgspec.json.decode(tx.fact(CHAIN) or "{}", type=Chain)


def set_chain(tx: Transaction, chain: Chain) -> None:
    """Set which key is in force."""
    tx.set_fact(CHAIN, msgspec.json.encode(chain).decode())


class LogKeys:
    """The keys of a data directory.

    Args:
        folder: the data directory.
        origin: the log's name.

    Attributes:
        master: wraps the keys of the details.
        first: the public key that the log began with.

    Raises:
        DataDirInvalidError: the file cannot be read or made, or is damaged.
    """

    def __init__(self, folder: Path, origin: str) -> None:
        self._path = folder / LOG_KEYS
        self.origin = origin
        self._read()
        with self._usable():
            public, text = folder / PUBLIC, f"{self.first.text}\n"
            if not public.exists() or public.read_text(encoding="utf-8") != text:
                public.write_text(text, encoding="utf-8")

    def _read(self) -> None:
        with self._usable():
            if not self._path.exists():
                self._write(
                    {"log": os.urandom(SEED_BYTES).hex(), "master": os.urandom(SEED_BYTES).hex()},
                    is_first=True,
                )
            self._found: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
            self.master = bytes.fromhex(self._found["master"])
            seeds = [self._found["log"], *([self._found["next"]] if "next" in self._found else [])]
            self._private = {self._verifier(key).text: key for key in map(_private, seeds)}
            first = self._found.get("first")
            self.first = VerifierKey.parse(first) if first else self._verifier(_private(self._found["log"]))

    def signer(self, chain: Chain) -> Ed25519PrivateKey:
        """The private key in force.

        Raises:
            DataDirInvalidError: it is not in the file: the database is older or newer than the file.
        """
        named = chain.key or self.first.text
        if named not in self._private:
            self._read()  # another process has rotated it
        if named not in self._private:
            raise DataDirInvalidError(
                f"`{self._path}` does not have the log's key in force, {named[:100]}; restore the file that belongs to the database"
            )
        return self._private[named]

    # -- rotation: three steps, each durable; a crash between any two leaves the key in force in the file
    @contextmanager
    def rotating(self, chain: Chain) -> Iterator[VerifierKey]:
        """A new key, in the file before it is named in the log; on leaving, when it is named, the old one is destroyed.

        Args:
            chain: which key is in force; a half-done rotation is ended first.

        Raises:
            DataDirInvalidError: the file cannot be written.
            UsageError: somebody else is at it.
        """
        with self._path.with_name(f".{LOG_KEYS}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError("the key of the audit log is being rotated already") from error
            self._read()
            old = self._seed(self.signer(chain))
            seed = os.urandom(SEED_BYTES).hex()
            base = {"master": self._found["master"], "first": self.first.text}
            with self._usable():
                self._write({"log": old, "next": seed, **base})
            self._read()
            yield self._verifier(_private(seed))
            with self._usable():
                self._write({"log": seed, **base})
            self._read()

    def _write(self, found: dict[str, str], *, is_first: bool = False) -> None:
        part = self._path.with_name(f".{LOG_KEYS}-{os.getpid()}")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(found, file)
            file.flush()
            os.fsync(file.fileno())
        if is_first:
            try:
                os.link(part, self._path)  # whoever comes first
            except FileExistsError:
                pass
            finally:
                part.unlink()
        else:
            part.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _verifier(self, private: Ed25519PrivateKey) -> VerifierKey:
        return VerifierKey.of(self.origin, private)

    @staticmethod
    def _seed(private: Ed25519PrivateKey) -> str:
        return private.private_bytes_raw().hex()

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataDirInvalidError(
                f"the keys of the audit log in `{self._path}` cannot be used: {error}"
            ) from error


def _private(seed: str) -> Ed25519PrivateKey:
    # Slow to import: for the first use, not for every start.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed))


def origin_of(runtime_id: str) -> str:
    """What a log is called."""
    return f"perdure.log/{runtime_id}"
