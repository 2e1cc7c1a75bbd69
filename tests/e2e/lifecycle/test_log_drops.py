"""Nobody reads the log: traffic goes on, lines are dropped, counted, and their number is told."""

import os
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from daemonset.local.metrics_lines import parse_samples
from daemonset.local.processes import http_get
from tests.support.lab import Lab, lab

pytestmark = [pytest.mark.root, pytest.mark.slow]

ENVIRONMENT = {
    "PROXY_MODE": "dedicated",
    "PROXY_WORKLOAD_INFO": "default/client/default",
    "ZTUNNEL_WORKER_THREADS": "1",
    "ISTIO_META_DNS_CAPTURE": "false",
    "XDS_ADDRESS": "",
    "CA_ADDRESS": "",
    "ZTUNNEL_LOG_QUEUE": "100",
    "LOCAL_XDS": (
        "workloads: [{uid: client, name: client, namespace: default, serviceAccount: default,"
        " trustDomain: cluster.local, workloadIps: [10.244.1.2], services: {}}]\n"
        "services: []\npolicies: []\n"
    ),
}
PATIENCE = 60.0


@pytest.fixture
def room() -> Iterator[Lab]:
    with lab(nodes=1, pods={"client": 1}) as found:
        yield found


class Unread:
    """A ztunnel whose standard output is a pipe that is read only when a test wants it."""

    def __init__(self, room: Lab) -> None:
        self._room = room
        self.text = ""
        self._process: subprocess.Popen[bytes] = room.start(
            "client", sys.executable, "-m", "ztunnel", env={**os.environ, **ENVIRONMENT}
        )

    def get(self, port: int, path: str) -> tuple[int, str]:
        return http_get(self._room.pod("client"), "127.0.0.1", port, path, timeout=5.0)

    def ready(self) -> bool:
        assert self._process.poll() is None, self.read()
        try:
            return self.get(15021, "/healthz/ready")[0] == 200
        except OSError:
            return False

    def refused(self) -> bool:
        """One connection straight to the port of captured ones, which makes a line of the log."""
        with self._room.pod("client").network.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.settimeout(30)
            sock.connect(("10.244.1.2", 15001))
            try:
                return sock.recv(1) == b""
            except ConnectionResetError:
                return True

    def dropped(self) -> float:
        samples = parse_samples(self.get(15020, "/metrics")[1])
        return sum(s.value for s in samples if s.name == "ztunnel_log_lines_dropped_total")

    def read(self) -> str:
        """Everything written so far that was not read yet."""
        output = self._process.stdout
        assert output is not None
        while select.select([output], [], [], 0.2)[0]:
            more = os.read(output.fileno(), 1 << 20)
            if not more:
                break
            self.text += more.decode()
        return self.text


def _wait(condition: object, what: str) -> None:
    assert callable(condition)
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_traffic_goes_on_and_the_number_of_lost_lines_is_told(room: Lab) -> None:
    ztunnel = Unread(room)
    _wait(ztunnel.ready, "it is ready")
    count = 0

    def lines_are_dropped() -> bool:
        nonlocal count
        for _ in range(50):
            assert ztunnel.refused()
            count += 1
        return ztunnel.dropped() > 100

    _wait(lines_are_dropped, "the pipe is full, and so is the queue")
    assert ztunnel.refused(), "traffic goes on"
    ztunnel.read()
    assert ztunnel.refused()
    notice = r"\d+ log lines dropped because they were not taken in time"
    _wait(lambda: re.search(notice, ztunnel.read()) is not None, "the number of lost lines is told")
