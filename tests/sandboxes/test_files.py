"""Files in and out of sandboxes by hostile hands: links that race, names that lead out, more than there is room for."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.errors import InputInvalidError, SandboxUnavailableError
from perdure.core.sandbox import MIB, SandboxFile, SandboxJob, check_file_name
from perdure.sandboxes import exchange
from perdure.sandboxes.namespace import NamespaceSandboxes
from perdure.testing.conformance.sandboxes import LIMITS


@pytest.fixture
async def sandboxes() -> AsyncIterator[NamespaceSandboxes]:
    made = NamespaceSandboxes(LIMITS, spare=1)
    try:
        await made.open()
    except SandboxUnavailableError as error:
        pytest.skip(f"no namespaces here: {error}")
    yield made
    await made.close()


async def collected(sandboxes: NamespaceSandboxes, code: str) -> tuple[dict[str, bytes], dict[str, str]]:
    found = await sandboxes.run(SandboxJob(code=code, collects=True))
    assert found.exit_code == 0, found
    return {file.name: file.data for file in found.files}, dict(found.left_out)


async def test_links_that_are_swapped_while_files_go_out(sandboxes: NamespaceSandboxes) -> None:
    swap = """
import os
for name in ("a", "b", "c"):
    open(name, "w").write("mine")
os.link("a", "hard")
if os.fork() == 0:
    os.setsid()
    os.closerange(0, 3)
    while True:
        for name in ("a", "b", "c"):
            try:
                os.symlink("/etc/passwd", name + ".new"); os.replace(name + ".new", name)
                open(name + ".new", "w").write("mine"); os.replace(name + ".new", name)
            except OSError: pass
"""
    for _ in range(5):
        files, left_out = await collected(sandboxes, swap)
        assert all(data in (b"mine", b"") for data in files.values()), files
        assert set(left_out.values()) <= {"a symbolic link"}


async def test_folders_that_are_links_lead_nowhere(sandboxes: NamespaceSandboxes) -> None:
    files, left_out = await collected(
        sandboxes, "import os; os.symlink('/etc', 'etc'); os.symlink('/', 'all'); open('a','w').close()"
    )
    assert files == {"a": b""}
    assert left_out == {"etc": "a symbolic link", "all": "a symbolic link"}


async def test_what_is_locked_can_be_read_by_its_owner(sandboxes: NamespaceSandboxes) -> None:
    code = "import os; os.mkdir('d'); open('d/f', 'w').write('x'); os.chmod('d/f', 0); os.chmod('d', 0)"
    files, _ = await collected(sandboxes, code)
    assert files == {"d/f": b"x"}


async def test_deep_folders_and_long_names(sandboxes: NamespaceSandboxes) -> None:
    code = """
import os
for _ in range(200):
    os.mkdir("d"); os.chdir("d")
open("deep", "w").close()
os.chdir("/workspace")
open("n" * 255, "w").write("long")
open(b"not \\xff text", "w").close()
path = "/workspace"
for _ in range(20):
    path += "/" + "p" * 255
    try: os.mkdir(path)
    except OSError: break
"""
    files, left_out = await collected(sandboxes, code)
    assert files == {"n" * 255: b"long"}
    assert "it lies too deep" in left_out.values()
    assert "its name is not UTF-8" in left_out.values()


async def test_a_file_with_holes_is_as_large_as_its_disk(sandboxes: NamespaceSandboxes) -> None:
    """A sparse file of a terabyte costs nothing inside; outside it would."""
    found = await sandboxes.run(
        SandboxJob(code="import os; f = open('big', 'w'); os.truncate('big', 1 << 40)", collects=True)
    )
    assert found.ending == "disk", found
    assert sum(len(file.data) for file in found.files) <= LIMITS.disk_bytes


async def test_more_than_there_is_room_for(sandboxes: NamespaceSandboxes) -> None:
    large = tuple(SandboxFile(name=f"f{number}", data=bytes(MIB)) for number in range(12))
    assert (await sandboxes.run(SandboxJob(code="print(1)", files=large))).ending == "disk"
    many = tuple(SandboxFile(name=f"f{number}", data=b"") for number in range(LIMITS.files + 10))
    assert (await sandboxes.run(SandboxJob(code="print(1)", files=many))).ending == "disk"
    assert (await sandboxes.run(SandboxJob(code="print(1)"))).stdout == b"1\n"


async def test_the_first_process_says_nothing_that_is_believed_unseen(sandboxes: NamespaceSandboxes) -> None:
    """Whatever comes back is checked again: names cannot lead out, sizes cannot lie."""
    for data in (
        b'{"name":"../x","size":1,"x":false}\nA{"left_out":{}}\n',
        b'{"name":"/etc/x","size":1,"x":false}\nA{"left_out":{}}\n',
        b'{"name":"a","size":-1,"x":false}\n{"left_out":{}}\n',
        b'{"name":"a","size":99,"x":false}\nA{"left_out":{}}\n',
        b'{"name":"a","size":1,"x":false}\nA',
        b"",
        b"\xff\n",
    ):
        with pytest.raises((ValueError, msgspec.MsgspecError)):
            exchange.read(data)


@given(st.lists(st.tuples(st.text(max_size=20), st.binary(max_size=99), st.booleans()), max_size=8))
def test_what_goes_in_comes_out(items: list[tuple[str, bytes, bool]]) -> None:
    files: dict[str, SandboxFile] = {}
    for name, data, is_executable in items:
        try:
            check_file_name(name)
        except InputInvalidError:
            continue
        files[name] = SandboxFile(name=name, data=data, is_executable=is_executable)
    found, left_out = exchange.read(b"".join(exchange.written(list(files.values()))))
    assert {file.name: file for file in found} == files
    assert left_out == {}


@given(st.binary(max_size=300))
def test_anything_may_come_back(data: bytes) -> None:
    try:
        files, _ = exchange.read(data)
    except (ValueError, msgspec.MsgspecError):
        return
    for file in files:
        check_file_name(file.name)


def test_nothing_of_this_is_left_on_the_machine() -> None:
    assert not [name for name in os.listdir(Path("/tmp")) if name.startswith("n" * 20)]  # noqa: S108
