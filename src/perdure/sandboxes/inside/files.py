"""The files of a workspace: put there before a job, and handed out after it. Runs behind the wall.

The form both ways: for each file a line of JSON (``name``, ``size``, ``x``) and its bytes; at the end a line with ``left_out``.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

DEPTH_MAX = 64  # of directories; deeper ones are made to exhaust whoever walks them
LEFT_OUT_MAX = 100
NAME_BYTES_MAX = 4_096
READ_BYTES = 1 << 20


def put(archive: int, place: str) -> None:
    """Write the files of an archive below a directory that is empty."""
    with open(archive, "rb") as source:
        while line := source.readline():
            told = json.loads(line)
            if "left_out" in told:
                return
            path = f"{place}/{told['name']}"
            os.makedirs(os.path.dirname(path), exist_ok=True)
            made = os.open(
                path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o700 if told["x"] else 0o600
            )
            with open(made, "wb") as target:
                left = told["size"]
                while left:
                    part = source.read(min(left, READ_BYTES))
                    target.write(part)
                    left -= len(part)


def collect(place: str, send: Callable[[bytes], Any], files_max: int) -> None:
    """Hand out the regular files below a directory in which nobody works any more; links are not followed."""
    left_out: dict[str, str] = {}
    count = 0
    root = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    for name, found in _walk(root, "", 0):
        why = found if isinstance(found, str) else "too many files" if count >= files_max else ""
        if why:
            if len(left_out) < LEFT_OUT_MAX:
                left_out[name.encode(errors="replace").decode()] = why
            continue
        count += 1
        _send(name, int(found), send)
    send(json.dumps({"left_out": left_out}).encode() + b"\n")


def _walk(folder: int, prefix: str, depth: int) -> Iterator[tuple[str, int | str]]:
    """Names with a descriptor, or with why there is none. Closes what it is given."""
    try:
        for name in sorted(os.listdir(folder)):
            whole = prefix + name
            try:
                whole.encode()
            except UnicodeEncodeError:
                yield whole, "its name is not UTF-8"
                continue
            if len(whole.encode()) > NAME_BYTES_MAX:
                yield whole[:200], "its name is too long"
                continue
            try:
                yield from _entry(folder, name, whole, depth)
            except OSError as error:
                yield whole, f"it cannot be read: {error.strerror}"
    finally:
        os.close(folder)


def _entry(folder: int, name: str, whole: str, depth: int) -> Iterator[tuple[str, int | str]]:
    kind = os.lstat(name, dir_fd=folder).st_mode
    if stat.S_ISDIR(kind):
        if depth >= DEPTH_MAX:
            yield whole, "it lies too deep"
            return
        os.chmod(name, 0o700, dir_fd=folder)  # it may have locked itself out
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
        yield from _walk(inner, whole + "/", depth + 1)
    elif stat.S_ISREG(kind):
        if not kind & 0o400:
            os.chmod(name, 0o600 | (kind & 0o100), dir_fd=folder)
        yield whole, os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
    else:
        yield whole, "a symbolic link" if stat.S_ISLNK(kind) else "not a regular file"


def _send(name: str, descriptor: int, send: Callable[[bytes], Any]) -> None:
    with open(descriptor, "rb") as source:
        found = os.fstat(descriptor)
        told = {"name": name, "size": found.st_size, "x": bool(found.st_mode & 0o100)}
        send(json.dumps(told).encode() + b"\n")
        left = found.st_size
        while left:
            part = source.read(min(left, READ_BYTES)) or bytes(min(left, READ_BYTES))
            send(part)
            left -= len(part)
