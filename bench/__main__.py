"""``python -m bench``: all measures, the tables, the raw JSON and the picture."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from bench import governed, measures, report, sandboxed, targets
from bench.plan import FULL, QUICK
from bench.subjects import TABLE
from bench.torture import __main__ as torture

GATEWAY = "gateway"  # no subject: it is compared with a proxy of its own
GOVERNANCE = "governance"  # nor here: gates beside Cedar, grants beside bare cryptography, attacks
SANDBOXES = "sandboxes"  # nor here: fresh sandboxes beside a bare interpreter
TORTURE = "torture"  # no subject either: kills, not figures; alone, and only if it is asked for
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Zero also when targets are missed: the tables say so; a benchmark is no test."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, small sizes; not for quoting")
    parser.add_argument(
        "--only",
        metavar="NAMES",
        help=f"some of {','.join((*TABLE, GATEWAY, GOVERNANCE, SANDBOXES))}, or {TORTURE}",
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON and the picture go")
    parser.add_argument("--kills", type=int, default=torture.KILLS, help="with --only torture")
    chosen = parser.parse_args()
    if chosen.only == TORTURE:
        return torture.run(chosen.kills, out=chosen.out)
    if chosen.only == GOVERNANCE:
        return governed.run()
    if chosen.only == SANDBOXES:
        return sandboxed.run()
    offered = (*TABLE, GATEWAY, GOVERNANCE, SANDBOXES)
    asked = offered if chosen.only is None else tuple(chosen.only.split(","))
    names = [name for name in TABLE if name in asked]
    unknown = set(asked) - set(offered)
    if unknown:
        parser.error(
            f"no subject is called {', '.join(sorted(unknown))}; expected some of {', '.join(offered)}"
        )
    console = Console()
    progress = Console(stderr=True)
    began = datetime.now(UTC)
    results = measures.all_measures(
        QUICK if chosen.quick else FULL,
        names,
        lambda text: progress.print(f"[dim]{text}[/]", highlight=False),
        with_gateway=GATEWAY in asked,
    )
    found = targets.verdicts(results)
    results = {"began": began.isoformat(timespec="seconds"), **results, "targets": targets.as_rows(found)}
    chosen.out.mkdir(parents=True, exist_ok=True)
    alone = "" if names else f"-{GATEWAY}"  # beside the figures of all, not in their place
    stem = began.strftime("%Y-%m-%d") + alone + ("-quick" if chosen.quick else "")
    raw = chosen.out / f"{stem}.json"
    raw.write_text(json.dumps(results, indent=1) + "\n")
    report.show(results, found, console)
    console.print(f"raw figures: {raw}", highlight=False, soft_wrap=True)
    try:
        from bench import plot  # matplotlib is heavy and may be missing; the figures are there without it
    except ImportError as error:
        console.print(f"no picture: {error}", highlight=False)
    else:
        picture = chosen.out / f"{stem}.png"
        plot.draw(results, picture)
        console.print(f"picture: {picture}", highlight=False, soft_wrap=True)
    if chosen.quick:
        return 0
    failed = governed.run() if GOVERNANCE in asked else 0
    return max(failed, sandboxed.run() if SANDBOXES in asked else 0)


if __name__ == "__main__":
    sys.exit(main())
