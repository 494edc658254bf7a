"""The same chance and the same time of day on every attempt of a program, for who asks for it."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from perdure.gateway.hosted import Attempt

SHIM = Path(__file__).parent / "shim"
HASH_SEED_MAX = 4_294_967_295  # what Python takes


def steady(attempt: Attempt, place: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Variables that make interpreters of Python and Node.js load the shims, which are put at ``place``.

    Args:
        attempt: whose run gives the seed, and whose start the time.
        place: a folder that the program can read, not there yet.
        env: what it gets besides; paths and options in there are kept.
    """
    shutil.copytree(SHIM, place, ignore=shutil.ignore_patterns("__pycache__"))
    seed = hashlib.sha256(f"perdure steady {attempt.seat.run_id}".encode()).hexdigest()
    path, options = env.get("PYTHONPATH"), env.get("NODE_OPTIONS")
    return {
        "PERDURE_SEED": seed,
        "PERDURE_SEED_MS": str(attempt.seat.entry(1).at_ms),
        "PYTHONHASHSEED": str(int(seed[:8], 16) % HASH_SEED_MAX),
        "PYTHONPATH": str(place) + (os.pathsep + path if path else ""),
        "NODE_OPTIONS": f"--require {place / 'steady.cjs'}" + (f" {options}" if options else ""),
    }
