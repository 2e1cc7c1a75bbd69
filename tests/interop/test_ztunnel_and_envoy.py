"""A whole ztunnel, with its processes and a CA, and Envoy at the other end of its tunnels."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from cryptography import x509

from tests.support.envoy import Envoy
from tests.support.envoy_config import ClientOptions, Http2Options, ServerOptions, client, server
from tests.support.fake_ca import FakeCa, serving_below
from tests.support.lab import Lab, lab
from tests.support.one_ztunnel import (
    ACK,
    PATIENCE,
    SNAPSHOT_SENT,
    Cni,
    Running,
    captured,
    echoes,
    nested,
    text,
    wait_for,
)
from ztunnel.mesh.identity import Identity

pytestmark = [pytest.mark.root, pytest.mark.slow]

ECHO = 7000
ENTRY = 7100
"""The port of Envoy's pod from which its tunnel leads to our server."""
ENVOY = Identity("cluster.local", "default", "envoy")


class Peers:
    """A client and a server pod below our ztunnel, and an Envoy in a pod that is not captured."""

    def __init__(self, room: Lab, ztunnel: Running, ca: FakeCa, serves: Envoy, dials: Envoy):
        self.room = room
        self.ztunnel = ztunnel
        self.ca = ca
        self.serves = serves
        self.dials = dials
        self._socks: list[socket.socket] = []

    def connect(self, pod: str, host: str, port: int) -> socket.socket:
        sock = self.room.pod(pod).network.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socks.append(sock)
        sock.settimeout(PATIENCE)
        sock.connect((host, port))
        return sock

    def close(self) -> None:
        """All that were connected."""
        for sock in self._socks:
            sock.close()

    def line(self, *parts: str) -> str:
        """The first access-log line that holds all of `parts`."""
        found: list[str] = []

        def written() -> bool:
            lines = self.ztunnel.log.read_text().splitlines()
            found.extend(line for line in lines if all(part in line for part in parts))
            return bool(found)

        wait_for(written, f"a line with {parts}", self.ztunnel.log)
        return found[0]


def mesh_yaml(room: Lab) -> str:
    return "workloads:" + "".join(
        f"""
- uid: {pod}
  name: {pod}
  namespace: default
  serviceAccount: {pod}
  workloadIps: ["{room.ip(pod)}"]
  services: {{}}
  trustDomain: cluster.local
  protocol: HBONE
"""
        for pod in ("client", "server", "envoy")
    )


def add_as_itself(pod: str) -> bytes:
    """The pod's service account has the pod's name."""
    info = text(1, pod) + text(2, "default") + text(3, pod)
    return nested(1, text(1, f"u-{pod}") + nested(2, info))


@contextmanager
def peers(tmp_path: Path, lifetime: float = 86400.0, **env: str) -> Iterator[Peers]:
    with (
        tempfile.TemporaryDirectory(prefix="zt-") as found,
        lab(pods={"client": 1, "server": 1, "envoy": 2}, ipv6=False) as room,
        ExitStack() as stack,
    ):
        place = Path(found)
        ca = FakeCa()
        ca.lifetime = lifetime
        stack.enter_context(serving_below(room.keeper, room.network, ca))
        (place / "mesh.yaml").write_text(mesh_yaml(room))
        room.app("server", echo=ECHO)
        room.app("envoy", echo=ECHO)
        cni = Cni(place / "zds.sock")
        stack.callback(cni.close)
        ztunnel = Running(
            room, 1, tmp_path / "ztunnel.log", INPOD_UDS=str(place / "zds.sock"),
            LOCAL_XDS_PATH=str(place / "mesh.yaml"), ZTUNNEL_WORKER_THREADS="1",
            ISTIO_META_DNS_CAPTURE="false", **{**ca.environment, **env},
        )  # fmt: skip
        stack.enter_context(captured(room, "client", "server"))
        cni.accept()
        for pod in ("client", "server"):
            assert cni.ask(add_as_itself(pod), room.pod(pod).network.fd) == ACK
        assert cni.ask(SNAPSHOT_SENT) == ACK
        ztunnel.until_ready()
        network = room.pod("envoy").network
        certificate = ca.authority.workload(ENVOY)
        announces = Http2Options(max_concurrent_streams=1024)
        to_server = f"{room.ip('server')}:{ECHO}"
        serves = stack.enter_context(
            Envoy(
                tmp_path / "serves",
                server(ServerOptions(http2=announces)),
                certificate,
                network,
            )
        )
        dials = stack.enter_context(
            Envoy(
                tmp_path / "dials",
                client(ClientOptions(peer=(room.ip("server"), 15008), tunnels={ENTRY: to_server})),
                certificate,
                network,
            )
        )
        made = Peers(room, ztunnel, ca, serves, dials)
        try:
            yield made
        finally:
            made.close()
        ztunnel.stop()


