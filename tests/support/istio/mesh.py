"""A lab of nodes and pods as a cluster would have them, with our ztunnels below Istio's istiod."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.forwarder import forwarded
from tests.support.istio.istiod import Istiod
from tests.support.kube.cluster import Cluster, Json
from tests.support.kube.objects import account, node, pod, run
from tests.support.lab import Lab
from tests.support.one_ztunnel import Running, wait_for

NAMESPACE = "shop"
VIP = "10.96.0.50"
"""Of the service "server", port 80, which leads to port 7000 of pod "server"."""
ISTIOD_PORT = 15012

_ISTIOD = "istiod.istio-system.svc"


class IstioMesh:
    """Nodes 1 to n, pods in namespace shop, each with a service account of its own name."""

    def __init__(self, room: Lab, cluster: Cluster, istiod: Istiod, folder: Path) -> None:
        self.room = room
        self.cluster = cluster
        self.istiod = istiod
        self.folder = folder
        self.ztunnels: dict[int, Running] = {}
        self.pods: dict[str, Json] = {}
        self._stack = ExitStack()

    def start_ztunnel(self, number: int, zds: Path, **environment: str) -> Running:
        """One of ours on a node, configured as Istio's; the agent listens at ``zds``."""
        inside = self.room.node(number).network
        self._stack.enter_context(forwarded(inside, ("127.0.0.1", ISTIOD_PORT), self.istiod.tls))
        roots = self.folder / "roots.pem"
        roots.write_text(self.istiod.roots_pem)
        token = self.folder / f"token-{number}"
        bound = self.pods[f"ztunnel-{number}"]
        text = self.cluster.token("istio-system", "ztunnel", audience="istio-ca", pod=bound)
        token.write_text(text)
        address = f"https://127.0.0.1:{ISTIOD_PORT}"
        ztunnel = Running(
            self.room, number, self.folder / f"ztunnel-{number}.log",
            NODE_NAME=f"node-{number}", INPOD_UDS=str(zds), AUTH_TOKEN=str(token),
            XDS_ADDRESS=address, XDS_ROOT_CA=str(roots), ALT_XDS_HOSTNAME=_ISTIOD,
            CA_ADDRESS=address, CA_ROOT_CA=str(roots), ALT_CA_HOSTNAME=_ISTIOD,
            POD_NAME=f"ztunnel-{number}", POD_NAMESPACE="istio-system",
            SERVICE_ACCOUNT="ztunnel", INSTANCE_IP=f"172.18.0.{number + 1}",
            ZTUNNEL_WORKER_THREADS="1", **environment,
        )  # fmt: skip
        self.ztunnels[number] = ztunnel
        return ztunnel

    def says(self, number: int, *parts: str) -> str:
        """The first line of a node's ztunnel that holds all of `parts`, waited for."""
        found: list[str] = []
        log = self.ztunnels[number].log

        def written() -> bool:
            lines = log.read_text().splitlines()
            found.extend(line for line in lines if all(part in line for part in parts))
            return bool(found)

        wait_for(written, f"a line with {parts}", log)
        return found[0]

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Waits for it."""
        wait_for(condition, what, next(iter(self.ztunnels.values())).log)

    def close(self) -> None:
        self._stack.close()


@contextmanager
def istio_mesh(
    room: Lab,
    cluster: Cluster,
    istiod: Istiod,
    folder: Path,
    pods: Mapping[str, int],
    annotations: Mapping[str, Mapping[str, str]],
) -> Iterator[IstioMesh]:
    """Write the objects of a lab.

    Args:
        pods: name -> number of its node, as the lab was made.
        annotations: of pods that have some.
    """
    mesh = IstioMesh(room, cluster, istiod, folder)
    cluster.namespace(NAMESPACE)
    account(cluster, "istio-system", "ztunnel")
    for number in sorted(set(pods.values())):
        node(cluster, f"node-{number}")
        name = f"ztunnel-{number}"
        item = pod("istio-system", name, node=f"node-{number}", account="ztunnel")
        item["metadata"]["labels"] = {"app": "ztunnel"}
        mesh.pods[name] = run(cluster, item, f"172.18.0.{number + 1}")
    for name, number in pods.items():
        account(cluster, NAMESPACE, name)
        item = pod(
            NAMESPACE, name, node=f"node-{number}", account=name, labels={"app": name},
            annotations=dict(annotations.get(name, {})),
        )  # fmt: skip
        mesh.pods[name] = run(cluster, item, room.ip(name))
    port = {"name": "tcp", "port": 80, "targetPort": 7000}
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "server", "namespace": NAMESPACE},
            "spec": {"clusterIP": VIP, "selector": {"app": "server"}, "ports": [port]},
        }
    )
    try:
        yield mesh
    finally:
        mesh.close()
