"""`python -m ztunnel` below an agent that speaks Istio's bytes, and for one workload alone."""

import json
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.lab import Lab, lab
from tests.support.one_ztunnel import (
    ACK,
    PATIENCE,
    SNAPSHOT_SENT,
    Cni,
    Running,
    add,
    captured,
    delete,
    echoes,
    keep,
    listeners,
    mesh_yaml,
    wait_for,
)

pytestmark = [pytest.mark.root, pytest.mark.slow]


DENY_ALL = """
policies:
- name: nobody
  namespace: default
  scope: Global
  action: Allow
  rules: []
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """For sockets, whose paths must be short."""
    with tempfile.TemporaryDirectory(prefix="zt-") as found:
        yield Path(found)


def test_below_an_agent_that_speaks_istios_bytes(place: Path, tmp_path: Path) -> None:
    resources = place / "mesh.yaml"
    with lab(nodes=1, pods={"client": 1, "server": 1, "bad": 1}) as room:
        resources.write_text(mesh_yaml(room, "client", "server", "bad"))
        room.app("server", echo=7000)
        cni = Cni(place / "zds.sock")
        ztunnel = Running(
            room, 1, tmp_path / "ztunnel.log",
            INPOD_UDS=str(place / "zds.sock"), LOCAL_XDS_PATH=str(resources),
            ZTUNNEL_WORKER_THREADS="2", ISTIO_META_DNS_CAPTURE="true",
            POD_NAME="ztunnel-x", POD_NAMESPACE="istio-system", SERVICE_ACCOUNT="ztunnel",
        )  # fmt: skip
        network = {pod: room.pod(pod).network for pod in ("client", "server", "bad")}
        with captured(room, "client", "server"), ExitStack() as stack:
            stack.callback(cni.close)
            squatter = network["bad"].socket(socket.AF_INET6, socket.SOCK_STREAM)
            stack.callback(squatter.close)
            squatter.bind(("::", 15008))
            squatter.listen()
            cni.accept()
            wait_for(
                lambda: "workload proxy manager" in ztunnel.readiness(), "pending", ztunnel.log
            )
            assert cni.ask(add("u-client", "client"), network["client"].fd) == ACK
            # One pod that cannot be started is refused by name and holds up nobody.
            answer = cni.ask(add("u-bad", "bad"), network["bad"].fd)
            assert b"failure to start proxy for default/bad" in answer
            assert b"listen on port 15008: Address already in use" in answer
            assert cni.ask(add("u-server", "server"), network["server"].fd) == ACK
            assert cni.ask(SNAPSHOT_SENT) == ACK
            ztunnel.until_ready()
            # One worker is enough for the answer; in the end there are two. DNS has two families.
            both = {15001: 2, 15006: 2, 15008: 2, 15053: 4}
            wait_for(lambda: listeners(network["server"]) == both, "two workers", ztunnel.log)
            # Its own ports can be reached by tunnels, and nothing of its own is captured.
            node = room.node(1).network
            wait_for(lambda: listeners(node).get(15008) == 2, "its own", ztunnel.log)
            assert not listeners(node).keys() & {15001, 15006, 15053}
            assert echoes(room, "client", room.ip("server"))
            ztunnel.until_metric(2, "workload_manager_active_proxy_count")
            ztunnel.until_metric(1, "workload_manager_pending_proxy_count")
            told_on_both_sides(ztunnel)
            # The pod whose port was taken is served as soon as it can be, unasked.
            squatter.close()
            ztunnel.until_metric(3, "workload_manager_active_proxy_count")
            # The agent goes: what runs goes on, the node says why it is not ready.
            cni.hang_up()
            wait_for(
                lambda: "not ready, pending: workload proxy manager" in ztunnel.readiness(),
                "not ready",
                ztunnel.log,
            )
            assert echoes(room, "client", room.ip("server"))
            # It is back and knows less: what it does not name ends, what it keeps goes on.
            cni.accept()
            assert cni.ask(keep("u-client")) == ACK
            assert cni.ask(add("u-server", "server"), network["server"].fd) == ACK
            assert cni.ask(SNAPSHOT_SENT) == ACK
            ztunnel.until_ready()
            ztunnel.until_metric(2, "workload_manager_active_proxy_count")
            assert listeners(network["bad"]) == {}
            assert echoes(room, "client", room.ip("server"))
            half_written(ztunnel, room, resources)
            assert cni.ask(delete("u-client")) == ACK
            ztunnel.until_metric(1, "workload_manager_active_proxy_count")
            wait_for(lambda: listeners(network["client"]) == {}, "closed", ztunnel.log)
            ztunnel.stop()


def test_few_connections_stay_on_one_worker_and_many_are_spread(
    place: Path, tmp_path: Path
) -> None:
    resources = place / "mesh.yaml"
    with lab(nodes=1, pods={"client": 1, "server": 1}) as room:
        resources.write_text(mesh_yaml(room, "client"))  # the server is outside the mesh
        room.app("server", echo=7000)
        cni = Cni(place / "zds.sock")
        ztunnel = Running(
            room, 1, tmp_path / "ztunnel.log",
            INPOD_UDS=str(place / "zds.sock"), LOCAL_XDS_PATH=str(resources),
            ZTUNNEL_WORKER_THREADS="2",
        )  # fmt: skip
        client = room.pod("client").network
        with captured(room, "client"), ExitStack() as stack:
            stack.callback(cni.close)
            cni.accept()
            assert cni.ask(add("u-client", "client"), client.fd) == ACK
            assert cni.ask(SNAPSHOT_SENT) == ACK
            ztunnel.until_ready()
            wait_for(lambda: listeners(client).get(15001) == 2, "two workers", ztunnel.log)

            def connect(count: int, held: ExitStack) -> None:
                for _ in range(count):
                    sock = held.enter_context(client.socket(socket.AF_INET, socket.SOCK_STREAM))
                    sock.settimeout(PATIENCE)
                    sock.connect((room.ip("server"), 7000))
                    sock.sendall(b"?")
                    assert sock.recv(1) == b"?"

            def flows() -> list[float]:
                return sorted(
                    sample.value
                    for sample in ztunnel.metrics()
                    if sample.name == "ztunnel_engine_flows"
                )

            def sixteen_on_one_worker() -> bool:
                with ExitStack() as held:
                    connect(16, held)
                    wait_for(lambda: sum(flows()) == 16, "16 connections", ztunnel.log)
                    together = flows() == [0, 16]
                wait_for(lambda: sum(flows()) == 0, "no connections", ztunnel.log)
                return together

            # Not at once: a worker that has just been started is busy, and shares.
            wait_for(sixteen_on_one_worker, "one worker has them all", ztunnel.log)
            connect(200, stack)
            wait_for(lambda: sum(flows()) == 200, "200 connections", ztunnel.log)
            # The first 64 on one, and half of the others.
            assert flows()[0] > 20
            ztunnel.stop()


def told_on_both_sides(ztunnel: Running) -> None:
    """Both reporters of the connection that `echoes` made, scraped from port 15020."""
    for reporter in ("source", "destination"):
        labels = {
            "reporter": reporter, "source_workload_namespace": "default", "request_protocol": "tcp",
            "destination_workload_namespace": "default", "response_flags": "-",
            "connection_security_policy": "unknown",
        }  # fmt: skip
        ztunnel.until_metric(1, "istio_tcp_connections_closed_total", **labels)
        ztunnel.until_metric(1, "istio_tcp_connections_opened_total", **labels)
        ztunnel.until_metric(1000, "istio_tcp_sent_bytes_total", **labels)
        ztunnel.until_metric(1000, "istio_tcp_received_bytes_total", **labels)
    names = {sample.name for sample in ztunnel.metrics()}
    assert {
        "istio_build", "istio_tcp_sockets_open", "workload_manager_proxies_started_total",
        "ztunnel_compiled",
        "ztunnel_relay_connections_total", "ztunnel_workers", "process_open_fds",
    } <= names  # fmt: skip


def half_written(ztunnel: Running, room: Lab, resources: Path) -> None:
    """A file that is written slowly is taken once it is whole; one that makes no sense never."""
    host = room.ip("server")
    whole = mesh_yaml(room, "client", "server", "bad", more=DENY_ALL)
    assert echoes(room, "client", host)
    resources.write_text(whole)
    ztunnel.says("mesh.yaml has changed and is in force")
    wait_for(lambda: not echoes(room, "client", host), "the policy is in force", ztunnel.log)
    # Written again, piece by piece: at no moment is anybody let in for want of the policies.
    with resources.open("w") as file:
        for position in range(0, len(whole), 40):
            file.write(whole[position : position + 40])
            file.flush()
            time.sleep(0.05)
            assert not echoes(room, "client", host)
    resources.write_text("workloads: [")
    ztunnel.says("the last good state stays in force")
    assert not echoes(room, "client", host)


def test_dedicated_to_one_workload(place: Path, tmp_path: Path) -> None:
    """Without an agent, in the workload's own namespace, from its start to its drain."""
    resources = place / "mesh.yaml"
    with lab(nodes=1, pods={"client": 1, "server": 1}) as room:
        resources.write_text(mesh_yaml(room, "client", "server"))
        room.app("server", echo=7000)
        ztunnel = Running(
            room, "client", tmp_path / "ztunnel.log",
            PROXY_MODE="dedicated", PROXY_WORKLOAD_INFO="default/client/default",
            LOCAL_XDS_PATH=str(resources), PACKET_MARK="1337", UNSTABLE_ENABLE_SOCKS5="true",
            ZTUNNEL_KTLS="true",
        )  # fmt: skip
        ztunnel.until_ready()
        ztunnel.says("kernel path ktls is ")  # on, or why not
        wait_for(lambda: ktls_was_tried(ztunnel), "every worker's word on kTLS", ztunnel.log)
        with captured(room, "client"):
            assert echoes(room, "client", room.ip("server"))
        ztunnel.says('direction="outbound" bytes_sent=1000 bytes_recv=1000')
        assert 'src.workload="client"' in ztunnel.log.read_text()
        by_socks(room)
        ztunnel.stop()
        assert listeners(room.pod("client").network) == {}


def ktls_was_tried(ztunnel: Running) -> bool:
    workers = json.loads(ztunnel.get(15000, "/config_dump")[1])["kernelPaths"].values()
    states = {paths["ktls"] for paths in workers}
    assert "switched off" not in states
    return bool(states) and "not tried yet" not in states


def by_socks(room: Lab) -> None:
    with room.pod("client").network.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(("127.0.0.1", 15080))
        sock.sendall(b"\x05\x01\x00")
        assert sock.recv(2) == b"\x05\x00"
        address = socket.inet_aton(room.ip("server"))
        sock.sendall(b"\x05\x01\x00\x01" + address + struct.pack("!H", 7000))
        assert sock.recv(10)[1] == 0
        sock.sendall(b"hello")
        assert sock.recv(5) == b"hello"
