"""One ztunnel by itself: its processes, and the agent's end of ZDS byte for byte."""

import errno
import http.client
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from daemonset.agent.capture import Capture
from daemonset.agent.capture_rules import CaptureOptions
from daemonset.local.metrics_lines import Sample, parse_samples
from daemonset.local.processes import http_get
from tests.support.lab import Lab
from ztunnel.linux.fds import send_with_fds
from ztunnel.linux.netns import NetworkNamespace

HELLO = b"\x08\x01"
ACK = b"\x0a\x00"
SNAPSHOT_SENT = b"\x1a\x00"
PATIENCE = 60.0


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
        assert time.monotonic() < deadline, f"not in time: {what}\n{log.read_text()[-8000:]}"
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

    def is_called(self, seconds: float) -> bool:
        """Whether a ztunnel connects within this time."""
        return bool(select.select([self._listener], (), (), seconds)[0])

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

    def post(self, port: int, path: str) -> int:
        """The status that a POST without a body is answered with."""
        with self._room.where(self._place).network.socket(
            socket.AF_INET, socket.SOCK_STREAM
        ) as sock:
            sock.settimeout(5)
            sock.connect(("127.0.0.1", port))
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.sock = sock
            connection.request("POST", path)
            return connection.getresponse().status

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

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        self.terminate()
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
        except OSError as error:
            # Refused, or reset between two calls (then shutdown finds nothing connected).
            if isinstance(error, ConnectionError) or error.errno == errno.ENOTCONN:
                return False
            raise
    return received == size


def mesh_yaml(room: Lab, *pods: str, subject_to: str = "", more: str = "") -> str:
    """A file for LOCAL_XDS_PATH: these pods, and `more` of its lists. `subject_to` is a policy that
    all of them name."""
    workloads = "".join(
        f"""
- uid: {pod}
  name: {pod}
  namespace: default
  serviceAccount: default
  workloadIps: ["{room.ip(pod)}"]
  services: {{}}
  authorizationPolicies: [{subject_to}]
"""
        for pod in pods
    )
    return f"workloads:{workloads}{more}"


def listeners(network: NetworkNamespace) -> dict[int, int]:
    """TCP port of ours -> how many sockets listen on it, in one namespace."""
    found: dict[int, int] = {}
    with network.enter():
        for name in ("tcp", "tcp6"):
            lines = Path(f"/proc/thread-self/net/{name}").read_text().splitlines()[1:]
            for line in lines:
                fields = line.split()
                port = int(fields[1].rpartition(":")[2], 16)
                if fields[3] == "0A" and 15000 < port < 15100:
                    found[port] = found.get(port, 0) + 1
    return found
