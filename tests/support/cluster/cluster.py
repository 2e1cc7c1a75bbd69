"""A whole Kubernetes on this machine: real kubelets and containerd on two nodes, in namespaces."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.cache import Unavailable
from tests.support.cluster.images import make_images
from tests.support.cluster.links import NodeAddresses, make_host
from tests.support.cluster.node import Node
from tests.support.cluster.node_files import CNI_PLUGINS, write_disk
from tests.support.cluster.plane import NodeApi, make_keys, start_plane
from tests.support.cluster.programs import Programs
from tests.support.kube.api import ApiFailure, Json
from tests.support.kube.binaries import API, NODES, find
from tests.support.program import wait_for

NUMBERS = (1, 2)
_DEBIAN = {
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "nft": "nftables",
    "unshare": "util-linux",
    "nsenter": "util-linux",
}
_CALL_SECONDS = 300.0


def missing() -> str | None:
    """What this machine lacks for a cluster, in words; None when it has everything."""
    try:
        for name in (*API, *NODES):
            find(name)
    except Unavailable as error:
        return str(error)
    packages = {_DEBIAN[each] for each in _DEBIAN if shutil.which(each) is None}
    if not (CNI_PLUGINS / "ptp").exists():
        packages.add("containernetworking-plugins")
    return f"not installed (Debian): {' '.join(sorted(packages))}" if packages else None


class NodeCluster:
    """Two nodes, `node-1` and `node-2`, dual stack; a context manager.

    Everything that it makes ends with it: processes, namespaces, control groups and files. Should
    this process be killed, processes and namespaces end all the same.

    Args:
        folder: for keys, disks and logs; what is not a log is removed at the end.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._programs = Programs(folder / "log")
        self.addresses = [NodeAddresses(number) for number in NUMBERS]
        self.host = make_host(self.addresses)
        self.nodes: dict[str, Node] = {}
        (folder / "keys").mkdir()
        self._keys = make_keys(folder / "keys")
        self.api = NodeApi(self._keys, self.host)

    def __enter__(self) -> NodeCluster:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _start(self) -> None:
        images = make_images(self.folder / "images")
        disks = self.folder / "nodes"
        for addresses in self.addresses:
            name = f"node-{addresses.number}"
            logs = self.folder / "log" / name
            boot = write_disk(disks / name, logs, name, addresses, self._keys, images)
            self.nodes[name] = Node(
                name, addresses, boot, self.host, self.addresses, self._programs
            )
        start_plane(self._keys, self.api, self.host, self._programs)
        for node in self.nodes.values():
            node.switch_on()
        for node in self.nodes.values():
            self._give_range(node)
        for node in self.nodes.values():
            self.wait_ready(node)

    def stop(self) -> None:
        """Take everything down. Raises OSError when a control group cannot be removed."""
        for node in self.nodes.values():
            node.cut_power()
        self._programs.end_all()
        self.host.close()
        for name in ("images", "nodes", "keys"):
            if (self.folder / name).exists():
                shutil.rmtree(self.folder / name)

    def wait_ready(self, node: Node) -> None:
        """Until the node's kubelet has said that pods may come. Raises NotInTime, ProgramEnded."""

        def ready() -> bool:
            node.init()
            found = self.get(f"/api/v1/nodes/{node.name}") or {"status": {}}
            conditions = found["status"].get("conditions", [])
            return {"type": "Ready", "status": "True"}.items() <= _of("Ready", conditions).items()

        wait_for(f"{node.name} is ready", ready)

    def get(self, path: str) -> Any:
        """One object, or None when there is none. Raises ApiFailure, OSError."""
        try:
            return self.api.call("GET", path)
        except ApiFailure as error:
            if error.status == 404:
                return None
            raise

    def kubectl(self, *arguments: str) -> str:
        """kubectl as the administrator, in the project's folder; what it prints.

        Raises RuntimeError, with what it complains about.
        """
        command = [str(find("kubectl")), f"--kubeconfig={self.api.kubeconfig}", *arguments]
        with self.host.enter():
            done = subprocess.run(
                command,
                env={**os.environ, "HOME": str(self.folder)},
                cwd=Path(__file__).parents[3],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_CALL_SECONDS,
            )
        if done.returncode != 0:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr or done.stdout}")
        return done.stdout

    def _give_range(self, node: Node) -> None:
        path = f"/api/v1/nodes/{node.name}"

        def registered() -> bool:
            node.init()
            return self.get(path) is not None

        wait_for(f"{node.name} has registered", registered)
        ranges = [node.addresses.pods_v4, node.addresses.pods_v6]
        spec: Json = {"spec": {"podCIDR": ranges[0], "podCIDRs": ranges}}
        self.api.call("PATCH", path, spec, content_type="application/merge-patch+json")


def _of(kind: str, conditions: list[Json]) -> Json:
    return next((each for each in conditions if each["type"] == kind), {})
