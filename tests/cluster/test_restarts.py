"""Parts of the mesh, the kubelet and a whole node are restarted under traffic."""

from __future__ import annotations

import pytest

from tests.support.cluster.mesh import MARKER, PARTS, Mesh, Shop
from tests.support.cluster.pods import Traffic, application
from tests.support.kube.objects import strict
from tests.support.program import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(600)]
PATH = f"/?{MARKER}"


@pytest.fixture(scope="module")
def shop(mesh: Mesh) -> Shop:
    made = mesh.shop("lasting", mode="ambient")
    made.wait_redirection("enabled")
    mesh.wait_encrypted(made)
    mesh.cluster.api.apply(strict("lasting"))
    return made


@pytest.mark.parametrize("part", PARTS)
def test_a_rolling_update_fails_no_request(mesh: Mesh, shop: Shop, part: str) -> None:
    """A connection from before goes on as well: through old proxies as long as they drain."""
    app = part.partition("/")[2]
    nodes = mesh.cluster.nodes if part.startswith("daemonset") else (None,)
    olds = [mesh.part(app, node) for node in nodes]
    with mesh.unseen(shop) as (traffic, kept):
        mesh.begin_update(part)
        wait_for("one of the old ones ends", lambda: any(old.is_ending() for old in olds))
        kept.more()
        mesh.wait_rolled_out(part)
        traffic.more()
        if app != "ztunnel":
            kept.more()
    assert traffic.outcome.failures == [], traffic.outcome.failures[:4]
    if app != "ztunnel":
        assert kept.outcome.failures == []


def test_a_kubelet_comes_back(mesh: Mesh, shop: Shop) -> None:
    node = mesh.cluster.nodes["node-2"]
    before = node.pid("kubelet")
    with (
        mesh.wire() as wire,
        shop.web.enter() as network,
        Traffic(network, shop.cluster_ip, 80, PATH) as traffic,
    ):
        traffic.more()
        node.kill("kubelet")
        wait_for("a new kubelet", lambda: node.pid("kubelet") != before)
        mesh.cluster.api.apply(application("lasting", "afterwards", "node-2"))
        later = shop.pod("afterwards").wait_ready()
        traffic.more()
    assert traffic.outcome.failures == [], traffic.outcome.failures[:4]
    assert not wire.shows(MARKER.encode())
    later.wait_redirection("enabled")


def test_a_node_comes_back_without_a_gap(mesh: Mesh, shop: Shop) -> None:
    """Sandboxes are made anew for the same pods, with other addresses than before."""
    node = mesh.cluster.nodes["node-2"]
    before = shop.orders.now["status"]["containerStatuses"][0]["containerID"]
    with (
        mesh.wire() as wire,
        shop.web.enter() as network,
        Traffic(network, shop.cluster_ip, 80, PATH) as traffic,
    ):
        traffic.more()
        node.cut_power()
        node.switch_on()

        def runs_anew() -> bool:
            [status] = shop.orders.now["status"]["containerStatuses"]
            return status["containerID"] != before and shop.orders.is_ready()

        wait_for("orders runs again", runs_anew)
        mesh.cluster.wait_ready(node)
        mesh.wait_rolled_out(*PARTS)
        traffic.more()
    assert traffic.outcome.failures, "the node was not away"
    assert not wire.shows(MARKER.encode())
    assert shop.orders.redirection == "enabled"
    mesh.wait_encrypted(shop)
