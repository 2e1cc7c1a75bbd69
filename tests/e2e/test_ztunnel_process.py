"""`python -m ztunnel` below an agent that speaks Istio's bytes, and for one workload alone."""

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from daemonset.agent.capture import Capture
from daemonset.agent.capture_rules import CaptureOptions
from daemonset.local.metrics_lines import Sample, parse_samples
from daemonset.local.processes import http_get
from tests.support.lab import Lab, lab
from ztunnel.linux.fds import send_with_fds

pytestmark = [pytest.mark.root, pytest.mark.slow]

HELLO = b"\x08\x01"
ACK = b"\x0a\x00"
SNAPSHOT_SENT = b"\x1a\x00"
PATIENCE = 30.0


def text(field: int, value: str) -> bytes:
    return bytes((field << 3 | 2, len(value))) + value.encode()


def nested(field: int, body: bytes) -> bytes:
    return bytes((field << 3 | 2, len(body))) + body


def add(uid: str, name: str) -> bytes:
    """As Istio's CNI writes it."""
    info = text(1, name) + text(2, "default") + text(3, "default")
    return nested(1, text(1, uid) + nested(2, info))


def keep(uid: str) -> bytes:
    return nested(5, text(1, uid))


def delete(uid: str) -> bytes:
    """The uid is field 2 here."""
    return nested(2, text(2, uid))


def wait_for(condition: Callable[[], bool], what: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}\n{log.read_text()}"
        time.sleep(0.05)


class Cni:
    """The agent's end of ZDS, byte for byte."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(PATIENCE)
        self._connection: socket.socket | None = None

    def accept(self) -> None:
        self._connection, _ = self._listener.accept()
        self._connection.settimeout(PATIENCE)
        assert self._connection.recv(1024) == HELLO

    def ask(self, message: bytes, netns: int | None = None) -> bytes:
        assert self._connection is not None
        if netns is None:
            self._connection.send(message)
        else:
            send_with_fds(self._connection, message, [netns])
        return self._connection.recv(1024)

    def hang_up(self) -> None:
        assert self._connection is not None
        self._connection.close()
        self._connection = None

    def close(self) -> None:
        self._listener.close()
        if self._connection is not None:
            self._connection.close()


class Running:
    """A ztunnel that runs in a namespace of the lab."""

    def __init__(self, room: Lab, place: str | int, log: Path, **env: str) -> None:
        self._room = room
        self._place = place
        self.log = log
        with log.open("wb") as output:
            self._process: subprocess.Popen[bytes] = room.start(
                place,
                sys.executable,
                *("-m", "ztunnel"),
                env={**os.environ, "XDS_ADDRESS": "", "CA_ADDRESS": "", **env},
                stdout=output.fileno(),
            )

    def get(self, port: int, path: str) -> tuple[int, str]:
        return http_get(self._room.where(self._place), "127.0.0.1", port, path, timeout=5.0)

    def readiness(self) -> str:
        try:
            return self.get(15021, "/healthz/ready")[1]
        except OSError as error:
            return str(error)

    def until_ready(self) -> None:
        wait_for(lambda: self.readiness() == "ready\n", "ready", self.log)

    def metrics(self) -> list[Sample]:
        status, page = self.get(15020, "/stats/prometheus")
        assert status == 200
        return list(parse_samples(page))

    def metric(self, name: str, **labels: str) -> float:
        return sum(
            sample.value
            for sample in self.metrics()
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def until_metric(self, value: float, name: str, **labels: str) -> None:
        wait_for(
            lambda: self.metric(name, **labels) == value, f"{name}{labels} is {value}", self.log
        )

    def says(self, words: str) -> None:
        wait_for(lambda: words in self.log.read_text(), repr(words), self.log)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(PATIENCE) == 0


@contextmanager
def captured(room: Lab, *pods: str) -> Iterator[None]:
    with ExitStack() as stack:
        for pod in pods:
            capture = Capture(room.pod(pod).network, CaptureOptions(1337, dns=False))
            capture.apply()
            stack.callback(capture.remove)
        yield


def echoes(room: Lab, pod: str, host: str, port: int = 7000, size: int = 1000) -> bool:
    """So many bytes from a pod and back; false where it is refused."""
    with room.pod(pod).network.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE)
        try:
            sock.connect((host, port))
            sock.sendall(bytes(size))
            sock.shutdown(socket.SHUT_WR)
            received = 0
            while some := sock.recv(65536):
                received += len(some)
        except ConnectionError:
            return False
    return received == size


def mesh_yaml(room: Lab, *pods: str, more: str = "") -> str:
    workloads = "".join(
        f"""
- uid: {pod}
  name: {pod}
  namespace: default
  serviceAccount: default
  workloadIps: ["{room.ip(pod)}"]
  services: {{}}
  trustDomain: cluster.local
"""
        for pod in pods
    )
    return f"workloads:{workloads}{more}"


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
        )  # fmt: skip
        network = {pod: room.pod(pod).network for pod in ("client", "server", "bad")}
        with captured(room, "client", "server"), ExitStack() as stack:
            stack.callback(cni.close)
            squatter = network["bad"].socket(socket.AF_INET6, socket.SOCK_STREAM)
            stack.callback(squatter.close)
            squatter.bind(("::", 15008))
            squatter.listen()
            cni.accept()
            assert "workload proxy manager" in ztunnel.readiness()
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


def told_on_both_sides(ztunnel: Running) -> None:
    """Both reporters of the connection that `echoes` made, scraped from port 15020."""
    for reporter in ("source", "destination"):
        labels = {
            "reporter": reporter, "source_workload_namespace": "default", "request_protocol": "tcp",
            "destination_workload_namespace": "default", "response_flags": "-",
            "connection_security_policy": "unknown",
        }  # fmt: skip
        ztunnel.until_metric(1, "istio_tcp_connections_closed_total", **labels)
        assert ztunnel.metric("istio_tcp_connections_opened_total", **labels) == 1
        assert ztunnel.metric("istio_tcp_sent_bytes_total", **labels) == 1000
        assert ztunnel.metric("istio_tcp_received_bytes_total", **labels) == 1000
    names = {sample.name for sample in ztunnel.metrics()}
    assert {
        "istio_build", "istio_tcp_sockets_open", "workload_manager_proxies_started_total",
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


def listeners(network: object) -> Mapping[int, int]:
    """TCP port of ours -> how many sockets listen on it, in one namespace."""
    found: dict[int, int] = {}
    with network.enter():  # type: ignore[attr-defined]
        for name in ("tcp", "tcp6"):
            lines = Path(f"/proc/thread-self/net/{name}").read_text().splitlines()[1:]
            for line in lines:
                fields = line.split()
                port = int(fields[1].rpartition(":")[2], 16)
                if fields[3] == "0A" and 15000 < port < 15100:
                    found[port] = found.get(port, 0) + 1
    return found


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
        )  # fmt: skip
        ztunnel.until_ready()
        with captured(room, "client"):
            assert echoes(room, "client", room.ip("server"))
        ztunnel.says('direction="outbound" bytes_sent=1000 bytes_recv=1000')
        assert 'src.workload="client"' in ztunnel.log.read_text()
        by_socks(room)
        ztunnel.stop()
        assert listeners(room.pod("client").network) == {}


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
