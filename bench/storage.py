"""Measure 5: how a long session's database grows, in Perdure and in LangGraph's SQLite saver.

A turn is a message of 200 bytes in and a reply of 200 bytes out, recorded by a durable step.
"""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

from bench.workload import probe

MESSAGE = "m" * 200


async def measure(name: str, directory: Path, *, points: list[int]) -> dict[str, Any]:
    """Bytes of the database after each number of turns in ``points``."""
    from bench.subjects import load

    subject: Any = load(name)
    await subject.setup(directory)
    turns = _perdure_turns if name == "perdure" else _langgraph_turns
    sizes = await turns(subject, points)
    await subject.teardown()
    rows = [{"turns": point, "bytes": size, "bytes_per_turn": size / point} for point, size in sizes.items()]
    return {"points": rows}


async def _perdure_turns(subject: Any, points: list[int]) -> dict[int, int]:
    handle = await subject.runtime.start("session", {"turns": points[-1]})
    sizes: dict[int, int] = {}
    done = 0
    empty = probe.count
    for point in points:
        for turn in range(done, point):
            await handle.send("turn", f"{turn:08d}{MESSAGE}"[:200])
            # One message at a time, as people talk; the reply of the last turn is waited for below.
            while probe.count - empty < turn + 1:
                await asyncio.sleep(0)
        done = point
        await asyncio.sleep(0.2)
        sizes[point] = _bytes(subject.directory)
    await handle.result(timeout=60)
    return sizes


async def _langgraph_turns(subject: Any, points: list[int]) -> dict[int, int]:
    sizes: dict[int, int] = {}
    done = 0
    for point in points:
        for turn in range(done, point):
            await subject.turn(f"{turn:08d}{MESSAGE}"[:200])
        done = point
        sizes[point] = _bytes(subject.path.parent)
    return sizes


def _bytes(folder: Path) -> int:
    """Pages in use by the databases under ``folder`` (log included), and every other file but logs."""
    total = 0
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        if path.suffix == ".db":
            with sqlite3.connect(path) as db:
                names = ("page_count", "freelist_count", "page_size")
                pages, free, size = (int(db.execute(f"pragma {name}").fetchone()[0]) for name in names)
                total += (pages - free) * size
            db.close()
        elif not path.name.endswith(("-wal", "-shm", ".log")):
            total += path.stat().st_size
    return total


def extrapolate(points: list[dict[str, float]], turns: int) -> float:
    """Bytes at ``turns`` if the database goes on as ``a*n + b*n^2``, fitted through the middle and last point."""
    (x1, y1), (x2, y2) = ((p["turns"], p["bytes"]) for p in (points[len(points) // 2], points[-1]))
    b = (y2 / x2 - y1 / x1) / (x2 - x1)
    return (y2 / x2 - b * x2) * turns + b * turns**2
