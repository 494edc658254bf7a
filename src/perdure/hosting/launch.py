"""What becomes the program: asks the kernel to kill it with its parent, then gives way. Runs as a script; stdlib only."""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1
SIGKILL = 9


def main() -> None:
    """Read ``launch.py PARENT COMMAND...`` and become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel was asked
        os._exit(1)
    try:
        os.execvp(command[0], command)  # noqa: S606 - running the program is what this is for
    except OSError as error:
        sys.stderr.write(f"perdure: `{command[0]}` cannot be started: {error.strerror}\n")
        os._exit(127)


main()
