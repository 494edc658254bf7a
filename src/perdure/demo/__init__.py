"""The demo: an invoice desk whose worker is killed half-way, with a proof of what was kept.

``perdure demo`` and ``python -m perdure.demo`` both call :func:`main`. It works offline, on the e-mails shipped beside
this file or on a folder of your own. No model is used.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return the exit code: 0 proved, 1 not proved, 2 wrong usage.

    Args:
        arguments: as on the command line, without the program's name; ``None`` takes those of this process.
    """
    from perdure.demo.face import run_face  # here, so that `perdure --help` stays fast

    return run_face(arguments)
