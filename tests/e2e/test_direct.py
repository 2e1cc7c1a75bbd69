"""Connections between pods of one node that pass by the proxy: a whole mesh, two workers."""

import errno
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemonset.local.access_lines import AccessLine
from tests.support.mesh_lab import MeshLab, mesh_lab
from tests.support.pod_sockets import connect, echo, exchange
from tests.support.requirements import without_direct
from tests.support.ztunnel_processes import ZtunnelProcesses
from ztunnel.kernel import direct_rules
from ztunnel.linux.netlink import NetlinkError
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.nftables import Nftables

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(without_direct() is not None, reason=str(without_direct())),
]

PORT = 7000
VIP = "10.96.0.50"
SERVICE = f"""---
apiVersion: v1
kind: Service
metadata: {{name: echo, namespace: default}}
spec: {{clusterIP: {VIP}, selector: {{app: echo}}, ports: [{{port: 80, targetPort: {PORT}}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: server, namespace: default, labels: {{app: echo}}}}
spec:
  nodeName: node-1
  serviceAccountName: server
  containers: [{{name: main, command: [sleep, infinity]}}]
"""


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[MeshLab]:
    pods = {"client": 1, "other": 1}
    workers = {"ZTUNNEL_WORKER_THREADS": "2"}
    with mesh_lab(tmp_path, nodes=1, pods=pods, objects=SERVICE, ztunnel=workers) as made:
        made.enrol()
        gates_open(made)
        with echo(made, "server", PORT):
            yield made


def network(mesh: MeshLab, pod: str) -> NetworkNamespace:
    return mesh.mesh.namespace_of(pod).network


def queued(mesh: MeshLab, pod: str) -> set[str]:
    """The addresses whose first packets a pod has queued; none while its rules are not there."""
    try:
        with Nftables(network(mesh, pod)) as nftables:
            return {
                direct_rules.neighbour_address(element)
                for found in direct_rules.neighbour_sets()
                for element in nftables.elements(direct_rules.TABLE, found)
            }
    except NetlinkError as error:
        if error.errno != errno.ENOENT:
            raise
        return set()


def gates_open(mesh: MeshLab, *pods: str) -> None:
    addresses = {mesh.ip("server"), mesh.ip("client"), VIP}
    for pod in pods or ("client", "server"):
        mesh.wait(lambda pod=pod: addresses <= queued(mesh, pod), f"the gate of {pod}")  # type: ignore[misc]


def both_lines(mesh: MeshLab, talk: socket.socket) -> list[AccessLine]:
    """What both sides say of a connection that is over, by its client's port."""
    port = talk.getsockname()[1]
    log = mesh.access_log("node-1")
    talk.close()
    return [
        log.line(
            lambda line, way=way: line["direction"] == way and line["src.addr"].endswith(f":{port}")  # type: ignore[misc]
        )
        for way in ("outbound", "inbound")
    ]


def is_cut(talk: socket.socket) -> bool:
    """Whether a connection ends with an error."""
    try:
        return talk.recv(1) == b"never"
    except OSError:
        return True


def test_pod_and_service_are_reached_past_the_proxies(mesh: MeshLab) -> None:
    for host, port in ((mesh.ip("server"), PORT), (VIP, 80)):
        talk = connect(mesh, "client", (host, port))
        assert exchange(talk, b"hello") == b"hello"
        for line in both_lines(mesh, talk):
            assert line["path"] == "direct"
            assert (line["bytes_sent"], line["bytes_recv"]) == ("5", "5")
            assert line["src.identity"].endswith("/sa/client")
            assert line["dst.identity"].endswith("/sa/server")
            assert line["dst.addr"] == f"{mesh.ip('server')}:{PORT}"
            assert line["closed_by"] == "client"

    def reporters() -> dict[str, float]:
        found = {"source": 0.0, "destination": 0.0}
        for sample in mesh.metrics("node-1"):
            if sample.name == "istio_tcp_received_bytes_total":
                found[sample.labels["reporter"]] += sample.value
        return found

    mesh.wait(lambda: set(reporters().values()) == {10.0}, "the bytes in both reporters")


def test_a_policy_ends_live_connections_and_refuses_new_ones(mesh: MeshLab) -> None:
    talk = connect(mesh, "client", (mesh.ip("server"), PORT))
    assert exchange(talk, b"hello") == b"hello"
    log = mesh.access_log("node-1")
    mesh.policy(
        "nobody",
        "{action: DENY, rules: [{from: [{source: {principals: "
        "[cluster.local/ns/default/sa/client]}}]}]}",
    )
    assert is_cut(talk)
    ended = log.line(
        lambda line: line["direction"] == "inbound" and "policy change" in line["error"]
    )
    assert ended["path"] == "direct"
    with pytest.raises(OSError):
        exchange(connect(mesh, "client", (mesh.ip("server"), PORT)), b"hello")
    refused = log.line(
        lambda line: "denied by policy default/nobody" in line["error"] and not line["path"]
    )
    assert refused["direction"] == "inbound"


def test_while_the_worker_is_gone_nothing_passes_and_then_it_does(mesh: MeshLab) -> None:
    ztunnel = ZtunnelProcesses(mesh, "node-1")
    talk = connect(mesh, "client", (mesh.ip("server"), PORT))
    assert exchange(talk, b"hello") == b"hello"
    keeper = next(
        pid
        for pid in ztunnel.workers
        if b"ZTUNNEL_WORKER_SLOT=0" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    )
    os.kill(keeper, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        connect(mesh, "client", (mesh.ip("server"), PORT), seconds=0.5)
    ztunnel.kill(keeper)
    # Another attempt waits in its sender until the successor judges it.
    another = connect(mesh, "client", (mesh.ip("server"), PORT), seconds=30)
    assert exchange(another, b"hello") == b"hello"
    assert is_cut(talk)
    for line in both_lines(mesh, another):
        assert line["path"] == "direct"


def test_rules_that_somebody_took_away_come_back_and_are_filled(mesh: MeshLab) -> None:
    with Nftables(network(mesh, "client")) as nftables:
        nftables.delete(direct_rules.TABLE)
    gates_open(mesh)
    deadline = time.monotonic() + 30
    while True:
        talk = connect(mesh, "client", (mesh.ip("server"), PORT))
        assert exchange(talk, b"hello") == b"hello"
        if all(line["path"] == "direct" for line in both_lines(mesh, talk)):
            break
        assert time.monotonic() < deadline, "connections go through the proxy for good"


def test_a_pod_that_leaves_leaves_nothing_behind(mesh: MeshLab) -> None:
    talk = connect(mesh, "client", (mesh.ip("server"), PORT))
    assert exchange(talk, b"hello") == b"hello"
    mesh.release()
    assert is_cut(talk)

    def without_rules(pod: str) -> bool:
        with Nftables(network(mesh, pod)) as nftables:
            return direct_rules.TABLE not in nftables.table_names()

    for pod in ("client", "server", "other"):
        mesh.wait(lambda pod=pod: without_rules(pod), f"{pod} is as it was found")  # type: ignore[misc]
    plain = connect(mesh, "client", (mesh.ip("server"), PORT))
    assert exchange(plain, b"hello") == b"hello"
