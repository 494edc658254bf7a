"""The fifteen attempts to do what nobody has approved, really made on two libraries and on Perdure: `python -m bench.rivals_approvals`.

Each runs in its own process and environment (`scripts/environments openai_agents` makes the one that this needs). A
verdict is what was found in the file of effects afterwards, never what a library says of itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bench.approvals.attempts import ATTEMPTS, NOT_APPLICABLE

HERE = Path(__file__).parent
TIMEOUT_S = 120
Verdicts = dict[str, dict[str, str]]


def subjects(root: Path) -> dict[str, tuple[Path, Path]]:
    """The interpreter and the program of each library."""
    own = root / ".setup" / "environments" / "openai_agents" / "env" / "bin" / "python"
    return {
        "langgraph": (Path(sys.executable), HERE / "approvals" / "with_langgraph.py"),
        "openai_agents": (own, HERE / "approvals" / "with_openai_agents.py"),
        "perdure": (Path(sys.executable), HERE / "approvals" / "with_perdure.py"),
    }


def measure(root: Path = HERE.parent) -> dict[str, Verdicts]:
    """The verdicts by library and number of the attempt; a library that is not there is left out."""
    found: dict[str, Verdicts] = {}
    for name, (python, program) in subjects(root).items():
        if not python.exists():
            print(f"{name}: no environment; scripts/environments {name}", file=sys.stderr)
            continue
        done = subprocess.run(
            [python, program], capture_output=True, text=True, timeout=TIMEOUT_S, check=True
        )
        found[name] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(found: dict[str, Verdicts]) -> str:
    """As Markdown, with what was seen."""
    names = list(found)
    lines = ["| | attempt | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for number, what in ATTEMPTS.items():
        row = [found[name].get(str(number), {"verdict": NOT_APPLICABLE})["verdict"] for name in names]
        lines.append(f"| {number} | {what} | " + " | ".join(row) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    measured = measure(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent)
    print(table(measured))
    print(json.dumps(measured, indent=1))
