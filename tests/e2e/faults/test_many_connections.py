"""Ten thousand connections one after the other, and a thousand at once."""

import errno
import selectors
import socket
import struct
import time
from pathlib import Path

import pytest

from tests.support.faults import FaultLab
from tests.support.mesh_lab import MeshLab
from tests.support.pod_sockets import Address, echo, start_connect
from tests.support.ztunnel_processes import ZtunnelProcesses, open_descriptors, resident_kib

pytestmark = [pytest.mark.root, pytest.mark.slow]

ABORT = struct.pack("ii", 1, 0)
CONTENT = b"a few bytes"
AHEAD = 100  # descriptors that a worker may have made ahead of need: sockets of pods, pipes


class Crowd:
    """Clients that connect, exchange a few bytes and close; every third one with a RST.

    Attributes:
        done: how many have had their answer.
        problems: of those that have not.
    """

    def __init__(self, mesh: MeshLab, pod: str, address: Address) -> None:
        self.done = 0
        self.problems: list[str] = []
        self._mesh = mesh
        self._pod = pod
        self._address = address

    def run(self, count: int, at_once: int, seconds: float) -> None:
        """Returns when so many have come and gone."""
        deadline = time.monotonic() + seconds
        started = 0
        goal = self.done + count
        with selectors.DefaultSelector() as selector:
            while self.done + len(self.problems) < goal:
                assert time.monotonic() < deadline, f"{self.done} of {goal} in {seconds:g}s"
                while started < count and len(selector.get_map()) < at_once:
                    sock = start_connect(self._mesh, self._pod, self._address)
                    self._mesh.sockets.pop()  # closed here, and not only with the mesh
                    selector.register(sock, selectors.EVENT_WRITE)
                    started += 1
                for key, events in selector.select(0.1):
                    assert isinstance(key.fileobj, socket.socket)
                    self._serve(selector, key.fileobj, events)

    def _serve(self, selector: selectors.BaseSelector, sock: socket.socket, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                sock.send(CONTENT)
                selector.modify(sock, selectors.EVENT_READ)
                return
            answer = sock.recv(100)
            if answer != CONTENT:
                self.problems.append(f"answer {answer!r}")
            else:
                self.done += 1
                if self.done % 3 == 0:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        except OSError as error:
            self.problems.append(errno.errorcode.get(error.errno or 0, str(error)))
        selector.unregister(sock)
        sock.close()


@pytest.mark.timeout(1200)  # seconds; a machine that has more to do takes its time
def test_after_ten_thousand_connections_descriptors_and_memory_are_back(lab: FaultLab) -> None:
    processes = [lab.near.control, *lab.near.workers, lab.far.control, *lab.far.workers]
    with echo(lab.mesh, "server", 7000):
        crowd = Crowd(lab.mesh, "client", lab.server)
        crowd.run(1500, 50, 150)  # until then, tables and pools of memory grow to their size
        lab.mesh.wait(lambda: _is_quiet(lab), "all have ended")
        descriptors = {pid: open_descriptors(pid) for pid in processes}
        memory = {pid: resident_kib(pid) for pid in processes}
        crowd.run(8500, 50, 850)
        assert not crowd.problems
        lab.mesh.wait(lambda: _is_quiet(lab), "all have ended")
        lab.mesh.wait(
            lambda: all(
                open_descriptors(pid) <= count + AHEAD for pid, count in descriptors.items()
            ),
            f"there are no more descriptors than before ({descriptors})",
        )
        grown = {pid: resident_kib(pid) - memory[pid] for pid in processes}
        assert max(grown.values()) < 4 * 1024, f"KiB more than before: {grown}"
        for ztunnel, reporter in ((lab.near, "source"), (lab.far, "destination")):
            for name in ("opened", "closed"):
                _comes_to(lab, ztunnel, f"istio_tcp_connections_{name}_total", reporter)
            lab.mesh.wait(
                lambda log=ztunnel.log: log.count("connection complete") == 10_000,  # type: ignore[misc]
                f"as many lines on {ztunnel.node}",
            )
            assert ztunnel.metric("ztunnel_log_lines_dropped_total") == 0


def _comes_to(lab: FaultLab, ztunnel: ZtunnelProcesses, name: str, reporter: str) -> None:
    lab.mesh.wait(
        lambda: ztunnel.metric(name, reporter=reporter) == 10_000, f"{name} of {reporter}"
    )


def _is_quiet(lab: FaultLab) -> bool:
    return all(ztunnel.metric("ztunnel_tunnel_streams") == 0 for ztunnel in (lab.near, lab.far))


def _tcp_counters(mesh: MeshLab, pod: str) -> dict[str, int]:
    """What the kernel has counted in a pod's namespace: TcpExt of netstat, Tcp of snmp."""

    def read() -> dict[str, int]:
        found: dict[str, int] = {}
        for file, prefix in (("netstat", "TcpExt:"), ("snmp", "Tcp:")):
            lines = Path(f"/proc/thread-self/net/{file}").read_text().splitlines()
            names, values = (line.split()[1:] for line in lines if line.startswith(prefix))
            found |= dict(zip(names, map(int, values), strict=True))
        return found

    return mesh.mesh.keeper.call(mesh.mesh.namespace_of(pod), read)


def test_of_a_thousand_connections_at_once_none_has_to_repeat_its_syn(lab: FaultLab) -> None:
    watched = ("ListenOverflows", "ListenDrops", "TCPSynRetrans", "TCPReqQFullDrop")
    with echo(lab.mesh, "server", 7000) as server:
        crowd = Crowd(lab.mesh, "client", lab.server)
        before = {pod: _tcp_counters(lab.mesh, pod) for pod in ("client", "server")}
        crowd.run(1000, 1000, 120)
        assert not crowd.problems
        assert server.accepted == 1000
        for pod, counted in before.items():
            now = _tcp_counters(lab.mesh, pod)
            assert {name: now[name] - counted[name] for name in watched if name in now} == (
                {name: 0 for name in watched if name in now}
            ), pod
            assert now["TCPSynRetrans"] == counted["TCPSynRetrans"]
