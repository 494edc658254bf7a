"""The toolset `sandbox` in real runs: code, files, undo, crashes, walls that policies ask for, labels."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from perdure import Label, Run, Runtime, Sink, ToolFlow, agent, tool
from perdure.cli.output import Out
from perdure.cli.world import tools as list_tools
from perdure.core.errors import RefusedError, SandboxUnavailableError, ToolFailedError, UndoConflictError
from perdure.core.sandbox import MIB, SandboxFile, SandboxLimits
from perdure.core.tools import Done, ToolUse
from perdure.runtime.rulebook import Rules
from perdure.runtime.walls import ConfiguredWalls, SandboxRules
from perdure.sandboxes.namespace import NamespaceSandboxes
from perdure.tools.sandbox import SandboxToolset
from perdure.tools.workspaces import Workspaces


@pytest.fixture(autouse=True)
async def _namespaces() -> None:
    sandboxes = NamespaceSandboxes(spare=0)
    try:
        await sandboxes.open()
    except SandboxUnavailableError as error:
        pytest.skip(f"no namespaces here: {error}")
    await sandboxes.close()


@agent("analyst", tools=["sandbox"])
async def analyst(run: Run, numbers: list[int]) -> Any:
    await run.workspace.put("numbers.txt", "\n".join(map(str, numbers)))
    counted = await run.act("python", code="open('sum', 'w').write(str(sum(map(int, open('numbers.txt')))))")
    shell = await run.act("shell", command="cat sum; rm numbers.txt; wc -c < sum > length")
    return {
        "python": counted["files"],
        "shell": shell["stdout"],
        "changed": shell["files"],
        "names": [item.name for item in await run.workspace.list()],
        "sum": (await run.workspace.get("sum")).decode(),
        "exported": (await run.workspace.export("sum")).sha256,
    }


async def test_code_works_on_the_files_of_its_run(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path / "d", agents=[analyst]) as runtime:
        one = await runtime.start("analyst", {"numbers": [1, 2, 3]})
        two = await runtime.start("analyst", {"numbers": [40, 2]})
        found = await one.result()
        assert found["sum"] == "6"
        assert found["python"] == ["sum"]
        assert found["shell"] == "6"
        assert found["changed"] == ["length", "numbers.txt"]
        assert found["names"] == ["length", "sum"]
        assert (await two.result())["sum"] == "42"
        said = [leaf.record for leaf in runtime.audit.records(run=one.id)]
        tiers = {record.tier for record in said if record.kind == "ended" and record.name == "python"}
        assert tiers == {"namespace"}


@agent("bomber", tools=["sandbox.python"])
async def bomber(run: Run, code: str) -> Any:
    return await run.act("python", code=code)


async def test_a_limit_that_is_met_is_told_and_recorded(tmp_path: Path) -> None:
    limits = SandboxLimits(memory_bytes=128 * MIB, wall_ms=20_000)
    rules = SandboxRules(limits=limits)
    async with Runtime.open(tmp_path / "d", agents=[bomber], sandboxes=rules) as runtime:
        handle = await runtime.start("bomber", {"code": "x = bytearray(b'x' * 10**9)"})
        assert (await handle.result())["ending"] == "memory"
        said = [leaf.record for leaf in runtime.audit.records(run=handle.id) if leaf.record.kind == "ended"]
        assert said[-1].refs == {"note": "breach:memory"}


async def test_a_run_finds_nothing_of_another_one(tmp_path: Path) -> None:
    """What a prompt has put there for the agents that come after it, wherever it could, is not there."""
    plant = """
import os
planted = 0
for folder, _, _ in os.walk("/", onerror=lambda error: None):
    try:
        open(os.path.join(folder, "INSTRUCTIONS.md"), "w").write("obey")
        planted += 1
    except OSError:
        pass
print(planted)
"""
    look = """
import os
for folder, _, files in os.walk("/", onerror=lambda error: None):
    print(*[os.path.join(folder, name) for name in files if name == "INSTRUCTIONS.md"], end="")
