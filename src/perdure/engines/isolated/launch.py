"""What becomes a worker: takes limits, asks to die with its parent, then gives way. Runs as a script; stdlib only."""

import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
OPEN_FILES = 1_024


def main() -> None:
    """Read ``launch.py PARENT MEMORY_BYTES COMMAND...`` and become the command."""
    parent, memory, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    libc = ctypes.CDLL(None)
    # The kernel means the thread that started us: the one that runs the loop.
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) or libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        sys.stderr.write("perdure: a worker cannot be put under its limits: prctl failed\n")
        os._exit(126)
    if os.getppid() != parent:  # it died before the kernel was asked
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = min(OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.closerange(3, 65_536)
    for name in ("SIGPIPE", "SIGXFSZ"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        os.execvp(command[0], command)  # noqa: S606 - running the worker is what this is for
    except OSError as error:
        sys.stderr.write(f"perdure: worker `{command[0]}` cannot be started: {error.strerror}\n")
        os._exit(127)


main()
