"""Workspaces of runs: files by their digest, and what each run had after each action, so that an earlier state can be had again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from perdure.core.errors import DataDirInvalidError, InputInvalidError, StoreFullError
from perdure.core.sandbox import SandboxFile, check_file_name

PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
HISTORY_MAX = 10_000  # changes that one run may make to its workspace


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """One file of a manifest."""

    digest: str
    size_bytes: int
    is_executable: bool = False


Manifest = Mapping[str, Kept]
EMPTY: Manifest = {}


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a run's history: an action found the workspace in one state and left it in another."""

    key: str
    base: str
    tip: str
    by: str = ""


class Workspaces:
    """The workspaces of all runs, in one folder. Blocks: call it in a thread.

    Args:
        folder: where they are; made if missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    # -- states
    def history(self, run: str) -> list[Change]:
        """What happened to the workspace of a run, oldest first; a line that a crash cut short never happened."""
        try:
            lines = self._log(run).read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        found: list[Change] = []
        for line in lines:
            if line.endswith(b"\n"):
                with contextlib.suppress(msgspec.MsgspecError):
                    found.append(msgspec.json.decode(line, type=Change))
        return found

    def tip(self, run: str) -> str:
        """The digest of the state it is in now; empty for an empty one."""
        changes = self.history(run)
        return changes[-1].tip if changes else ""

    def base(self, run: str, key: str) -> str:
        """The state that an action finds; one that is done again finds what it found before."""
        changes = self.history(run)
        for change in reversed(changes):
            if change.key == key:
                return change.base
        return changes[-1].tip if changes else ""

    def manifest(self, digest: str) -> Manifest:
        """The files of a state.

        Raises:
            DataDirInvalidError: it is not there, or not what it was.
        """
        return EMPTY if not digest else msgspec.json.decode(self._object(digest), type=dict[str, Kept])

    # -- files
    def files(self, manifest: Manifest) -> tuple[SandboxFile, ...]:
        """All files of a state."""
        return tuple(
            SandboxFile(name=name, data=self._object(kept.digest), is_executable=kept.is_executable)
            for name, kept in sorted(manifest.items())
        )

    def file(self, manifest: Manifest, name: str) -> bytes:
        """The bytes of one file.

        Raises:
            InputInvalidError: there is none of that name.
        """
        kept = manifest.get(name)
        if kept is None:
            known = ", ".join(sorted(manifest)[:20]) or "nothing"
            raise InputInvalidError(f"there is no file `{name:.200}` in the workspace; there is {known}")
        return self._object(kept.digest)

    def save(self, run: str, key: str, base: str, files: Sequence[SandboxFile]) -> str:
        """Make these files the state of a run; durable on return.

        Args:
            run: whose workspace.
            key: the action's idempotency key.
            base: the state that the action found.
            files: all that is there now.

        Returns:
            The digest of the new state.

        Raises:
            StoreFullError: the disk is full; the state is what it was.
        """
        manifest: dict[str, Kept] = {}
        for file in files:
            check_file_name(file.name)
            manifest[file.name] = Kept(self._keep(file.data), len(file.data), file.is_executable)
        return self.settle(run, key, base, manifest)

    def settle(self, run: str, key: str, base: str, manifest: Manifest, *, by: str = "") -> str:
        """Make a state of files that are here already the state of a run; durable on return."""
        tip = self._keep(msgspec.json.encode(dict(sorted(manifest.items())))) if manifest else ""
        changes = self.history(run)
        if tip == (changes[-1].tip if changes else "") and all(change.key != key for change in changes):
            return tip  # nothing has changed
        if len(changes) >= HISTORY_MAX:
            raise InputInvalidError(
                f"run `{run}` has changed its workspace {HISTORY_MAX} times, and that is the limit"
            )
        self._append(run, Change(key=key, base=base, tip=tip, by=by))
        return tip

    # -- the disk
    def _append(self, run: str, change: Change) -> None:
        path = self._log(run)
        is_new = not path.exists()
        try:
            path.parent.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
            made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, PRIVATE_FILE)
            try:
                size = os.fstat(made).st_size
                is_torn = size > 0 and os.pread(made, 1, size - 1) != b"\n"
                line = (b"\n" if is_torn else b"") + msgspec.json.encode(change) + b"\n"
                if os.write(made, line) != len(line):
                    raise StoreFullError(f"`{path}` cannot be written whole; make room there")
                os.fsync(made)
            finally:
                os.close(made)
            if is_new:
                _sync_folder(path.parent)
        except OSError as error:
            raise _full(path, error) from error

    def _keep(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        path = self._place(digest)
        if path.exists():
            return digest
        try:
            path.parent.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
                try:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                    Path(file.name).replace(path)  # whole or not at all, also after a crash
                except OSError:
                    Path(file.name).unlink(missing_ok=True)
                    raise
            _sync_folder(path.parent)
        except OSError as error:
            raise _full(path, error) from error
        return digest

    def _object(self, digest: str) -> bytes:
        try:
            data = self._place(digest).read_bytes()
        except OSError as error:
            raise DataDirInvalidError(
                f"the file with digest `{digest}` of a workspace cannot be read: {error.strerror}"
            ) from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise DataDirInvalidError(f"the file with digest `{digest}` of a workspace is not what it was")
        return data

    def _place(self, digest: str) -> Path:
        return self._folder / "objects" / digest[:2] / digest

    def _log(self, run: str) -> Path:
        check_file_name(run)
        if "/" in run:
            raise InputInvalidError(f"`{run:.200}` is no run")
        return self._folder / "runs" / f"{run}.jsonl"


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _full(path: Path, error: OSError) -> StoreFullError:
    return StoreFullError(f"`{path.parent}` cannot be written: {error.strerror}; make room there")
