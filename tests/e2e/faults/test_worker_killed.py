"""A worker is killed with SIGKILL while its accept queue is full: what was queued is served."""

import os
import signal
from pathlib import Path

import pytest

from tests.support.faults import FaultLab, fault_lab
from tests.support.mesh_lab import MeshLab
from tests.support.pod_sockets import (
    LISTEN,
    Address,
    connect,
    echo,
    exchange,
    has_ended,
    start_connect,
    tcp_sockets,
)
from ztunnel.mesh.workload import HBONE_PORT
from ztunnel.proxy.pod_ports import OUTBOUND_PORT

pytestmark = [pytest.mark.root, pytest.mark.slow]

CLIENTS = 100
BACKLOG = 20  # of each worker; more clients than both queues have room for


class Clients:
    """Connections that each send a few bytes and wait until they come back."""

    def __init__(self, mesh: MeshLab, pod: str, address: Address) -> None:
        self.connected = 0
        self._waiting = [start_connect(mesh, pod, address) for _ in range(CLIENTS)]
        self._content = {sock: bytes([n]) * 32 for n, sock in enumerate(self._waiting)}
        self._unsent = list(self._waiting)
        self._received = dict.fromkeys(self._waiting, b"")

    def queue_is_full(self) -> bool:
        """Some are connected, and the handshakes of others are not answered any more: Linux would
        repeat a SYN after a second, and in this test nothing takes as long as that."""
        return self.have_sent() and bool(self._unsent)

    def have_sent(self) -> bool:
        """Many are connected and have sent, and no more of them since the last look."""
        before = self.connected
        self._send()
        return self.connected >= BACKLOG and self.connected == before

    def served(self) -> bool:
        """Raises OSError as soon as one of them is lost."""
        self._send()
        for sock in [sock for sock in self._waiting if sock not in self._unsent]:
            try:
                more = sock.recv(32)
            except BlockingIOError:
                continue
            assert more, "a connection was closed without an answer"
            self._received[sock] += more
            if self._received[sock] == self._content[sock]:
                self._waiting.remove(sock)
        return not self._waiting

    def _send(self) -> None:
        for sock in list(self._unsent):
            try:
                sock.send(self._content[sock])
            except BlockingIOError:
                continue  # its handshake is still under way
            self._unsent.remove(sock)
            self.connected += 1

    def close(self) -> None:
        for sock in self._content:
            sock.close()


def queued(mesh: MeshLab, pod: str, port: int) -> int:
    """How many connections to a port of a pod are established, and accepted by nobody yet."""
    return sum(
        sock.waiting for sock in tcp_sockets(mesh, pod) if (sock.state, sock.port) == (LISTEN, port)
    )


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("client", "node"),
    [("client", "near"), ("outside/stranger", "far"), ("client", "far")],
    ids=["outbound", "inbound plaintext", "inbound tunnels"],
)
def test_nothing_that_was_queued_is_lost(
    tmp_path: Path, client: str, node: str, workers: int
) -> None:
    """All workers are killed at one moment."""
    tunnels = (client, node) == ("client", "far")
    with fault_lab(
        tmp_path,
        {"ZTUNNEL_WORKER_THREADS": str(workers), "ZTUNNEL_LISTEN_BACKLOG": str(BACKLOG)},
        pods={"outside/stranger": 1},
    ) as lab, echo(lab.mesh, "server", 7000):  # fmt: skip
        ztunnel = getattr(lab, node)
        mesh = lab.mesh
        stopped = ztunnel.workers
        assert len(stopped) == workers
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        clients = Clients(mesh, client, lab.server)
        try:
            if tunnels:  # one of them carries many: they never fill a queue
                mesh.wait(clients.have_sent, "there are clients that wait")
                mesh.wait(lambda: queued(mesh, "server", HBONE_PORT) > 0, "a tunnel is queued")
            else:
                mesh.wait(clients.queue_is_full, "an accept queue is full")
            for pid in stopped:
                os.kill(pid, signal.SIGKILL)
            mesh.wait(clients.served, "each connection has its answer")
        finally:
            clients.close()
        for slot in range(workers):
            ztunnel.log.says(rf"worker {slot} ended \(signal SIGKILL\).*starting it again")


def test_one_of_two_workers_is_killed_and_the_other_serves_meanwhile(tmp_path: Path) -> None:
    with (
        fault_lab(tmp_path, {"ZTUNNEL_WORKER_THREADS": "2"}) as lab,
        echo(lab.mesh, "server", 7000),
    ):
        victim, survivor = lab.near.workers
        os.kill(victim, signal.SIGSTOP)
        clients = Clients(lab.mesh, "client", lab.server)
        try:
            lab.near.kill(victim)
            lab.mesh.wait(clients.served, "each connection has its answer")
        finally:
            clients.close()
        assert survivor in lab.near.workers
        lab.mesh.wait(lambda: len(lab.near.workers) == 2, "there are two workers again")
        lab.mesh.wait(
            lambda: lab.near.metric("ztunnel_worker_restarts_total") == 1, "it is counted once"
        )


def test_what_it_said_last_is_not_lost_either(lab: FaultLab) -> None:
    """The control process has not read it when the worker dies, and a new one begins."""
    (worker,) = lab.near.workers
    with echo(lab.mesh, "server", 7000):
        os.kill(lab.near.control, signal.SIGSTOP)
        with connect(lab.mesh, "client", lab.server) as sock:
            exchange(sock, b"a connection that has its line")
        lab.far.log.says("connection complete")
        # It hands the line over in the round in which it closes its socket, just before that.
        lab.mesh.wait(lambda: has_ended(lab.mesh, "client", OUTBOUND_PORT), "its flow has ended")
        lab.near.kill(worker)
        lab.mesh.wait(lambda: lab.near.workers not in ([], [worker]), "there is another worker")
        os.kill(lab.near.control, signal.SIGCONT)
        lab.near.log.says('connection complete.*src.workload="client"')


def test_only_its_own_connections_are_lost_and_their_end_is_seen(lab: FaultLab) -> None:
    with echo(lab.mesh, "server", 7000):
        held = connect(lab.mesh, "client", lab.server)
        exchange(held, b"before")

        def opened() -> float:
            return lab.near.metric("istio_tcp_connections_opened_total", reporter="source")

        lab.mesh.wait(lambda: opened() == 1, "the connection is counted")
        (worker,) = lab.near.workers
        lab.near.kill(worker)
        with held, pytest.raises(OSError):
            exchange(held, b"after")
        with connect(lab.mesh, "client", lab.server) as again:
            assert exchange(again, b"again") == b"again"
        lab.near.log.says(r"worker 0 ended \(signal SIGKILL\)")
        lab.near.log.says(r"worker 0 took 1 connections with it \(signal SIGKILL\)")
        ends = r'src.workload="client".*dst.workload="server".*duration="\d+ms"'
        lab.near.log.says(rf"connection lost.*{ends} error=.*has ended \(signal SIGKILL\)")
        lab.far.log.says("connection complete.*(tunnel's connection broke|peer closed)")
        # What the dead one had counted is not forgotten.
        lab.mesh.wait(lambda: opened() == 2, "both connections are counted")
