"""One workload with a proxy of its own, in a mesh of others: certificates, tunnels both ways."""

import time
from pathlib import Path

import pytest

from daemonset.control_plane.ca.tokens import TokenSubject, open_token_key
from daemonset.local.processes import answers, python
from daemonset.local.shared_files import root_file
from tests.support.mesh_lab import MeshLab, mesh_lab

pytestmark = [pytest.mark.root, pytest.mark.slow]

SOLO = """---
apiVersion: v1
kind: Pod
metadata: {name: solo, namespace: alone, labels: {networking.istio.io/tunnel: http}}
spec:
  nodeName: node-2
  serviceAccountName: solo
  containers: [{name: main, command: [sleep, infinity]}]
"""
IDENTITY = "spiffe://cluster.local/ns/alone/sa/solo"


def start_proxy(mesh: MeshLab) -> None:
    """A dedicated ztunnel in the pod's own namespace, as the pod and with a token of its own."""
    run = mesh.mesh.run.path
    token = run / "solo-token"
    signer = open_token_key(run / "control-plane")
    token.write_text(signer.mint(TokenSubject("alone", "solo"), time.time(), 3600.0))
    token.chmod(0o600)
    control_plane = f"https://{mesh.mesh.topology.underlay[0]}:15012"
    settings = {
        "PROXY_MODE": "dedicated",
        "PROXY_WORKLOAD_INFO": "alone/solo/solo",
        "XDS_ADDRESS": control_plane,
        "CA_ADDRESS": control_plane,
        "XDS_ROOT_CA": str(root_file(run)),
        "CA_ROOT_CA": str(root_file(run)),
        "AUTH_TOKEN": str(token),
        # Nothing there brings answers to clients' addresses back to the proxy.
        "ENABLE_ORIG_SRC": "false",
        "UNSTABLE_ENABLE_SOCKS5": "true",
        "ISTIO_META_DNS_CAPTURE": "false",
        "ZTUNNEL_WORKER_THREADS": "1",
    }
    words = [f"{name}={value}" for name, value in settings.items()]
    mesh.start("alone/solo", "env", *words, *python("-m", "ztunnel"))
    namespace = mesh.mesh.network.pods["alone/solo"]
    mesh.wait(answers(namespace, "127.0.0.1", 15021, "/healthz/ready"), "the proxy is ready")


SOCKS = """
import socket, struct, sys
with socket.create_connection(("127.0.0.1", 15080), 10) as connected:
    connected.sendall(b"\\x05\\x01\\x00")
    assert connected.recv(2) == b"\\x05\\x00"
    host = socket.inet_aton(sys.argv[1])
    connected.sendall(b"\\x05\\x01\\x00\\x01" + host + struct.pack("!H", 7000))
    assert connected.recv(10)[1] == 0
    connected.sendall(b"hello")
    assert connected.recv(5) == b"hello"
"""


def test_tunnels_both_ways(tmp_path: Path) -> None:
    with mesh_lab(tmp_path, pods={"client": 1}, objects=SOLO) as mesh:
        mesh.serve("client", echo=7000)
        mesh.serve("alone/solo", http=8080)
        mesh.enrol()
        start_proxy(mesh)
        log = mesh.access_log_of("client")
        answer = mesh.get("client", f"http://{mesh.ip('alone/solo')}:8080/")
        assert answer["pod"] == "solo"
        assert answer["client"] == mesh.ip("alone/solo")
        out = log.line(lambda line: not line.inbound and line["dst.workload"] == "solo")
        assert out["dst.identity"] == IDENTITY
        assert out["path"] == "tls"
        done = mesh.run("alone/solo", *python("-c", SOCKS, mesh.ip("client")))
        assert done.returncode == 0, done.stdout
        into = log.line(lambda line: line.inbound and line["src.workload"] == "solo")
        assert into["src.identity"] == IDENTITY
