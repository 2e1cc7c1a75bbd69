"""The processes of the ztunnels of a mesh, as the kernel sees them, and what they write."""

import http.client
import os
import re
import signal
import socket
from pathlib import Path

from daemonset.local.mesh_programs import ztunnel_name
from daemonset.local.processes import http_get
from tests.support.mesh_lab import MeshLab


class ZtunnelProcesses:
    """One node's ztunnel: supervisor, control process and workers."""

    def __init__(self, mesh: MeshLab, node: str) -> None:
        self._mesh = mesh
        self.node = node
        self.log = NodeLog(mesh, node)

    @property
    def supervisor(self) -> int:
        process = self._mesh.mesh.processes.running[ztunnel_name(self.node)].process
        assert process is not None
        return process.pid

    @property
    def control(self) -> int:
        """0 while there is none."""
        return next(iter(self._children("control")), 0)

    @property
    def workers(self) -> list[int]:
        return self._children("worker")

    def _children(self, role: str) -> list[int]:
        found = []
        for pid in children(self.supervisor):
            try:
                environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it has just ended
            if f"ZTUNNEL_ROLE={role}".encode() in environment:
                found.append(pid)
        return sorted(found)

    def kill(self, pid: int) -> None:
        """SIGKILL to one process of this ztunnel."""
        assert pid in (self.supervisor, self.control, *self.workers)
        os.kill(pid, signal.SIGKILL)

    def kill_all(self) -> list[int]:
        """SIGKILL to all of them; gives their numbers."""
        everybody = [*self.workers, self.control, self.supervisor]
        os.kill(self.supervisor, signal.SIGSTOP)  # nobody is started again meanwhile
        for pid in everybody:
            os.kill(pid, signal.SIGKILL)
        return everybody

    def ready(self) -> bool:
        """What its readiness port says."""
        try:
            return self.get(15021, "/healthz/ready")[0] == 200
        except OSError:
            return False

    def get(self, port: int, path: str) -> tuple[int, str]:
        """One GET from its node to its loopback. Raises OSError."""
        namespace = self._mesh.mesh.network.nodes[self.node]
        return http_get(namespace, "127.0.0.1", port, path, timeout=5.0)

    def request(
        self, method: str, port: int, path: str, *, host: str = "127.0.0.1"
    ) -> tuple[int, str]:
        """The same with another method, or under another name."""
        namespace = self._mesh.mesh.network.nodes[self.node]
        with namespace.network.socket(socket.AF_INET, socket.SOCK_STREAM) as connected:
            connected.settimeout(5)
            connected.connect(("127.0.0.1", port))
            connection = http.client.HTTPConnection(host, port)
            connection.sock = connected
            try:
                connection.request(method, path)
                response = connection.getresponse()
                return response.status, response.read().decode()
            finally:
                connection.close()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels; 0 without any."""
        return sum(
            sample.value
            for sample in self._mesh.metrics(self.node)
            if sample.name == name and labels.items() <= sample.labels.items()
        )


class NodeLog:
    """What a node's ztunnel writes from now on."""

    def __init__(self, mesh: MeshLab, node: str) -> None:
        self._mesh = mesh
        self._path = mesh.observer.ztunnel_log(node)
        self._start = self._path.stat().st_size

    def text(self) -> str:
        with self._path.open("rb") as file:
            file.seek(self._start)
            return file.read().decode(errors="replace")

    def count(self, pattern: str) -> int:
        """Lines in which the regular expression is found."""
        return sum(re.search(pattern, line) is not None for line in self.text().splitlines())

    def says(self, pattern: str) -> str:
        """The first line in which the regular expression is found, waited for."""
        found: list[str] = []

        def written() -> bool:
            lines = self.text().splitlines()
            found.extend(line for line in lines if re.search(pattern, line))
            return bool(found)

        self._mesh.wait(written, f"a line of the log of {self._path.name} with {pattern!r}")
        return found[0]


def children(pid: int) -> list[int]:
    """Processes whose parent it is."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        if int(fields[1]) == pid:
            found.append(int(status.parent.name))
    return found


def open_descriptors(pid: int) -> int:
    """How many a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def most_descriptors(mesh: MeshLab, *pids: int) -> dict[int, int]:
    """The most that each has open within three seconds: what is made ahead of need is not all there
    at once, and a moment later something may be closed that is open now."""
    found = dict.fromkeys(pids, 0)

    def look() -> bool:
        for pid in pids:
            found[pid] = max(found[pid], open_descriptors(pid))
        return False

    mesh.mesh.wait(look, 3.0)
    return found


def resident_kib(pid: int) -> int:
    """Memory of a process, KiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s*(\d+) kB", text)
    assert found is not None
    return int(found[1])


def processor_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
