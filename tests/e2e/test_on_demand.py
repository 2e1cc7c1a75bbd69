"""A node that is told only what it asks for: our control plane, two workers, real pods."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.mesh_lab import MeshLab, mesh_lab

pytestmark = [pytest.mark.root, pytest.mark.slow]

SERVICE = """---
apiVersion: v1
kind: Service
metadata: {name: server}
spec: {selector: {app: server}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata:
  name: server
  labels: {app: server}
  annotations: {ambient.istio.io/dns-capture: "false"}
spec:
  nodeName: node-2
  serviceAccountName: server
  containers:
    - name: main
      command: [python, -m, daemonset.local.app, serve, --http, "8080", --echo, "7000"]
      readinessProbe: {httpGet: {port: 8080}}
---
apiVersion: v1
kind: Pod
metadata:
  name: client
  annotations: {ambient.istio.io/dns-capture: "false"}
spec:
  nodeName: node-1
  serviceAccountName: client
  containers: [{name: main, command: [sleep, infinity]}]
"""


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[MeshLab]:
    settings = {
        "XDS_ON_DEMAND": "true",
        "ISTIO_META_DNS_CAPTURE": "false",  # names cannot be asked for
        "ZTUNNEL_WORKER_THREADS": "2",
    }
    with mesh_lab(tmp_path, objects=SERVICE, ztunnel=settings) as lab:
        yield lab


def answers(mesh: MeshLab, url: str) -> bool:
    return mesh.try_get("client", url).returncode == 0


def test_addresses_are_asked_for_and_kept_up_to_date(mesh: MeshLab) -> None:
    mesh.write("namespace-default.yaml", NAMESPACE)
    mesh.wait(
        lambda: mesh.observer.captured() >= {"default/client", "default/server"},
        "both pods are captured",
    )
    log = mesh.access_log_of("server")
    out = mesh.access_log_of("client")
    for url in ("http://server/", f"http://{mesh.ip('server')}:8080/"):
        answered = partial(answers, mesh, url)
        mesh.wait(answered, f"an answer from {url}")

    def through_a_tunnel() -> bool:
        # The first ones may still go as before the pods were captured, where nobody has said so.
        return answers(mesh, "http://server/") and any(
            line.inbound and line["src.identity"] for line in log.lines()
        )

    mesh.wait(through_a_tunnel, "the client is known")
    line = log.line(lambda line: line.inbound and line["src.workload"] == "client")
    assert line["src.identity"] == "spiffe://cluster.local/ns/default/sa/client"
    through = out.line(lambda line: not line.inbound and bool(line["dst.service"]))
    assert through["dst.service"] == "server.default.svc.cluster.local"

    def looked_up() -> float:
        return sum(
            sample.value
            for sample in mesh.metrics("node-1")
            if sample.name == "ztunnel_xds_lookup_duration_seconds_count"
            and sample.labels["result"] == "found"
        )

    mesh.wait(lambda: looked_up() >= 1, "what was asked for is counted")
    # An address that nobody has is passed through once the control plane has said so.
    strange = mesh.run("client", "python", "-c", CONNECT)
    assert "refused" in strange.stdout
    passed = out.line(lambda line: not line.inbound and "passed through" in line["decision"])
    assert passed["dst.addr"] == "172.18.0.3:9"
    # A policy comes without being asked for, and a pod that goes is no longer found.
    mesh.write("policy.yaml", NOBODY)
    mesh.wait(lambda: not answers(mesh, "http://server/"), "the policy is in force")
    assert "default/nobody" in log.line(lambda line: line["verdict"].startswith("denied"))["error"]
    mesh.remove("policy.yaml")
    mesh.wait(partial(answers, mesh, "http://server/"), "the policy is gone")


NAMESPACE = """apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {istio.io/dataplane-mode: ambient}}
"""
NOBODY = """apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: default}
spec: {action: ALLOW}
"""
CONNECT = """
import socket
try:
    with socket.create_connection(("172.18.0.3", 9), 10) as connected:
        print("refused" if connected.recv(1) == b"" else "served")
except OSError as error:
    print("refused", error)
"""
