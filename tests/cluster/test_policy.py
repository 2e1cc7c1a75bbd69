"""Who may talk to whom: policies, STRICT, and the ways around that a node offers."""

from __future__ import annotations

from functools import partial

import pytest

from tests.support.cluster.mesh import Mesh
from tests.support.cluster.pods import HTTP_PORT, NO_ANSWER, application, ask
from tests.support.kube.api import Json
from tests.support.kube.objects import policy, strict
from tests.support.program import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(600)]
HOST_PORT = 18080


def test_a_policy_refuses_and_says_so(mesh: Mesh) -> None:
    shop = mesh.shop("rules", mode="ambient")
    shop.wait_redirection("enabled")
    mesh.wait_encrypted(shop)
    assert shop.visitor.get(shop.cluster_ip, 80)["pod"] == "orders"
    source = {"source": {"principals": ["cluster.local/ns/rules/sa/web"]}}
    spec = {"selector": {"matchLabels": {"app": "orders"}}, "rules": [{"from": [source]}]}
    mesh.cluster.api.apply(policy("rules", "only-for-web", spec))

    wait_for("the visitor is refused", lambda: not shop.is_answered("visitor"))
    assert shop.web.get(shop.cluster_ip, 80)["pod"] == "orders"

    def explained() -> list[str]:
        lines = mesh.logs("ztunnel").splitlines()
        return [line for line in lines if "rules/only-for-web" in line]

    [line, *_] = wait_for("the access log names the policy", explained)
    assert 'src.identity="spiffe://cluster.local/ns/rules/sa/visitor"' in line


def from_outside(mesh: Mesh, address: str, port: int) -> Json | None:
    """What somebody outside of the cluster is answered at a port of a node; None without one."""
    try:
        return ask(mesh.cluster.host, address, port)
    except NO_ANSWER:
        return None


def is_refused(mesh: Mesh, address: str, port: int) -> bool:
    return from_outside(mesh, address, port) is None


def probed(name: str) -> Json:
    """A pod that is reached by a port of its node as well."""
    pod = application("strict", name, "node-2")
    [container] = pod["spec"]["containers"]
    container["ports"] = [{"containerPort": HTTP_PORT, "hostPort": HOST_PORT}]
    return pod


def test_strict_lets_probes_in_and_nothing_else_of_the_node(mesh: Mesh) -> None:
    """A request by NodePort with externalTrafficPolicy Cluster comes from the very address that
    the kubelet probes from. Pods of node-1 are probed by IPv4, those of node-2 by IPv6."""
    shop = mesh.shop("strict", mode="ambient")
    mesh.cluster.api.apply(probed("open"))
    shop.pod("open").wait_ready()
    shop.wait_redirection("enabled")
    mesh.wait_encrypted(shop)
    one, two = (node.addresses for node in mesh.cluster.nodes.values())
    by_service = [(to, shop.node_port) for to in (one.v4, two.v4, one.v6, two.v6)]
    ways = [*by_service, (two.v4, HOST_PORT), (two.v6, HOST_PORT)]
    answers = [from_outside(mesh, *way) for way in ways]
    assert [answer and answer["pod"] for answer in answers] == ["orders"] * 4 + ["open"] * 2
    # The node, as its pods see it.
    seen = [answer["client"] for answer in answers if answer is not None]
    assert (seen[1], seen[3]) == ("10.244.2.1", "fd00:244:2::1")

    mesh.cluster.api.apply(strict("strict"))
    for way in ways:
        wait_for(f"{way} is refused", partial(is_refused, mesh, *way))
    # Those that are probed all the time, and some that are probed for the first time.
    for node, family in (("node-1", "."), ("node-2", ":")):
        mesh.cluster.api.apply(application("strict", f"new-on-{node}", node))
        assert family in shop.pod(f"new-on-{node}").wait_ready().probed_address
    for name in ("open", "orders", "web"):
        assert shop.pod(name).is_ready()
    assert shop.web.get(shop.cluster_ip, 80)["pod"] == "orders"
    assert all(is_refused(mesh, *way) for way in ways)
