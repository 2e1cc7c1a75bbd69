"""`ambient check`, `status` and `why` on a whole cluster, with what its agents report."""

from __future__ import annotations

import contextlib
import io
import json
import os
from typing import Any
from unittest import mock

import pytest
import yaml

from daemonset.cli import main
from tests.support.cluster.cluster import NodeCluster
from tests.support.cluster.images import IMAGE
from tests.support.cluster.mesh import SYSTEM, Mesh
from tests.support.program import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(600)]
ISTIO_CNI = f"""
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: istio-cni-node, namespace: istio-system}}
spec:
  selector: {{matchLabels: {{k8s-app: istio-cni-node}}}}
  template:
    metadata: {{labels: {{k8s-app: istio-cni-node}}}}
    spec:
      nodeName: node-1
      containers:
      - {{name: c, image: "{IMAGE}", imagePullPolicy: Never, command: [sleep, infinity]}}
      volumes:
      - {{name: a, hostPath: {{path: /var/run/ztunnel}}}}
      - {{name: b, hostPath: {{path: /etc/cni/net.d}}}}
"""


def ambient(cluster: NodeCluster, *words: str) -> tuple[int, str]:
    """The command as an administrator's machine runs it: exit status and what it says."""
    output = io.StringIO()
    with (
        cluster.host.enter(),
        mock.patch.dict(os.environ, KUBECONFIG=str(cluster.api.kubeconfig)),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        code = main(list(words))
    return code, output.getvalue()


def findings(cluster: NodeCluster) -> dict[str, Any]:
    """What is wrong with the mesh itself, by reason: other tests have pods and policies here."""
    _, said = ambient(cluster, "check", "--output", "json")
    found = json.loads(said)["findings"]
    others = ("Namespace", "NetworkPolicy")
    return {
        one["reason"]: one
        for one in found
        if one["severity"] != "info"
        and one["kind"] not in others
        and (one["kind"] != "Pod" or one["namespace"] == SYSTEM)
    }


def test_all_is_found_well_and_explained(mesh: Mesh) -> None:
    cluster = mesh.cluster
    shop = mesh.shop("asked", mode="ambient")
    shop.wait_redirection("enabled")
    mesh.wait_encrypted(shop)
    wait_for("nothing is wrong", lambda: (findings(cluster) == {}) or None)
    code, said = ambient(cluster, "status")
    assert code == 0
    for words in ("node-1", "node-2", "leads", "asked/web", "ready ("):
        assert words in said, said
    _, said = ambient(cluster, "status", "-n", "asked", "--output", "json")
    assert {one["state"] for one in json.loads(said)["pods"]} == {"in"}
    code, said = ambient(cluster, "why", "-n", "asked", "web", "orders", "80")
    assert (code, "mutual TLS to" in said) == (0, True), said


def test_an_agent_does_not_begin_beside_istios(mesh: Mesh) -> None:
    cluster = mesh.cluster
    item = yaml.safe_load(ISTIO_CNI)
    cluster.api.apply(item)
    path = "/api/v1/namespaces/istio-system/pods?labelSelector=k8s-app=istio-cni-node"
    wait_for("theirs is on a node", lambda: cluster.api.call("GET", path)["items"] or None)
    assert "AnotherAgent" in findings(cluster)
    ours = ("--selector=app=ambient-agent", "--field-selector=spec.nodeName=node-1")
    cluster.kubectl("-n", SYSTEM, "delete", "pod", *ours)

    def told() -> Any:
        found = findings(cluster).get("AgentNotReady")
        return found if found and "istio-system/istio-cni-node" in found["message"] else None

    wait_for("check quotes the agent", told)
    cluster.api.delete(item)
    mesh.wait_rolled_out("daemonset/ambient-agent")
    wait_for("nothing is wrong any more", lambda: (findings(cluster) == {}) or None)