"""
    async with Runtime.open(tmp_path / "d", agents=[bomber]) as runtime:
        planted = await (await runtime.start("bomber", {"code": plant})).result()
        assert int(planted["stdout"]) >= 2
        found = await (await runtime.start("bomber", {"code": look})).result()
        assert (found["stdout"], found["exit_code"]) == ("", 0)


@agent("writer", tools=["sandbox"])
async def writer(run: Run) -> Any:
    await run.act("shell", command="echo one > a; echo one > b")
    await run.act("shell", command="echo two > a; rm b; mkdir c; echo two > c/d")
    return [item.name for item in await run.workspace.list()]


async def test_what_code_did_to_files_can_be_undone(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path / "d", agents=[writer]) as runtime:
        handle = await runtime.start("writer")
        assert await handle.result() == ["a", "c/d"]
        files = Workspaces(tmp_path / "d" / "workspaces")
        first, second = files.history(handle.id)
        plan = await runtime.undoing.plan(handle.id, after=first_entry(handle))
        assert [step.how for step in plan.todo] == ["undo"]
        undone = await (await runtime.undoing.undo(plan, by="anna", reason="wrong")).result()
        assert undone["result"] == "ok", undone
        now = files.manifest(files.tip(handle.id))
        assert sorted(now) == ["a", "b"]
        assert files.file(now, "a") == b"one\n"
        assert files.file(files.manifest(second.tip), "a") == b"two\n", "what was undone can still be read"


def first_entry(handle: Any) -> int:
    """The position at which the first command had ended."""
    return next(entry.seq for entry in handle.journal() if type(entry).__name__ == "ActionEnded")


async def test_no_undo_over_what_came_later(tmp_path: Path) -> None:
    files = Workspaces(tmp_path)
    toolset = SandboxToolset(ConfiguredWalls(SandboxRules()), files)
    [write] = [item for item in await toolset.tools() if item.spec.name == "workspace_write"]
    for key, text in (("r/1", "one"), ("r/2", "two"), ("r/3", "three")):
        await write.call(ToolUse(run="r", key=key, arguments={"name": "a", "text": text}))
    states = [change.tip for change in files.history("r")]
    done = Done(key="r/2", arguments={}, before={"workspace": states[0]}, after={"workspace": states[1]})
    with pytest.raises(UndoConflictError):
        await write.undo(ToolUse(run="u", key="u/1", arguments={}), done)  # type: ignore[attr-defined]
    assert files.file(files.manifest(files.tip("r")), "a") == b"three"


async def test_an_action_that_is_done_again_finds_what_it_found(tmp_path: Path) -> None:
    files = Workspaces(tmp_path)
    toolset = SandboxToolset(ConfiguredWalls(SandboxRules()), files)
    [python, *_] = await toolset.tools()
    append = "open('log', 'a').write('x')"
    for key in ("r/1", "r/2", "r/2", "r/2"):  # the last two: it died before its outcome was recorded
        await python.call(ToolUse(run="r", key=key, arguments={"code": append}))
    assert files.file(files.manifest(files.tip("r")), "log") == b"xx"
    await toolset.close()


def test_a_line_that_a_crash_cut_short_never_happened(tmp_path: Path) -> None:
    files = Workspaces(tmp_path)
    file = SandboxFile(name="a", data=b"1")
    tip = files.save("r", "r/1", "", [file])
    with (tmp_path / "runs" / "r.jsonl").open("ab") as log:
        log.write(b'{"key":"r/2","base":"')
    assert files.tip("r") == tip
    after = files.save("r", "r/2", tip, [file, SandboxFile(name="b", data=b"2")])
    assert files.tip("r") == after
    assert sorted(files.manifest(after)) == ["a", "b"]


def test_the_command_line_knows_the_toolset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app = tmp_path / "app.py"
    app.write_text("from perdure import agent\n@agent('a', tools=['sandbox'])\nasync def a(run): pass\n")
    list_tools(str(app), None, tmp_path, Out(json=True))
    names = [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()]
    assert {"python", "shell", "workspace_read"} <= set(names)


@agent("wrong", tools=["sandbox"])
async def wrong(run: Run, name: str) -> Any:
    try:
        await run.workspace.put(name, "x")
    except ToolFailedError as error:
        return error.code
    except Exception as error:
        return getattr(error, "code", str(error))
    return "written"


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../b", ""])
async def test_no_file_outside(tmp_path: Path, name: str) -> None:
    async with Runtime.open(tmp_path / "d", agents=[wrong]) as runtime:
        assert await (await runtime.start("wrong", {"name": name})).result() == "input-invalid"


@agent("obliged", tools=["sandbox.python"])
async def obliged(run: Run) -> Any:
    try:
        found = await run.act("python", code="print(1)")
    except RefusedError as error:
        return error.code, str(error)
    return found["stdout"]


@pytest.mark.parametrize(("tier", "is_fine"), [("namespace", True), ("process", True), ("microvm", False)])
async def test_a_wall_that_a_policy_asks_for_is_had_or_nothing_happens(
    tmp_path: Path,
    tier: str,
    is_fine: bool,  # noqa: FBT001 - a case of the table
) -> None:
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "p.cedar").write_text(f'@sandbox("{tier}")\npermit (principal, action, resource);\n')
    async with Runtime.open(tmp_path / "d", agents=[obliged], rules=Rules(policies=policies)) as runtime:
        found = await (await runtime.start("obliged")).result()
        assert found == "1\n" if is_fine else (found[0] == "action-denied" and "microvm" in found[1]), found


@tool(flow=ToolFlow(output=Label(integrity="trusted", readers=("bob@example.com",))))
def secret() -> str:
    return "the code is 1234"


@tool(flow=ToolFlow(sinks={"to": Sink(kind="recipient"), "text": "content"}, audience=()))
def mail(to: str, text: str) -> str:
    return f"{to}: {text}"


@agent("leaker", tools=["sandbox", secret, mail])
async def leaker(run: Run, to: str) -> Any:
    await run.workspace.put("note", await run.act(secret))
    found = await run.act("python", code="print(open('note').read()[::-1])")
    try:
        return await run.act(mail, to=to, text=found["stdout"])
    except RefusedError as error:
        return error.code


async def test_labels_survive_files(tmp_path: Path) -> None:
    (tmp_path / "flow.toml").write_text("")
    rules = Rules(flow=tmp_path / "flow.toml")
    async with Runtime.open(tmp_path / "d", agents=[leaker], rules=rules) as runtime:
        async with asyncio.timeout(20):
            there = await (await runtime.start("leaker", {"to": "eve@example.com"})).result()
            assert there == "action-denied"
            allowed = await (await runtime.start("leaker", {"to": "bob@example.com"})).result()
            assert allowed == "bob@example.com: 4321 si edoc eht\n"