@pytest.mark.parametrize("records", ["own", "openssl"])
def test_bytes_pass_in_both_roles(tmp_path: Path, records: str) -> None:
    size = 3_000_000
    with peers(tmp_path, ZTUNNEL_TLS_RECORDS=records) as there:
        assert echoes(there.room, "client", there.room.ip("envoy"), ECHO, size)
        line = there.line('direction="outbound"', "connection complete")
        assert f'dst.identity="{ENVOY.uri}"' in line
        assert f"bytes_sent={size} bytes_recv={size}" in line
        assert 'path="tls"' in line
        assert "error=" not in line
        assert there.serves.stat("http.hbone.downstream_rq_total") == 1
        assert echoes(there.room, "envoy", "127.0.0.1", ENTRY, size)
        line = there.line('direction="inbound"', "connection complete")
        assert f'src.identity="{ENVOY.uri}"' in line
        assert f"bytes_sent={size} bytes_recv={size}" in line
        assert "error=" not in line
        assert there.dials.stat("cluster.hbone.upstream_cx_total") == 1
        many(there)
        what_envoy_throws_away(there)


def many(there: Peers) -> None:
    """More streams than one tunnel of ours carries, and as many as Envoy puts on one of its."""
    for pod, host, port in (
        ("client", there.room.ip("envoy"), ECHO),
        ("envoy", "127.0.0.1", ENTRY),
    ):
        with ExitStack() as stack:
            socks = [stack.enter_context(there.connect(pod, host, port)) for _ in range(250)]
            for number, sock in enumerate(socks):
                sock.sendall(number.to_bytes(4, "big"))
            for number, sock in enumerate(socks):
                assert sock.recv(4, socket.MSG_WAITALL) == number.to_bytes(4, "big")
    assert there.serves.stat("http2.tx_reset") == there.serves.stat("http2.rx_reset") == 0


def what_envoy_throws_away(there: Peers) -> None:
    """An application behind Envoy ends first: what ours still sends is read, lost, and told."""
    listener = there.room.pod("envoy").network.socket(socket.AF_INET, socket.SOCK_STREAM)
    with listener:
        listener.bind(("0.0.0.0", 7001))
        listener.listen()
        listener.settimeout(PATIENCE)
        with there.connect("client", there.room.ip("envoy"), 7001) as sock:
            accepted, _ = listener.accept()
            with accepted:
                accepted.sendall(b"bye")
                accepted.shutdown(socket.SHUT_WR)
                assert sock.recv(4, socket.MSG_WAITALL) == b"bye"  # and its end
                for _ in range(50):
                    sock.sendall(bytes(1000))  # nobody resets it
                    time.sleep(0.005)
    line = there.line('direction="outbound"', "bytes_discarded=")
    assert 'closed_by="server"' in line
    assert "error=" not in line
    assert int(line.partition("bytes_discarded=")[2].split()[0]) > 0


