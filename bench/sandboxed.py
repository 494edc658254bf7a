"""All measures of sandboxes, one after the other, each in a process of its own: ``python -m bench --only sandboxes``."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PARTS = {
    "bench.sandboxes": "fresh sandboxes of namespaces beside a bare interpreter",
    "bench.sandbox_vms": "gVisor and micro-VMs",
    "bench.hosts": "a sandbox host on loopback beside a local pool",
    "bench.egress": "the egress proxy beside a direct connection",
    "bench.isolated": "agent code in worker processes",
}


def run() -> int:
    """How many parts failed; a missed target is no failure."""
    failed = 0
    for module, what in PARTS.items():
        if importlib.util.find_spec(module) is None:
            continue
        print(f"\n{module}: {what}", flush=True)
        failed += subprocess.run([sys.executable, "-m", module], cwd=ROOT, check=False).returncode != 0
    return failed
