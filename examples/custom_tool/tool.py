"""A tool of one's own: a class with a ``spec`` and a ``call``. This one keeps a diary in a file."""

import asyncio
import tempfile
from pathlib import Path

from perdure import Run, Runtime, agent
from perdure.core.tools import Finding, ToolOutput, ToolSpec, ToolUse


class Diary:
    """Appends lines to a file. It writes the action's key beside each line, so a doubtful use can be looked up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec = ToolSpec(
            name="diary",
            description="Writes a line into the diary.",
            parameters={
                "type": "object",
                "properties": {"line": {"type": "string", "maxLength": 200}},
                "required": ["line"],
                "additionalProperties": False,
            },
            recovery="queryable",  # in doubt, `probe` finds out
            effect="irreversible",
            source="diary",
        )

    async def call(self, use: ToolUse) -> ToolOutput:
        with self.path.open("a") as file:
            file.write(f"{use.key}\t{use.arguments['line']}\n")
        return ToolOutput(value={"lines": len(self.path.read_text().splitlines())})

    async def probe(self, use: ToolUse) -> Finding:
        written = self.path.exists() and any(line.startswith(f"{use.key}\t") for line in self.path.open())
        return Finding(answer="happened" if written else "did-not-happen")


async def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="diary-"))
    diary = Diary(folder / "diary.txt")

    @agent("writer", tools=[diary])
    async def writer(run: Run, day: str) -> int:
        await run.act("diary", line=f"{day}: got up")
        written = await run.act("diary", line=f"{day}: went to bed")
        return written["lines"]

    async with Runtime.open(folder / "data", agents=[writer]) as runtime:
        handle = await runtime.start("writer", "monday")
        print("lines written:", await handle.result())
        for row in reversed(runtime.actions.rows(run=handle.id)):
            print(row.name, row.state.value, f"recovery={row.recovery}")
    print(*(line.split("\t")[1] for line in diary.path.read_text().splitlines()), sep="\n")


if __name__ == "__main__":
    asyncio.run(main())
