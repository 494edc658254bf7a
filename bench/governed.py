"""All measures of governance, one after the other, each in a process of its own: ``python -m bench --only governance``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PARTS = {
    "bench.governance": "gates, governed actions, conduct, backtest",
    "bench.conduct": "conduct rules after histories of several lengths",
    "bench.grants": "grants beside the bare cryptography",
    "bench.audit": "the audit log at a million records",
    "bench.drift": "how much drift is found, and falsely",
    "bench.agentdojo": "AgentDojo's banking suite through the gateway",
    "bench.rivals_approvals": "fifteen ways round an approval",
}
ENVIRONMENTS = ("agentdojo", "openai_agents")  # other people's libraries, in interpreters of their own


def run() -> int:
    """How many parts failed; a missed target is no failure."""
    missing = [name for name in ENVIRONMENTS if not (ROOT / ".setup" / "environments" / name).exists()]
    if missing:
        subprocess.run(["sh", "scripts/environments", *missing], cwd=ROOT, check=True)
    failed = 0
    for module, what in PARTS.items():
        print(f"\n{module}: {what}", flush=True)
        failed += subprocess.run([sys.executable, "-m", module], cwd=ROOT, check=False).returncode != 0
    return failed
