"""Starts a program in control groups, that ends with the process that wanted it.

`launch.py PARENT [FOLDER…] -- COMMAND…`: PARENT is the pid that must still be there, each FOLDER a
control group to join. A run of tests that is killed leaves no cluster behind in this way.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, *rest = sys.argv[1:]
    end = rest.index("--")
    folders, command = rest[:end], rest[end + 1 :]
    for folder in folders:
        Path(folder, "cgroup.procs").write_text("0", encoding="ascii")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != int(parent):
        sys.exit("the process that wanted this is gone")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
