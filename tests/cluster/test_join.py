"""A label puts pods into the mesh: running ones as they are, new ones before they start."""

from __future__ import annotations

import json

import pytest

from tests.support.cluster.images import IMAGE
from tests.support.cluster.mesh import MARKER, Mesh, Shop, is_all_tls
from tests.support.cluster.pods import application
from tests.support.kube.objects import policy
from tests.support.program import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(600)]
PATH = f"/?{MARKER}"


def containers(shop: Shop) -> list[str]:
    return [each.now["status"]["containerStatuses"][0]["containerID"] for each in shop.pods]


def test_running_pods_join_and_leave_without_a_restart(mesh: Mesh) -> None:
    shop = mesh.shop("join")
    before = containers(shop)
    with mesh.wire() as wire:
        assert shop.web.get(shop.orders.address, path=PATH)["pod"] == "orders"
    assert wire.shows(MARKER.encode())

    mesh.label("join", "ambient")
    shop.wait_redirection("enabled")
    mesh.wait_encrypted(shop)
    with mesh.wire() as wire:
        for host, port in (
            (shop.orders.address, 8080),
            (shop.orders.address_v6, 8080),
            (shop.cluster_ip, 80),
        ):
            answer = shop.web.get(host, port, PATH)
            own = shop.web.address_v6 if ":" in host else shop.web.address
            assert (answer["pod"], answer["client"]) == ("orders", own)
    assert not wire.shows(MARKER.encode())
    assert is_all_tls(wire)

    mesh.label("join", None)
    shop.wait_redirection(None)
    with mesh.wire() as wire:
        assert shop.web.get(shop.orders.address, path=PATH)["pod"] == "orders"
    assert wire.shows(MARKER.encode())
    assert containers(shop) == before
    assert [each.restarts for each in shop.pods] == [0, 0, 0]


def test_the_first_connection_of_an_init_container_has_an_identity(mesh: Mesh) -> None:
    shop = mesh.shop("first", mode="ambient")
    shop.wait_redirection("enabled")
    mesh.wait_encrypted(shop)
    source = {"source": {"principals": ["cluster.local/ns/first/sa/web"]}}
    only_web = {"selector": {"matchLabels": {"app": "orders"}}, "rules": [{"from": [source]}]}
    mesh.cluster.api.apply(policy("first", "only-web", only_web))
    wait_for("the visitor is refused", lambda: not shop.is_answered("visitor"))
    late = application("first", "late", "node-1", "web")
    url = f"http://orders.first.svc.cluster.local{PATH}"
    late["spec"]["initContainers"] = [
        {
            "name": "first",
            "image": IMAGE,
            "imagePullPolicy": "Never",
            "command": ["python3", "-m", "daemonset.local.app", "get", url],
        }
    ]
    with mesh.wire() as wire:
        mesh.cluster.api.apply(late)
        pod = shop.pod("late").wait_ready()
    said = mesh.cluster.kubectl("-n", "first", "logs", "late", "--container=first")
    assert json.loads(said)["client"] in (pod.address, pod.address_v6)
    [init] = pod.now["status"]["initContainerStatuses"]
    assert init["restartCount"] == 0
    assert not wire.shows(MARKER.encode())


def test_a_static_pod_is_in_the_mesh(mesh: Mesh) -> None:
    """The kubelet has it from a file, and the API server only a mirror, of another uid."""
    shop = mesh.shop("fixed", mode="ambient")
    shop.wait_redirection("enabled")
    mesh.wait_encrypted(shop)
    source = {"source": {"principals": ["cluster.local/ns/fixed/sa/default"]}}
    only_it = {"selector": {"matchLabels": {"app": "orders"}}, "rules": [{"from": [source]}]}
    mesh.cluster.api.apply(policy("fixed", "only-it", only_it))
    wait_for("the visitor is refused", lambda: not shop.is_answered("visitor"))
    node, file = mesh.cluster.nodes["node-1"], "/etc/kubernetes/manifests/lasting.json"
    manifest = application("fixed", "lasting", "node-1")
    for given_by_its_place in ("nodeName", "serviceAccountName"):
        del manifest["spec"][given_by_its_place]
    node.run("sh", "-c", 'printf %s "$1" >"$2"', "sh", json.dumps(manifest), file)
    pod = shop.pod("lasting-node-1")
    try:
        wait_for("the kubelet has told of it", lambda: mesh.cluster.get(pod.path))
        pod.wait_ready()
        pod.wait_redirection("enabled")
        with mesh.wire() as wire:
            answer = pod.get(shop.orders.address, path=PATH)
        assert (answer["pod"], answer["client"]) == ("orders", pod.address)
        assert not wire.shows(MARKER.encode())
        assert is_all_tls(wire)
    finally:
        node.run("rm", file)
        wait_for("it is gone", lambda: mesh.cluster.get(pod.path) is None)
