"""What the agent has made of each pod, for `ambient status`: a file that is replaced as a whole."""

import enum
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

FILE_NAME = "agent-status.json"


class PodState(enum.Enum):
    """Where a pod is on its way into the mesh, or out of it."""

    NOT_IN_MESH = "not in the mesh"
    ENROLLING = "enrolling"
    ENROLLED = "enrolled"
    PENDING = "pending"
    """Captured, but no ztunnel serves it: its connections are refused."""
    STOPPED = "stopped"
    """It cannot be captured, so that nothing gets in or out: in its namespace, or where that cannot
    be entered on the node."""
    FAILED = "failed"
    """It cannot be captured, and is not stopped: it may be talking in the clear."""
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True)
class PodStatus:
    """`reason` explains the state; `warnings` is what its owner should know beyond that.

    `repairs` counts how often capture rules had to be brought back, `last_repair` says which.
    """

    uid: str
    name: str
    namespace: str
    state: PodState
    reason: str
    warnings: tuple[str, ...] = ()
    repairs: int = 0
    last_repair: str = ""

    @property
    def out_of_mesh(self) -> bool:
        """Nothing of the mesh is left in it."""
        return self.state is PodState.NOT_IN_MESH

    @property
    def uncaptured(self) -> bool:
        """It should be in the mesh, and cannot be captured."""
        return self.state in (PodState.STOPPED, PodState.FAILED)

    @property
    def may_bypass(self) -> bool:
        """It should be in the mesh, and its traffic may not be."""
        return self.state is PodState.FAILED


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """The whole node. `ztunnels` is how many are connected, `synchronised` whether the latest has
    its snapshot; `host_rules` is what is wrong with the node's own rules, "" when nothing is;
    `leaving`: the mesh is being taken off the node, or has been."""

    ztunnels: int
    synchronised: bool
    host_rules: str
    pods: tuple[PodStatus, ...]
    leaving: bool = False


def write_status(status: AgentStatus, run_dir: str | Path) -> None:
    """Replace the file in `run_dir`; a reader sees the old one or the new one. Raises OSError."""
    data = asdict(status)
    for pod in data["pods"]:
        pod["state"] = pod["state"].value
    path = Path(run_dir) / FILE_NAME
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    os.replace(aside, path)


def read_status(run_dir: str | Path) -> AgentStatus:
    """What `write_status` wrote. Raises OSError, and ValueError when it is something else."""
    data = json.loads((Path(run_dir) / FILE_NAME).read_text(encoding="utf-8"))
    try:
        pods = tuple(
            replace(
                PodStatus(**{**pod, "state": PodState(pod["state"])}),
                warnings=tuple(pod["warnings"]),
            )
            for pod in data.pop("pods")
        )
        return AgentStatus(**data, pods=pods)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"no status of a node agent: {error}") from error
