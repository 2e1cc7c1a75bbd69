"""The processes below a process, from /proc."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def with_descendants(pids: Iterable[int]) -> list[int]:
    """These processes and all that they started, as of now."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            status = (folder / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        parent = int(status[status.rindex(")") + 2 :].split()[1])
        children.setdefault(parent, []).append(int(folder.name))
    found: list[int] = []
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children.get(pid, [])
    return sorted(set(found))


def proportional_kib(pid: int) -> int:
    """The proportional set size of one process: what it has alone, and its part of what is
    shared."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise ValueError(f"the kernel does not say how much memory process {pid} has")
