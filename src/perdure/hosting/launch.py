"""What becomes the program: asks the kernel to kill it with its parent, then gives way. Runs as a script; stdlib only."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Read ``launch.py PARENT LC_CTYPE COMMAND...`` and become the command.

    Python itself ignores two signals and may set ``LC_CTYPE``; both would pass on to the program: a shell's pipeline
    would never end, since its writers never learn that their reader is gone.
    """
    parent, locale, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    if sys.platform == "linux":
        # The kernel means the thread that started us: the one that runs the loop.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel was asked
        os._exit(1)
    for name in ("SIGPIPE", "SIGXFSZ"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    if not locale:
        os.environ.pop("LC_CTYPE", None)  # noqa: TID251 - the program's, not ours
    try:
        os.execvp(command[0], command)  # noqa: S606 - running the program is what this is for
    except OSError as error:
        sys.stderr.write(f"perdure: `{command[0]}` cannot be started: {error.strerror}\n")
        os._exit(127)


main()
