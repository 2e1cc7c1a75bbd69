"""`ambient why` from the live objects of a real API server."""

from __future__ import annotations

import pytest

from daemonset.cli import main
from tests.support.kube.cluster import Cluster
from tests.support.kube.manifests import MANIFESTS, install, read_base
from tests.support.kube.objects import node, pod, policy, run

CAPTURED = {"ambient.istio.io/redirection": "enabled"}


@pytest.fixture(scope="module")
def shop(cluster: Cluster) -> Cluster:
    for item in read_base(MANIFESTS / "lasting"):
        if item["kind"] != "CustomResourceDefinition":
            cluster.apply(item)
    crds = read_base(MANIFESTS / "lasting")
    install(cluster, [item for item in crds if item["kind"] == "CustomResourceDefinition"])
    cluster.namespace("shop", **{"istio.io/dataplane-mode": "ambient"})
    cluster.namespace("street")
    node(cluster, "node-a")
    web = pod("shop", "web", account="web", annotations=CAPTURED)
    orders = pod("shop", "orders", labels={"app": "orders"}, annotations=CAPTURED)
    late = pod("shop", "late", labels={"app": "orders"})
    run(cluster, web, "10.0.0.1")
    run(cluster, orders, "10.0.0.2")
    run(cluster, late, "10.0.0.4")
    run(cluster, pod("street", "visitor"), "10.0.0.3")
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "orders", "namespace": "shop"},
            "spec": {
                "clusterIP": "10.96.0.77",
                "selector": {"app": "orders"},
                "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
            },
        }
    )
    principals = ["cluster.local/ns/shop/sa/web"]
    rules = [
        {"to": [{"operation": {"ports": ["9"]}}]},
        {"from": [{"source": {"principals": principals}}]},
    ]
    only_web = policy("shop", "only-web", {"rules": rules})
    only_web["spec"]["selector"] = {"matchLabels": {"app": "orders"}}
    cluster.apply(only_web)
    return cluster


def ask(
    shop: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str]:
    monkeypatch.setenv("KUBECONFIG", str(shop.kubeconfig))
    code = main(["why", "--kubernetes", *words])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_policy_and_rule_are_named(
    shop: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = ask(shop, monkeypatch, capsys, "web", "pod/orders", "8080")
    assert code == 0, said
    assert "mutual TLS to 10.0.0.2:15008" in said
    assert "AuthorizationPolicy shop/only-web: spec.rules[1]" in said
    code, said = ask(shop, monkeypatch, capsys, "visitor", "shop/orders")
    assert code == 1
    assert "street/visitor is not in the mesh" in said
    assert "AuthorizationPolicy shop/only-web" in said


def test_captured_is_what_the_node_agent_says(
    shop: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = ask(shop, monkeypatch, capsys, "-n", "shop", "web", "pod/late", "8080")
    assert code == 0
    assert "in the clear" in said


def test_questions_without_an_answer(
    shop: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, said = ask(shop, monkeypatch, capsys, "nobody", "orders")
    assert (code, "there is no workload nobody" in said) == (2, True)
    code, said = ask(shop, monkeypatch, capsys, "-n", "street", "web", "orders")
    assert (code, "there is no workload street/web" in said) == (2, True)
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    code = main(["why", "--kubernetes", "a", "b"])
    assert (code, "no kubeconfig that can be used" in capsys.readouterr().err) == (2, True)


def test_a_network_policy_in_the_way_is_named(
    shop: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    item = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "only-http", "namespace": "shop"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "orders"}},
            "ingress": [{"ports": [{"port": "http"}]}],
        },
    }
    assert "below the mesh" not in ask(shop, monkeypatch, capsys, "web", "service/orders")[1]
    shop.apply(item)
    code, said = ask(shop, monkeypatch, capsys, "web", "service/orders")
    assert code == 0, said
    [line] = [line for line in said.splitlines() if "below the mesh" in line]
    # Port 8080 is let in, which is how the pod that is not captured is reached.
    assert "NetworkPolicy shop/only-http: no ingress rule lets shop/web in at shop/orders" in line
    assert "TCP 15008" in line
    shop.delete(item)
