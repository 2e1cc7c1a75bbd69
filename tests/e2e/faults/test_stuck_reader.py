"""An application that stops reading, while a hundred other connections go on in the same tunnel."""

import os
import select
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.support.faults import FaultLab, fault_lab
from tests.support.pod_sockets import connect, echo, exchange, listen, steady
from tests.support.ztunnel_processes import resident_kib

pytestmark = [pytest.mark.root, pytest.mark.slow]

STUCK = 8
OTHERS = 100
PIECE = bytes(65536)
MINUTE = 60.0
QUIET = 80  # looks without a byte, of about 40 a second


class Senders:
    """Connections whose other ends do not read: they take what the mesh takes."""

    def __init__(self, socks: list[socket.socket]) -> None:
        self.sent = [0] * len(socks)
        self.socks = socks
        for sock in socks:
            sock.setblocking(False)

    def push(self) -> int:
        """Sends what goes, and gives how many bytes went."""
        before = sum(self.sent)
        for index, sock in enumerate(self.socks):
            try:
                while True:
                    self.sent[index] += sock.send(PIECE)
            except BlockingIOError:
                continue
        return sum(self.sent) - before


def test_a_peer_whose_proxy_stops_holds_up_nobody_else(tmp_path: Path) -> None:
    """The tunnel itself is stuck, not one stream of it, and it is not yet taken for dead."""
    patient = {"ZTUNNEL_PING_TIMEOUT": "200s"}
    with (
        fault_lab(tmp_path, patient, pods={"neighbour": 1}) as lab,
        echo(lab.mesh, "server", 7000),
        echo(lab.mesh, "neighbour", 7000),
        steady(lab.mesh, "client", (lab.mesh.ip("neighbour"), 7000), 20) as others,
    ):
        mesh = lab.mesh
        clients = [connect(mesh, "client", lab.server) for _ in range(STUCK)]
        for sock in clients:
            exchange(sock, b"before")
        (near,), (far,) = lab.near.workers, lab.far.workers
        before = resident_kib(near)
        os.kill(far, signal.SIGSTOP)
        senders = Senders(clients)
        _fill(lab, senders)
        mark = others.mark()
        mesh.wait(lambda: others.all_went_on(mark, by=20), "all others go on")
        assert resident_kib(near) - before < STUCK * 8 * 1024
        os.kill(far, signal.SIGCONT)
        for sock, sent in zip(clients, senders.sent, strict=True):
            assert len(_drained(sock, sent)) == sent, "all that was taken comes back"


def _fill(lab: FaultLab, senders: Senders) -> None:
    """Returns when nothing more goes, for a while."""
    silent = 0

    def full() -> bool:
        nonlocal silent
        silent = 0 if senders.push() else silent + 1
        return silent > QUIET

    lab.mesh.wait(full, "everything between the ends is full")


def _drained(sock: socket.socket, count: int) -> bytearray:
    sock.setblocking(True)
    sock.settimeout(30)
    received = bytearray()
    while len(received) < count:
        more = sock.recv(1 << 20)
        assert more, f"it ended after {len(received)} of {count} bytes"
        received += more
    return received


def _bounded(before: dict[int, int]) -> None:
    grown = {pid: resident_kib(pid) - kib for pid, kib in before.items()}
    # A window of 256 KiB to 4 MiB each, and what goes with it; never what is sent.
    assert max(grown.values()) < 2 * STUCK * 8 * 1024, grown


def test_for_a_minute_others_go_on_memory_is_bounded_and_nothing_is_lost(lab: FaultLab) -> None:
    """Of half of the stuck connections the server does not read, of the others the client."""
    mesh = lab.mesh
    address = (lab.server[0], 7001)
    listener = listen(mesh, "server", 7001)
    with echo(mesh, "server", 7000):
        clients = [connect(mesh, "client", address) for _ in range(2 * STUCK)]
        listener.settimeout(30)
        accepted = [listener.accept()[0] for _ in clients]
        mesh.sockets += accepted
        servers = [_served(sock, accepted) for sock in clients]
        writers = [*clients[:STUCK], *servers[STUCK:]]
        readers = [*servers[:STUCK], *clients[STUCK:]]
        with steady(mesh, "client", lab.server, OTHERS, pause=0.2) as flows:
            # All of one tunnel: its peer allows far more streams than these.
            assert lab.near.metric("ztunnel_tunnels", direction="outbound") <= 2
            before = {pid: resident_kib(pid) for pid in (*lab.near.workers, *lab.far.workers)}
            senders = Senders(writers)
            _fill(lab, senders)
            until = time.monotonic() + MINUTE
            while time.monotonic() < until:
                mark = flows.mark()
                mesh.wait(lambda mark=mark: flows.all_went_on(mark, 10), "a hundred others go on")  # type: ignore[misc]
                assert senders.push() == 0, "nothing is kept beyond what was promised"
                _bounded(before)
            with connect(mesh, "client", lab.server) as new:
                assert exchange(new, b"new ones are made") == b"new ones are made"
            for sender, reader, sent in zip(writers, readers, senders.sent, strict=True):
                assert len(_drained(reader, sent)) == sent, "all that was taken arrives"
                sender.setblocking(True)
                sender.sendall(b"more")
                assert _drained(reader, 4) == b"more"
        for sock in (*clients, *servers):
            sock.close()
        for count in ("bytes_sent", "bytes_recv"):
            _is_written(lab, rf"connection complete.*:7001.*{count}=\d{{6,}} ", STUCK)
        assert lab.near.log.count("error=.*:7001|:7001.*error=") == 0


def _served(client: socket.socket, servers: list[socket.socket]) -> socket.socket:
    """The end in the server of a client's connection."""
    client.sendall(b"!")
    found, _, _ = select.select(servers, [], [], 30)
    (server,) = found
    assert isinstance(server, socket.socket)
    assert server.recv(1) == b"!"
    return server


def _is_written(lab: FaultLab, line: str, times: int) -> None:
    lab.mesh.wait(lambda: lab.near.log.count(line) == times, f"{times} lines with {line!r}")
