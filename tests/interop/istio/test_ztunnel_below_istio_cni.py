"""Our node proxy below Istio's node agent and Istio's control plane: only the proxy is ours."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.forwarder import forwarded
from tests.support.istio.istio_cni import TOOLS, IstioCni
from tests.support.istio.istiod import Istiod
from tests.support.istio.mesh import NAMESPACE, VIP, IstioMesh, istio_mesh
from tests.support.kube.cluster import Cluster
from tests.support.kube.objects import account, policy
from tests.support.lab import lab
from tests.support.one_ztunnel import PATIENCE, echoes

pytestmark = [pytest.mark.root, pytest.mark.slow]

PODS = {"client": 1, "server": 1, "stranger": 1}
API = ("127.0.0.1", 16443)


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    """Istio's agent calls programs that ours needs not."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)} for istio-cni (Debian: iptables, ipset)")


class Node:
    """One node of a mesh: Istio's agent and our ztunnel."""

    def __init__(self, mesh: IstioMesh, agent: IstioCni) -> None:
        self.mesh = mesh
        self.agent = agent

    def redirection(self, name: str) -> str:
        """What the agent says of a pod."""
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{name}"
        found = self.mesh.cluster.call("GET", path)["metadata"].get("annotations", {})
        value: str = found.get("ambient.istio.io/redirection", "")
        return value

    def until_mutual(self, host: str) -> None:
        """The agent's word for it goes by way of istiod; until then connections are plain."""
        known = self.mesh.ztunnels[1].log.stat().st_size
        identity = 'src.identity="spiffe://cluster.local/ns/shop/sa/client"'

        def mutual() -> bool:
            assert echoes(self.mesh.room, "client", host)
            with self.mesh.ztunnels[1].log.open("rb") as log:
                log.seek(known)
                lines = log.read().decode().splitlines()
            return any(identity in line and 'direction="inbound"' in line for line in lines)

        self.mesh.until(mutual, "connections carry identities")

    def until_all(self, value: str) -> None:
        self.mesh.until(
            lambda: all(self.redirection(name) == value for name in PODS), f"pods are {value!r}"
        )


@pytest.fixture(scope="module")
def node(
    cluster: Cluster, istiod: Istiod, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("node")
    with ExitStack() as stack:
        room = stack.enter_context(lab(nodes=1, pods=PODS, ipv6=False))
        room.app("server", echo=7000)
        mesh = stack.enter_context(istio_mesh(room, cluster, istiod, folder, PODS, {}))
        inside = room.node(1).network
        stack.enter_context(forwarded(inside, API, cluster.port))
        rights = agent_account(cluster)
        agent = IstioCni("node-1", inside, API, rights, folder / "root")
        for name in PODS:
            agent.show_pod(mesh.pods[name]["metadata"]["uid"], room.pod(name).network)
        stack.enter_context(agent)
        mesh.start_ztunnel(1, agent.zds).until_ready()
        yield Node(mesh, agent)


def agent_account(cluster: Cluster) -> Path:
    """What its DaemonSet's service account may do, as Istio's chart has it."""
    account(cluster, "istio-system", "istio-cni")
    rules = [
        {"apiGroups": [""], "resources": ["pods", "nodes", "namespaces"],
         "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch", "update"]},
        {"apiGroups": ["apps"], "resources": ["daemonsets"], "verbs": ["get"]},
    ]  # fmt: skip
    group = "rbac.authorization.k8s.io"
    meta = {"name": "istio-cni"}
    cluster.apply(
        {"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": meta, "rules": rules}
    )
    subject = {"kind": "ServiceAccount", "name": "istio-cni", "namespace": "istio-system"}
    role = {"apiGroup": group, "kind": "ClusterRole", "name": "istio-cni"}
    cluster.apply(
        {
            "apiVersion": f"{group}/v1", "kind": "ClusterRoleBinding", "metadata": meta,
            "subjects": [subject], "roleRef": role,
        }
    )  # fmt: skip
    # While it is there the agent takes its end for a restart, and leaves everything in place.
    labels = {"k8s-app": "istio-cni-node"}
    container = {"name": "install-cni", "image": "install-cni"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    cluster.apply(
        {
            "apiVersion": "apps/v1", "kind": "DaemonSet",
            "metadata": {"name": "istio-cni-node", "namespace": "istio-system"},
            "spec": {"selector": {"matchLabels": labels}, "template": template},
        }
    )  # fmt: skip
    path = cluster.account_folder("istio-system", "istio-cni")
    (path / "namespace").write_text("istio-system")
    return path


def test_a_label_takes_pods_into_the_mesh_and_out_of_it(node: Node) -> None:
    mesh = node.mesh
    host = mesh.room.ip("server")
    assert echoes(mesh.room, "client", host)
    mesh.cluster.namespace(NAMESPACE, **{"istio.io/dataplane-mode": "ambient"})
    node.until_all("enabled")
    node.until_mutual(host)
    assert echoes(mesh.room, "client", VIP, 80)
    stranger = {"source": {"principals": ["cluster.local/ns/shop/sa/stranger"]}}
    denied = policy(NAMESPACE, "no-stranger", {"action": "DENY", "rules": [{"from": [stranger]}]})
    mesh.cluster.apply(denied)
    mesh.until(lambda: not echoes(mesh.room, "stranger", host), "the policy is in force")
    assert echoes(mesh.room, "client", host)
    mesh.cluster.delete(denied)
    mesh.cluster.namespace(NAMESPACE)
    node.until_all("")
    assert echoes(mesh.room, "client", host)
    ztunnel = mesh.ztunnels[1]
    ztunnel.until_metric(0, "workload_manager_active_proxy_count")


def test_the_agent_may_go_and_come_back(node: Node) -> None:
    mesh = node.mesh
    host = mesh.room.ip("server")
    mesh.cluster.namespace(NAMESPACE, **{"istio.io/dataplane-mode": "ambient"})
    node.until_all("enabled")
    node.until_mutual(host)
    with mesh.room.pod("client").network.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect((host, 7000))
        node.agent.stop()
        assert echoes(mesh.room, "client", host)
        with node.agent:
            mesh.ztunnels[1].until_ready()
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
            assert echoes(mesh.room, "client", host)
