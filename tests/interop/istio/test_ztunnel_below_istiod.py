"""Our node proxies below Istio's control plane: its workload API, its CA, its policies."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.istio.istiod import Istiod
from tests.support.istio.mesh import VIP, IstioMesh, istio_mesh
from tests.support.kube.cluster import Cluster
from tests.support.kube.objects import policy
from tests.support.lab import lab
from tests.support.one_ztunnel import (
    ACK,
    PATIENCE,
    SNAPSHOT_SENT,
    Cni,
    captured,
    echoes,
    nested,
    text,
)

pytestmark = [pytest.mark.root, pytest.mark.slow]

PODS = {"client": 1, "stranger": 1, "server": 2, "outsider": 1}
MODES = {1: {"XDS_ON_DEMAND": "true", "ISTIO_META_DNS_CAPTURE": "false"}, 2: {}}
"""One of the two nodes asks for addresses when they are needed, the other takes all of them."""
IN_MESH = ("client", "stranger", "server")


def add(uid: str, name: str) -> bytes:
    """As Istio's node agent writes it; every pod of the test has an account of its own."""
    info = text(1, name) + text(2, "shop") + text(3, name)
    return nested(1, text(1, uid) + nested(2, info))


@pytest.fixture(scope="module")
def mesh(
    cluster: Cluster, istiod: Istiod, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[IstioMesh]:
    """Two nodes; their agents are played byte for byte."""
    folder = tmp_path_factory.mktemp("ztunnels")
    enrolled = {name: {"ambient.istio.io/redirection": "enabled"} for name in IN_MESH}
    with ExitStack() as stack:
        room = stack.enter_context(lab(nodes=2, pods=PODS, ipv6=False))
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zt-")))
        room.app("server", echo=7000)
        stack.enter_context(captured(room, *IN_MESH))
        mesh = stack.enter_context(istio_mesh(room, cluster, istiod, folder, PODS, enrolled))
        for number in (1, 2):
            agent = Cni(place / f"zds-{number}.sock")
            stack.callback(agent.close)
            mesh.start_ztunnel(number, place / f"zds-{number}.sock", **MODES[number])
            agent.accept()
            for name in IN_MESH:
                if PODS[name] == number:
                    uid = mesh.pods[name]["metadata"]["uid"]
                    assert agent.ask(add(uid, name), room.pod(name).network.fd) == ACK
            assert agent.ask(SNAPSHOT_SENT) == ACK
        for ztunnel in mesh.ztunnels.values():
            ztunnel.until_ready()
        yield mesh


def test_pods_talk_with_certificates_of_istiod(mesh: IstioMesh) -> None:
    assert echoes(mesh.room, "client", mesh.room.ip("server"))
    line = mesh.says(2, 'direction="inbound"', 'src.workload="client"')
    assert 'src.identity="spiffe://cluster.local/ns/shop/sa/client"' in line
    assert 'dst.identity="spiffe://cluster.local/ns/shop/sa/server"' in line
    line = mesh.says(1, 'direction="outbound"', 'src.workload="client"')
    assert f"dst.hbone_addr={mesh.room.ip('server')}:7000" in line
    assert 'dst.identity="spiffe://cluster.local/ns/shop/sa/server"' in line


def test_a_service_leads_to_its_pods(mesh: IstioMesh) -> None:
    assert echoes(mesh.room, "client", VIP, 80)
    mesh.says(1, 'dst.service="server.shop.svc.cluster.local"', 'src.workload="client"')


def test_its_policies_are_enforced_and_named(mesh: IstioMesh) -> None:
    host = mesh.room.ip("server")
    assert echoes(mesh.room, "stranger", host)
    item = policy(
        "shop", "only-client",
        {
            "selector": {"matchLabels": {"app": "server"}},
            "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/client"]}}]}],
        },
    )  # fmt: skip
    with (
        open_connection(mesh, "stranger", host) as stranger,
        open_connection(mesh, "client", host) as client,
    ):
        mesh.cluster.apply(item)
        assert is_cut(stranger)
        # istiod tells of the policy's name before it tells of the policy: nobody is cut for that.
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    try:
        assert not echoes(mesh.room, "stranger", host)
        assert echoes(mesh.room, "client", host)
        mesh.says(2, 'src.workload="stranger"', "shop/only-client")
    finally:
        mesh.cluster.delete(item)
    mesh.until(lambda: echoes(mesh.room, "stranger", host), "the policy is gone")


def test_strict_refuses_who_is_not_in_the_mesh(mesh: IstioMesh) -> None:
    host = mesh.room.ip("server")
    assert echoes(mesh.room, "outsider", host)
    meta = {"name": "strict", "namespace": "shop"}
    item = {
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": meta,
        "spec": {"mtls": {"mode": "STRICT"}},
    }  # fmt: skip
    mesh.cluster.apply(item)
    try:
        mesh.until(lambda: not echoes(mesh.room, "outsider", host), "STRICT is in force")
        assert echoes(mesh.room, "client", host)
        mesh.says(2, 'direction="inbound"', "istio_converted_static_strict")
    finally:
        mesh.cluster.delete(item)
    mesh.until(lambda: echoes(mesh.room, "outsider", host), "STRICT is gone")


def test_what_istiod_said_stays_in_force_while_it_is_away(mesh: IstioMesh) -> None:
    host = mesh.room.ip("server")
    item = policy("shop", "nobody", {"selector": {"matchLabels": {"app": "server"}}})
    with open_connection(mesh, "client", host) as open_one:
        mesh.istiod.stop()
        try:
            mesh.says(2, "no stream to the control plane")
            assert echoes(mesh.room, "client", host)
            mesh.cluster.apply(item)  # nobody tells it yet
        finally:
            mesh.istiod.start()
        assert is_cut(open_one)
    mesh.cluster.delete(item)
    mesh.until(lambda: echoes(mesh.room, "client", host), "the policy is gone")


def open_connection(mesh: IstioMesh, name: str, host: str) -> socket.socket:
    """One that has carried bytes."""
    sock = mesh.room.pod(name).network.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.settimeout(PATIENCE)
    sock.connect((host, 7000))
    sock.sendall(b"x")
    assert sock.recv(1) == b"x"
    return sock


def is_cut(sock: socket.socket) -> bool:
    """Waits for it; False where it ends in peace."""
    try:
        return sock.recv(1) == b"?"
    except ConnectionResetError:
        return True
