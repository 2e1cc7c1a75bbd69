"""Whether a ztunnel that is told to end may do so: the hook that its DaemonSet runs before.

While a node's pods are captured somebody has to take in what they send. In a rolling update that is
the next ztunnel, which is there before the old one is asked to go. When the mesh is deleted nobody
comes, and the agent, which is told to end at the same time, needs some seconds to get the pods out.
"""

import sys
import time
from pathlib import Path

from daemonset.agent.status import AgentStatus, read_status

LOOK = 0.1
"""Seconds between two looks at what the agent says."""
NOTICE_SECONDS = 4.0
"""For the agent to notice that the mesh is being deleted."""
LEAVE_SECONDS = 22.0
"""For all pods to leave; somewhat longer than the agent gives them."""


def may_end(status: AgentStatus | None, waited: float) -> bool:
    """Pure. `status` is what the agent of the node says (None: there is no agent of ours), `waited`
    how many seconds it has been asked for."""
    if status is None or status.ztunnels > 1:
        return True
    if all(pod.out_of_mesh for pod in status.pods):
        return True
    return waited >= (LEAVE_SECONDS if status.leaving else NOTICE_SECONDS)


def wait_for_relief(run_dir: Path) -> None:
    """Return when `may_end` says so. `run_dir` is where the agent keeps its status."""
    started = time.monotonic()
    while True:
        try:
            status = read_status(run_dir)
        except (OSError, ValueError):
            status = None  # none is there, or it is of a version whose status we do not know
        if may_end(status, time.monotonic() - started):
            return
        time.sleep(LOOK)


if __name__ == "__main__":
    wait_for_relief(Path(sys.argv[1]))
