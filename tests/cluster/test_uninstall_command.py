"""Off a whole cluster again, by `ambient uninstall`: after the other tests here."""

from __future__ import annotations

import subprocess

import pytest

from tests.cluster.test_operator import ambient
from tests.support.cluster.cluster import NodeCluster
from tests.support.cluster.mesh import SYSTEM, Mesh
from tests.support.cluster.pods import Traffic
from tests.support.program import wait_for
from ztunnel.linux.netns import NetworkNamespace

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def installed(mesh: Mesh) -> Mesh:
    """Installed, also where a test before this one has taken it off."""

    def steady() -> bool:
        found = mesh.cluster.get(f"/api/v1/namespaces/{SYSTEM}")
        return found is None or "deletionTimestamp" not in found["metadata"]

    wait_for("nothing ends any more", lambda: steady() or None)
    mesh.install()
    return mesh


def tables(network: NetworkNamespace) -> list[str]:
    with network.enter():
        done = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if "ambient" in line]


def assert_clean(cluster: NodeCluster) -> None:
    for node in cluster.nodes.values():
        assert tables(node.network) == []
        assert "ambient-cni" not in node.run("ls", "/opt/cni/bin")
        assert "ambient" not in node.run("sh", "-c", "cat /etc/cni/net.d/*")


def test_uninstall_under_traffic(installed: Mesh) -> None:
    cluster = installed.cluster
    shop = installed.shop("leaving", mode="ambient")
    shop.wait_redirection("enabled")
    installed.wait_encrypted(shop)
    with shop.web.enter() as network, Traffic(network, shop.cluster_ip, 80) as traffic:
        traffic.more()
        code, said = ambient(cluster, "uninstall", "--yes")
        assert code == 0, said
        traffic.more()
        assert tables(network) == []
    assert traffic.outcome.failures == []
    lines = said.splitlines()
    for node in cluster.nodes:
        clean = next(n for n, line in enumerate(lines) if f"node {node}: nothing of" in line)
        assert clean < next(n for n, line in enumerate(lines) if line.startswith("deleted"))
    assert installed.annotated() == []
    for pod in shop.pods:
        assert (pod.is_ready(), pod.restarts) == (True, 0)
    assert_clean(cluster)
    path = f"/api/v1/namespaces/{SYSTEM}"
    wait_for("the namespace is gone", lambda: (cluster.get(path) is None) or None)
    assert ambient(cluster, "uninstall") == (0, f"nothing is installed in {SYSTEM}\n")
    code, said = ambient(cluster, "check")
    assert (code, "no mesh is installed" in said) == (0, True), said
