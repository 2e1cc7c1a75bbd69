"""Asking a running mesh how things are: what is captured, published, counted and logged."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from daemonset.local.access_lines import AccessLine, parse_lines
from daemonset.local.mesh import Mesh
from daemonset.local.mesh_programs import METRICS_PORT, STATUS_PORT, ztunnel_name
from daemonset.local.processes import http_get
from daemonset.local.shared_files import captured_file, settled_file


class Observer:
    """Read-only views of one mesh."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def captured(self) -> set[str]:
        """Pods (``namespace/name``) that node agents report as captured."""
        found: set[str] = set()
        for node in self._mesh.topology.nodes:
            path = captured_file(self._mesh.run.path, node)
            if path.exists():
                found.update(json.loads(path.read_text()))
        return found

    def is_settled(self, in_mesh: Iterable[str] = (), outside: Iterable[str] = ()) -> bool:
        """Whether *in_mesh* pods are published as reached by HBONE, *outside* ones as not, and
        every ztunnel has acknowledged all that is in force."""
        resources = self._debug("resources")
        workloads: dict[str, bool] = {}
        for address in resources["addresses"].values():
            workload = address.get("workload")
            if workload is not None:
                key = f"{workload.get('namespace')}/{workload.get('name')}"
                workloads[key] = workload.get("tunnelProtocol") == "HBONE"
        if not all(workloads.get(pod) for pod in in_mesh):
            return False
        if any(workloads.get(pod, True) for pod in outside):
            return False
        file = settled_file(self._mesh.run.path)
        if not file.exists() or int(file.read_text()) < resources["generation"]:
            return False
        return len(self._debug("clients")) >= len(self._mesh.topology.nodes)

    def policies(self) -> set[str]:
        """Names (``namespace/name``) of the policies in force."""
        return set(self._debug("resources")["authorizations"])

    def generation(self) -> int:
        """Counts what the control plane has published."""
        return int(self._debug("findings")["generation"])

    def _debug(self, what: str) -> Any:
        """Raises OSError when the control plane does not answer."""
        underlay = self._mesh.network.underlay
        assert underlay is not None
        address = str(self._mesh.topology.underlay[0])
        status, body = http_get(underlay, address, STATUS_PORT, f"/debug/{what}", timeout=5.0)
        if status != 200:
            raise OSError(f"the control plane answers /debug/{what} with status {status}")
        return json.loads(body)

    def metrics(self, node: str) -> str:
        """What a node's ztunnel counts, in Prometheus' text format. Raises OSError."""
        _, body = http_get(
            self._mesh.network.nodes[node], "127.0.0.1", METRICS_PORT, "/metrics", timeout=5.0
        )
        return body

    def ztunnel_log(self, node: str) -> Path:
        """The file with everything that a node's ztunnel writes."""
        return self._mesh.processes.running[ztunnel_name(node)].program.log

    def access_lines(self, node: str) -> list[AccessLine]:
        """All of a node's access log, oldest first."""
        return list(parse_lines(self.ztunnel_log(node).read_text(errors="replace")))

    def follow_access(self, node: str) -> "AccessLog":
        """The access log of a node from now on."""
        return AccessLog(self.ztunnel_log(node))


class AccessLog:
    """The access log lines that a ztunnel writes from the moment this is made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = path.stat().st_size

    def lines(self) -> list[AccessLine]:
        """All of them so far."""
        with self._path.open("rb") as file:
            file.seek(self._start)
            return list(parse_lines(file.read().decode(errors="replace")))

    def find(self, wanted: Callable[[AccessLine], bool]) -> AccessLine | None:
        """The first that is wanted, if it has been written yet."""
        return next((line for line in self.lines() if wanted(line)), None)
