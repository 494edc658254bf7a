"""What goes into a sandbox and comes out of it, as bytes: descriptors for reading, and the files of a workspace."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import msgspec

from perdure.core.errors import PerdureError, SandboxUnavailableError
from perdure.core.sandbox import SandboxFile, check_file_name

READ_BYTES = 1 << 20


class _Told(msgspec.Struct):
    """The line before a file's bytes, and the last line of all."""

    name: str = ""
    size: int = 0
    x: bool = False
    left_out: Mapping[str, str] | None = None


_decoder = msgspec.json.Decoder(_Told)


class Held:
    """A descriptor that is closed with a block."""

    def __init__(self, descriptor: int) -> None:
        self.number = descriptor

    def close(self) -> None:
        """Close it."""
        os.close(self.number)


def source(parts: Sequence[bytes]) -> int:
    """A descriptor from which somebody reads these bytes, and then the end. Blocks.

    Raises:
        SandboxUnavailableError: the machine has no room for them.
    """
    try:
        made = os.memfd_create("given")
    except OSError as error:
        raise SandboxUnavailableError(f"what a sandbox is given cannot be kept: {error.strerror}") from error
    try:
        for part in parts:
            view = memoryview(part)
            while view:
                view = view[os.write(made, view) :]
        os.lseek(made, 0, os.SEEK_SET)
    except OSError as error:
        os.close(made)
        raise SandboxUnavailableError(f"what a sandbox is given cannot be kept: {error.strerror}") from error
    return made


def written(files: Sequence[SandboxFile]) -> list[bytes]:
    """Files in the form that is read inside."""
    parts: list[bytes] = []
    for file in files:
        told = {"name": file.name, "size": len(file.data), "x": file.is_executable}
        parts += [msgspec.json.encode(told) + b"\n", file.data]
    return [*parts, b'{"left_out":{}}\n']


def read(data: bytes | bytearray) -> tuple[tuple[SandboxFile, ...], dict[str, str]]:
    """Files as they come out, and what was left out with why. Whoever sent them may be anybody: nothing is believed.

    Raises:
        ValueError: this is not whole, or not in that form.
    """
    files: dict[str, SandboxFile] = {}
    place = 0
    while (end := data.find(b"\n", place)) >= 0:
        told = _decoder.decode(bytes(data[place:end]))
        place = end + 1
        if told.left_out is not None:
            return tuple(files[name] for name in sorted(files)), dict(told.left_out)
        if told.size < 0 or place + told.size > len(data):
            break
        try:
            check_file_name(told.name)
        except PerdureError as error:
            raise ValueError(error.message) from error
        files[told.name] = SandboxFile(
            name=told.name, data=bytes(data[place : place + told.size]), is_executable=told.x
        )
        place += told.size
    raise ValueError("the files of a workspace did not arrive whole")
