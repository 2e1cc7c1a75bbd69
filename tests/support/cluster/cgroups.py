"""Control groups for a node: one in each hierarchy that this machine has.

With cgroup v1 (and the hybrid form) the node's groups lie below this process's own; where there is
nothing but v2, a group with processes cannot hand controllers to others, and they lie at the top.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

TOP = Path("/sys/fs/cgroup")
_REMOVE_SECONDS = 20.0


def only_v2(top: Path = TOP) -> bool:
    """Whether this machine has the unified hierarchy and no other."""
    return (top / "cgroup.controllers").exists()


class NodeCgroups:
    """The groups of one node of this process. `folders` are to be joined by its first process."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.folders = [parent / f"{name}-{os.getpid()}" for parent in _parents()]

    def make(self) -> None:
        """Those that a run which was killed has left are removed. Raises OSError."""
        for folder in self.folders:
            for left in folder.parent.glob(f"{self._name}-*"):
                if not Path("/proc", left.name.rpartition("-")[2]).exists():
                    _remove(left)
        if only_v2():
            wanted = (TOP / "cgroup.controllers").read_text().split()
            (TOP / "cgroup.subtree_control").write_text(" ".join(f"+{each}" for each in wanted))
        for folder in self.folders:
            folder.mkdir(exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems"):  # empty ones take no process
                if not only_v2() and (folder / name).exists():
                    (folder / name).write_text((folder.parent / name).read_text())

    def remove(self) -> None:
        """Once the node's processes are gone, with all that they have made. Raises OSError."""
        for folder in self.folders:
            deadline = time.monotonic() + _REMOVE_SECONDS
            while folder.exists():
                try:
                    _remove(folder)
                except OSError:
                    if time.monotonic() > deadline:  # a process in it is still ending
                        raise
                    time.sleep(0.05)


def _parents() -> list[Path]:
    if only_v2():
        return [TOP]
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        top = TOP / (controllers.removeprefix("name=") or "unified")
        if top.is_dir():
            found.append(Path(f"{top}{path}"))
    return found


def _remove(folder: Path) -> None:
    for each in list(folder.iterdir()):
        if each.is_dir():
            _remove(each)
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()
