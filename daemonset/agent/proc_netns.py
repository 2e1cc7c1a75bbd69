"""Finds the network namespace of a pod that runs already, by its processes in /proc.

The container runtime puts a pod's processes into a control group whose path carries the pod's UID;
any of them leads to the pod's namespace. What is found is checked again by its addresses (see
`netns_check`): a wrong namespace would be another pod's identity.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from daemonset.agent.pods import NetnsNotFound, Pod
from ztunnel.linux.netns import NamespaceIdentity, NetworkNamespace, identity_of

logger = logging.getLogger("daemonset.agent")

CONFIG_HASH = "kubernetes.io/config.hash"
"""Annotation of static pods: the kubelet knows them by it, and the API under another UID."""

# "/kubepods/besteffort/pod<uid>/<container>" (cgroupfs), or with the systemd driver
# "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod<uid with _>.slice/…".
_POD = re.compile(
    r"(?:^|[/-])pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?(?=[/:]|$)"
)
_START_TIME = 22 - 3  # field 22 of /proc/PID/stat, counted from the first behind the name


def pod_uid(cgroup: str) -> str:
    """The UID in a /proc/PID/cgroup; "" where there is none, or more than one (nested runtimes)."""
    found = {match.replace("_", "-") for match in _POD.findall(cgroup.replace("\n", "/\n"))}
    return found.pop() if len(found) == 1 else ""


def start_time(stat: str) -> int:
    """Clock ticks since boot from a /proc/PID/stat; the name may contain anything. ValueError."""
    fields = stat.rpartition(")")[2].split()
    try:
        return int(fields[_START_TIME])
    except IndexError as error:
        raise ValueError("it has no start time") from error


@dataclass(frozen=True, slots=True)
class Candidate:
    """A process of a pod, and the namespace that it is in."""

    started: int
    pid: int
    uid: str
    identity: NamespaceIdentity


class ProcResolver:
    """Takes the path that the source knows (from the CNI plugin), and else looks in `proc`.

    Args:
        proc: the node's own /proc; the processes of all pods must be visible in it.
        root: where the node's file system is mounted, for paths that the CNI plugin tells.
    """

    def __init__(self, proc: str | Path = "/proc", root: str | Path = "/") -> None:
        self._proc = Path(proc)
        self._root = Path(root)
        self._lock = threading.Lock()
        self._scanned = -1.0
        self._candidates: dict[str, list[Candidate]] = {}

    def resolve(self, pod: Pod) -> NetworkNamespace:
        """See `NetnsResolver`."""
        if pod.netns:
            path = self._root / pod.netns.lstrip("/")
            try:
                return NetworkNamespace.open(str(path))
            except OSError as error:
                # The sandbox may have been made again since; its processes tell.
                logger.info("%s: %s; looking for its processes", pod, error)
        uids = (pod.uid, pod.annotations.get(CONFIG_HASH, ""))
        for candidate in self._find(uids):
            namespace = self._open(candidate)
            if namespace is not None:
                return namespace
        raise NetnsNotFound(f"no process of {pod} (UID {pod.uid}) is to be seen in {self._proc}")

    def _find(self, uids: Iterable[str]) -> list[Candidate]:
        """The pod's namespaces, the one first whose process is oldest.

        A process may be in another namespace than its pod for a while (an exec, a nested runtime);
        the sandbox's own process came first.
        """
        asked = time.monotonic()
        with self._lock:  # of many that ask at once, one looks for all
            if self._scanned < asked:
                self._scanned = time.monotonic()
                self._candidates = {}
                for candidate in self._scan():
                    self._candidates.setdefault(candidate.uid, []).append(candidate)
            found = [each for uid in uids if uid for each in self._candidates.get(uid, ())]
        return sorted(found, key=lambda each: (each.started, each.pid))

    def _scan(self) -> Iterator[Candidate]:
        host = self._identity_of_host()
        for name in os.listdir(self._proc):
            if not name.isdigit():
                continue
            try:
                folder = os.open(self._proc / name, os.O_RDONLY | os.O_DIRECTORY)
            except OSError:
                continue  # it has ended
            try:
                uid = pod_uid(_read(folder, "cgroup"))
                if not uid:
                    continue
                status = os.stat("ns/net", dir_fd=folder)
                identity = NamespaceIdentity(status.st_dev, status.st_ino)
                if identity != host:
                    yield Candidate(start_time(_read(folder, "stat")), int(name), uid, identity)
            except (OSError, ValueError):
                continue  # it has ended
            finally:
                os.close(folder)

    def _identity_of_host(self) -> NamespaceIdentity:
        status = os.stat(self._proc / "1/ns/net")
        return NamespaceIdentity(status.st_dev, status.st_ino)

    def _open(self, candidate: Candidate) -> NetworkNamespace | None:
        """Its namespace, unless the process has ended since, or is another by now."""
        path = self._proc / str(candidate.pid)
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return None
        try:
            fd = os.open("ns/net", os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
            try:
                same = (
                    identity_of(fd) == candidate.identity
                    and pod_uid(_read(folder, "cgroup")) == candidate.uid
                )
            except OSError:
                same = False
            if same:
                return NetworkNamespace(fd, str(path / "ns/net"))
            os.close(fd)
        except OSError:
            pass  # it has ended
        finally:
            os.close(folder)
        return None


def _read(folder: int, name: str) -> str:
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder), errors="replace") as file:
        return file.read(65536)