def held(there: Peers, pod: str, host: str, port: int) -> Callable[[], bool]:
    """A connection that stays; tells whether it still answers."""
    sock = there.connect(pod, host, port)

    def answers() -> bool:
        try:
            sock.sendall(b"ping")
            return sock.recv(4, socket.MSG_WAITALL) == b"ping"
        except ConnectionError:
            return False

    assert answers()
    return answers


def test_certificates_are_renewed_under_live_connections(tmp_path: Path) -> None:
    with peers(tmp_path, lifetime=7.0) as there:
        out = held(there, "client", there.room.ip("envoy"), ECHO)
        inside = held(there, "envoy", "127.0.0.1", ENTRY)
        first = time.monotonic()
        while time.monotonic() - first < 9:
            assert out()
            assert inside()
            time.sleep(0.2)
        assert there.ca.asked.count("spiffe://cluster.local/ns/default/sa/client") >= 3
        # Both certificates of the first tunnels have expired since: others are made.
        before = there.serves.stat("http.hbone.downstream_cx_total")
        assert echoes(there.room, "client", there.room.ip("envoy"))
        assert there.serves.stat("http.hbone.downstream_cx_total") == before + 1
        assert echoes(there.room, "envoy", "127.0.0.1", ENTRY)
        assert out()
        assert inside()


def test_a_revocation_list_that_changes_ends_live_connections(tmp_path: Path) -> None:
    lists = tmp_path / "crl.pem"
    with peers(tmp_path, CRL_PATH=str(lists)) as there:
        out = held(there, "client", there.room.ip("envoy"), ECHO)
        inside = held(there, "envoy", "127.0.0.1", ENTRY)
        shown = x509.load_pem_x509_certificate((tmp_path / "serves" / "chain.pem").read_bytes())
        temporary = tmp_path / "new.pem"
        temporary.write_bytes(there.ca.authority.crl([shown.serial_number]))
        os.replace(temporary, lists)
        log = there.ztunnel.log
        wait_for(lambda: not out(), "the connection to Envoy is cut", log)
        wait_for(lambda: not inside(), "the connection from Envoy is cut", log)
        for direction in ("outbound", "inbound"):
            line = there.line(f'direction="{direction}"', 'response_flags="CERT_REVOKED"')
            assert "connection closed: peer certificate revoked by CRL" in line
        assert not echoes(there.room, "client", there.room.ip("envoy"))
        assert not echoes(there.room, "envoy", "127.0.0.1", ENTRY)
        rejections = "istio_crl_policy_rejections_total"
        for reporter in ("source", "destination"):  # the live tunnel, and the one refused since
            there.ztunnel.until_metric(2, rejections, reporter=reporter)
        # The list is taken away: everybody may come again.
        lists.unlink()
        wait_for(lambda: echoes(there.room, "client", there.room.ip("envoy")), "let in", log)
        assert echoes(there.room, "envoy", "127.0.0.1", ENTRY)


def test_a_ztunnel_that_ends_lets_connections_end_first(tmp_path: Path) -> None:
    with peers(tmp_path, CONNECTION_TERMINATION_DEADLINE="25s") as there:
        out = held(there, "client", there.room.ip("envoy"), ECHO)
        inside = held(there, "envoy", "127.0.0.1", ENTRY)
        there.ztunnel.terminate()
        # GOAWAY: Envoy puts nothing new on that tunnel, and keeps what is on it.
        wait_for(
            lambda: there.dials.stat("cluster.hbone.upstream_cx_close_notify") == 1,
            "Envoy has been told",
            there.ztunnel.log,
        )
        for _ in range(10):
            assert out()
            assert inside()
            time.sleep(0.1)
        assert there.ztunnel.running
        ended = time.monotonic()
        there.close()
        wait_for(lambda: not there.ztunnel.running, "it ends with the last", there.ztunnel.log)
        assert time.monotonic() - ended < 15
        for direction in ("outbound", "inbound"):
            assert "error=" not in there.line(f'direction="{direction}"', "connection complete")
