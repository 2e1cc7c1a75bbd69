"""Small files of the run directory through which the parts of a local mesh tell each other what a
cluster would hold in its API: the status of pods, and who has captured them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from daemonset.agent.status import AgentStatus, read_status


@dataclass(frozen=True, slots=True)
class MadePod:
    """A pod that runs: what a kubelet would report of it."""

    uid: str
    """Another one each time the pod is made."""
    addresses: tuple[str, ...]
    netns: str
    """Path of its network namespace in the mount namespace of the mesh; empty on the host's."""


class WatchedFile:
    """A file that is replaced as a whole, and looked at by others."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int] | None = None

    def replace(self, text: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_name(f".{self.path.name}.new")
        new.write_text(text)
        new.replace(self.path)

    def has_changed(self) -> bool:
        """Whether it is another file than at the last call; False while there is none."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return False
        seen = (status.st_ino, status.st_mtime_ns)
        changed, self._seen = seen != self._seen, seen
        return changed


class PodsFile:
    """Pod (``namespace/name``) -> what was made of it; kept by the mesh, read by the others."""

    def __init__(self, run: Path) -> None:
        self._file = WatchedFile(run / "pods.json")

    def write(self, pods: Mapping[str, MadePod]) -> None:
        self._file.replace(json.dumps({key: asdict(pod) for key, pod in pods.items()}))

    def read(self) -> dict[str, MadePod]:
        """Raises OSError when there is no such file."""
        return {
            key: MadePod(pod["uid"], tuple(pod["addresses"]), pod["netns"])
            for key, pod in json.loads(self._file.path.read_text()).items()
        }

    def has_changed(self) -> bool:
        """Whether it is another file than at the last call."""
        return self._file.has_changed()


@dataclass(frozen=True, slots=True)
class WantedPod:
    """A pod as the folder has it, with what its namespace says; only what an agent needs."""

    namespace: str
    name: str
    node: str
    service_account: str
    host_network: bool
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    namespace_labels: Mapping[str, str]


class WantedFile:
    """All pods of the folder, in force in the control plane; kept by it, read by the agents.

    Agents learn of pods from the control plane, as they do in a cluster: when an agent asks for a
    pod's certificate, the CA knows of the label that put the pod into the mesh.
    """

    def __init__(self, run: Path) -> None:
        self._file = WatchedFile(run / "wanted.json")

    def write(self, pods: Iterable[WantedPod]) -> None:
        self._file.replace(json.dumps([asdict(pod) for pod in pods]))

    def read(self) -> list[WantedPod]:
        """Raises OSError when there is no such file."""
        return [WantedPod(**pod) for pod in json.loads(self._file.path.read_text())]

    def has_changed(self) -> bool:
        """Whether it is another file than at the last call."""
        return self._file.has_changed()


class FindingsFile:
    """What is wrong with the folder's files and objects; kept by the control plane, read by whoever
    tells people."""

    def __init__(self, run: Path) -> None:
        self._file = WatchedFile(run / "findings.json")
        self._written: list[str] | None = None

    def write(self, findings: Iterable[str]) -> None:
        """Replace the file when there is something new in it."""
        wanted = list(findings)
        if wanted != self._written:
            self._file.replace(json.dumps(wanted))
            self._written = wanted

    def read(self) -> list[str]:
        """Empty while there is no such file."""
        try:
            return list(json.loads(self._file.path.read_text()))
        except FileNotFoundError:
            return []


def settled_file(run: Path) -> Path:
    """The newest generation of the control plane that all its clients have acknowledged."""
    return run / "settled"


def captured_file(run: Path, node: str) -> Path:
    """The pods (``namespace/name``) that a node's agent has captured, as a JSON list."""
    return run / "captured" / f"{node}.json"


def acknowledged_file(run: Path) -> Path:
    """The pods (``namespace/name``) that all proxies take for captured, as a JSON list."""
    return run / "acknowledged.json"


def root_file(run: Path) -> Path:
    """The roots that all parts of the mesh trust, as PEM."""
    return run / "root-cert.pem"


def token_file(run: Path, node: str) -> Path:
    """The token of a node's proxy."""
    return run / "nodes" / node / "token"


def agent_folder(run: Path, node: str) -> Path:
    """Where a node's agent keeps its mark and its status."""
    return run / "nodes" / node


def agent_of(run: Path, node: str) -> AgentStatus | None:
    """What a node's agent says; None where it has not started, or there is no mesh."""
    try:
        return read_status(agent_folder(run, node))
    except FileNotFoundError:
        return None


def zds_socket(run: Path, node: str) -> Path:
    """Where a node's ztunnel learns its pods from the agent."""
    return run / "nodes" / node / "ztunnel.sock"
