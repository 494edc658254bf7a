"""Workspaces: fresh for each attempt, gone after it, and read with care."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.core.errors import DefinitionError
from perdure.hosting import workspace as module
from perdure.hosting.process import LAST_LINE_BYTES_MAX
from perdure.hosting.workspace import Workspace

# As a user to whom rights apply: the superuser may write and search everything.
WITHOUT_POWERS = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search,-fowner", "--inh-caps", "-all")
HIDE = """
import os, sys
from pathlib import Path
from perdure.hosting.workspace import Workspace
root = Path(sys.argv[1])
made = Workspace.make(root, "run", 1)
inner = made.work / "a" / "b"
inner.mkdir(parents=True)
(inner / "file").write_text("x")
(inner / "file").chmod(0)
for path in (inner, inner.parent, made.work):
    path.chmod(0)
try:
    os.listdir(made.work)
except PermissionError:
    print("rights apply")
Workspace.make(root, "run", 2)
print(sorted(os.listdir(root / "run")))
"""


@pytest.fixture
def made(tmp_path: Path) -> Workspace:
    return Workspace.make(tmp_path, "run", 1)


def test_a_workspace_has_folders_for_its_owner_only(tmp_path: Path) -> None:
    made = Workspace.make(tmp_path / "not" / "there", "01h.3", 1)
    assert made.root == tmp_path / "not" / "there" / "01h.3" / "1"
    for path in (made.root, made.work, made.home, made.tmp, made.root.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert path.is_dir()


def test_what_an_attempt_left_is_not_there_in_the_next(tmp_path: Path, made: Workspace) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (made.work / "state.json").write_text("old")
    (made.work / "link").symlink_to(outside)
    (made.work / "dead").symlink_to("/nowhere")
    (made.work / "deep" / "er").mkdir(parents=True)
    (made.work / "deep" / "er" / "link").symlink_to(outside / "kept")
    (made.work / "deep" / "er" / "read-only").write_text("x")
    (made.work / "deep" / "er" / "read-only").chmod(0o400)
    (made.work / "deep" / "er").chmod(0o500)
    os.mkfifo(made.home / "pipe")
    made.log.write_text("log")
    again = Workspace.make(tmp_path, "run", 1)
    assert again == made
    assert [path.name for path in sorted(again.root.rglob("*"))] == ["home", "tmp", "work"]
    assert sorted(os.listdir(tmp_path / "run")) == ["1", "output.log"]
    assert (outside / "kept").read_text() == "kept"
    assert stat.S_IMODE((outside / "kept").stat().st_mode) != 0o700
    assert again.log.read_text() == "log"


def test_a_link_in_the_place_of_the_next_attempt_is_not_followed(tmp_path: Path, made: Workspace) -> None:
    (tmp_path / "outside").mkdir()
    (made.root.parent / "2").symlink_to(tmp_path / "outside")
    second = Workspace.make(tmp_path, "run", 2)
    assert not second.root.is_symlink()
    assert os.listdir(tmp_path / "outside") == []


def test_a_tree_deeper_than_paths_are_long_is_removed(tmp_path: Path, made: Workspace) -> None:
    script = (
        "import os\nfor _ in range(1500): os.mkdir('folder'); os.chdir('folder')\nopen('file', 'w').close()"
    )
    subprocess.run([sys.executable, "-c", script], cwd=made.work, check=True)
    made.remove()
    assert os.listdir(tmp_path / "run") == []


def test_a_removal_that_a_crash_broke_off_is_finished_by_the_next(tmp_path: Path, made: Workspace) -> None:
    half = made.root.with_name("1.removed")
    (half / "77" / "x").mkdir(parents=True)
    (half / "77" / "file").write_text("x")
    Workspace.make(tmp_path, "run", 2)
    assert os.listdir(tmp_path / "run") == ["2"]


def test_removing_twice_does_no_harm(tmp_path: Path, made: Workspace) -> None:
    made.remove()
    made.remove()
    assert os.listdir(tmp_path / "run") == []


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0 and not shutil.which("setpriv"), reason="rights apply to no one"
)
def test_folders_that_the_program_closed_to_itself_are_removed(tmp_path: Path) -> None:
    prefix = WITHOUT_POWERS if os.geteuid() == 0 else ()
    done = subprocess.run(
        [*prefix, sys.executable, "-c", HIDE, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["rights apply", "['2']"], done.stderr


def test_a_place_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(DefinitionError, match="the workspace .* cannot be made: File exists; check"):
        Workspace.make(tmp_path, "run", 1)


@pytest.mark.parametrize(("run", "name"), [("../..", "_.."), ("..", "_"), ("a/b", "a_b"), (".x", "x")])
def test_a_run_is_one_folder_whatever_its_name(tmp_path: Path, run: str, name: str) -> None:
    assert Workspace.folder(tmp_path, run) == tmp_path / name


def test_the_configuration_for_mcp_is_private(made: Workspace) -> None:
    server = {"type": "http", "url": "http://127.0.0.1:1/mcp", "headers": {"Authorization": "Bearer t"}}
    path = made.write_mcp_config({"perdure": server})
    assert json.loads(path.read_text()) == {"mcpServers": {"perdure": server}}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("given", "stdin"),
    [
        (b'{"a":1}', b'{"a":1}\n'),
        (b'"a \\u00e9 text"', "a é text\n".encode()),
        (b"null", b""),
        (b"[1]", b"[1]\n"),
    ],
)
def test_input_is_in_a_file_and_on_stdin(made: Workspace, given: bytes, stdin: bytes) -> None:
    assert made.write_input(given) == stdin
    assert (made.work / "input.json").read_bytes() == given


def test_the_result_is_the_file_or_else_the_last_line(made: Workspace) -> None:
    assert made.result('say "é"') == '"say \\"é\\""'.encode()
    assert made.result("") == b'""'
    (made.work / "result.json").write_bytes(b' {"total": 3} ')
    assert json.loads(made.result("ignored")) == {"total": 3}


@pytest.mark.parametrize("text", [b"", b"{", b'"\xff"', b"[" * 100_000, b'{"a": NaN}'])
def test_a_result_that_is_no_json_is_refused(made: Workspace, text: bytes) -> None:
    (made.work / "result.json").write_bytes(text)
    with pytest.raises(DefinitionError, match=r"`result.json` is no JSON"):
        made.result("line")


def test_a_result_that_is_no_plain_file_is_refused(tmp_path: Path, made: Workspace) -> None:
    (tmp_path / "secret.json").write_text("1")
    path = made.work / "result.json"
    path.symlink_to(tmp_path / "secret.json")
    with pytest.raises(DefinitionError, match="cannot be read"):
        made.result("line")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DefinitionError, match="is not a plain file"):
        made.result("line")
    path.unlink()
    path.mkdir()
    with pytest.raises(DefinitionError, match="is not a plain file"):
        made.result("line")


def test_a_result_that_is_too_large_is_refused(made: Workspace) -> None:
    with pytest.raises(
        DefinitionError, match="last line is over 16777216 bytes; write `result.json` instead"
    ):
        made.result("é" * (LAST_LINE_BYTES_MAX // 2 + 1))
    with (made.work / "result.json").open("wb") as file:
        file.truncate(module.RESULT_BYTES_MAX + 1)
    with pytest.raises(DefinitionError, match="is over 67108864 bytes"):
        made.result("line")
