"""`ambient check` against a real API server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from daemonset.cli import main
from tests.support.kube.cluster import Cluster
from tests.support.kube.manifests import MANIFESTS, install, read_base
from tests.support.kube.objects import account, node, pod, run

CAPTURED = {"ambient.istio.io/redirection": "enabled"}
POLICY = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "only-http", "namespace": "shop"},
    "spec": {
        "podSelector": {"matchLabels": {"app": "orders"}},
        "ingress": [{"ports": [{"port": "http"}]}],
    },
}


class Checker:
    """Runs the command with one kubeconfig."""

    def __init__(
        self, kubeconfig: Path, patch: pytest.MonkeyPatch, output: pytest.CaptureFixture[str]
    ) -> None:
        self._kubeconfig, self._patch, self._output = kubeconfig, patch, output

    def run(self, *words: str) -> tuple[int, list[dict[str, Any]]]:
        """Exit status and findings."""
        self._patch.setenv("KUBECONFIG", str(self._kubeconfig))
        code = main(["check", "--output", "json", *words])
        found: list[dict[str, Any]] = json.loads(self._output.readouterr().out)["findings"]
        return code, found


@pytest.fixture
def checker(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Checker:
    return Checker(cluster.kubeconfig, monkeypatch, capsys)


def serious(found: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(one["reason"], one["name"]) for one in found if one["severity"] != "info"}


@pytest.fixture(scope="module")
def shop(cluster: Cluster) -> Cluster:
    cluster.namespace("shop")
    node(cluster, "node-a")
    run(cluster, pod("shop", "web"), "10.0.0.1")
    run(cluster, pod("shop", "orders", labels={"app": "orders"}), "10.0.0.2")
    return cluster


def test_an_empty_cluster_can_take_the_mesh(shop: Cluster, checker: Checker) -> None:
    code, found = checker.run()
    assert (code, serious(found)) == (0, set())
    assert {one["reason"] for one in found} == {"NotInstalled"}


def test_what_would_be_wrong_is_said_before(shop: Cluster, checker: Checker) -> None:
    shop.apply(POLICY)
    assert checker.run()[0] == 0
    code, found = checker.run("--as-if", "shop")
    assert (code, serious(found)) == (1, {("TunnelBlocked", "only-http")})
    shop.delete(POLICY)


def test_somebody_who_may_do_nothing_is_told_so(
    shop: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    account(shop, "shop", "nobody")
    config = json.loads(shop.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": shop.token("shop", "nobody")}
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    code, found = Checker(tmp_path / "kubeconfig", monkeypatch, capsys).run()
    reasons = {one["reason"] for one in found}
    assert (code, reasons) == (0, {"NotSeen", "MayNotInstall"})


def test_after_an_installation(shop: Cluster, checker: Checker) -> None:
    lasting = read_base(MANIFESTS / "lasting")
    definitions = [item for item in lasting if item["kind"] == "CustomResourceDefinition"]
    for item in lasting:
        if item not in definitions:
            shop.apply(item)
    install(shop, definitions)
    base = read_base(MANIFESTS / "base")
    for item in sorted(base, key=lambda item: item["kind"] != "Namespace"):
        shop.apply(item)
    shop.namespace("shop", **{"istio.io/dataplane-mode": "ambient"})
    code, found = checker.run()
    # Nothing runs on this cluster. All rights are there: the API server was asked.
    assert code == 1
    assert serious(found) == {
        ("NoAgent", "node-a"),
        ("NoZtunnel", "node-a"),
        ("NoControlPlane", "ambient-control-plane"),
        ("NotCaptured", "orders"),  # and web
    }
    [binding] = [item for item in base if item["metadata"]["name"] == "ambient-agent"
                 and item["kind"] == "ClusterRoleBinding"]  # fmt: skip
    shop.delete(binding)
    _, found = checker.run()
    missing = {one["message"] for one in found if one["reason"] == "NotAllowed"}
    assert any("may not patch pods/status" in message for message in missing)
    assert len(missing) == 6


def test_status_of_a_cluster(
    shop: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(shop.kubeconfig))
    shop.namespace("shop", **{"istio.io/dataplane-mode": "ambient"})
    captured = pod("shop", "late", annotations=CAPTURED)
    run(shop, captured, "10.0.0.9")
    assert main(["status", "--kubernetes"]) == 0
    said = capsys.readouterr().out
    assert "shop/late" in said
    assert "no node agent has captured it" in said
    assert main(["status", "-n", "shop", "--output", "json"]) == 0
    found = {one["name"]: one["state"] for one in json.loads(capsys.readouterr().out)["pods"]}
    assert found == {"web": "not captured", "orders": "not captured", "late": "in"}
    assert main(["status", "--context", "nowhere"]) == 1
    assert "no kubeconfig that can be used" in capsys.readouterr().err
