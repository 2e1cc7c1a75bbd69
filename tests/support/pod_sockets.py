"""Applications of a test inside pods, in this very process: sockets in pods' network namespaces.

Threads serve them, so that a test in plain synchronous code can look at other things meanwhile.
"""

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.mesh_lab import MeshLab

Address = tuple[str, int]
LISTEN, TIME_WAIT = "0A", "06"  # as /proc/net/tcp has them
BACKLOG = 4096


def connect(mesh: MeshLab, pod: str, address: Address, seconds: float = 30.0) -> socket.socket:
    """A blocking connection from inside a pod. Raises OSError as an application would see it.

    Args:
        seconds: for each call; plenty, so that nobody is given up who is only slow.
    """
    sock = _socket(mesh, pod, address[0])
    sock.settimeout(seconds)
    sock.connect(address)
    return sock


def start_connect(mesh: MeshLab, pod: str, address: Address) -> socket.socket:
    """A non-blocking connection under way from inside a pod."""
    sock = _socket(mesh, pod, address[0])
    sock.setblocking(False)
    sock.connect_ex(address)
    return sock


def listen(mesh: MeshLab, pod: str, port: int, backlog: int = BACKLOG) -> socket.socket:
    """A listener inside a pod."""
    sock = _socket(mesh, pod, "0.0.0.0")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("0.0.0.0", port))
    sock.listen(backlog)
    return sock


def _socket(mesh: MeshLab, pod: str, host: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = mesh.mesh.namespace_of(pod).network.socket(family, socket.SOCK_STREAM)
    mesh.sockets.append(sock)
    return sock


def exchange(sock: socket.socket, data: bytes) -> bytes:
    """Sends `data` to an echo and reads as much back. Raises OSError, also for an early end."""
    sock.sendall(data)
    answer = bytearray()
    while len(answer) < len(data):
        more = sock.recv(len(data) - len(answer))
        if not more:
            raise ConnectionError(f"ended after {len(answer)} of {len(data)} bytes")
        answer += more
    return bytes(answer)


def is_served(mesh: MeshLab, pod: str, address: Address, seconds: float = 10.0) -> bool:
    """Whether a new connection from a pod reaches an echo and is answered."""
    try:
        with connect(mesh, pod, address, seconds) as sock:
            return exchange(sock, b"?") == b"?"
    except OSError:
        return False


class TcpSocket(NamedTuple):
    """A socket of a pod as the kernel lists it.

    Attributes:
        waiting: bytes that nobody has read, of a listener connections that nobody has accepted.
    """

    port: int
    peer_port: int
    state: str
    waiting: int


def tcp_sockets(mesh: MeshLab, pod: str) -> list[TcpSocket]:
    """All of a pod, its proxy's among them."""

    def read() -> list[TcpSocket]:
        found = []
        for name in ("tcp", "tcp6"):
            for line in Path(f"/proc/thread-self/net/{name}").read_text().splitlines()[1:]:
                _, local, remote, state, queues, *_ = line.split()
                port, peer_port = (int(end.rpartition(":")[2], 16) for end in (local, remote))
                waiting = int(queues.partition(":")[2], 16)
                found.append(TcpSocket(port, peer_port, state, waiting))
        return found

    return mesh.mesh.keeper.call(mesh.mesh.namespace_of(pod), read)


def has_ended(mesh: MeshLab, pod: str, port: int) -> bool:
    """Whether no connection from or to a port, which could still send something, is left in a
    pod."""
    return all(
        sock.state in (LISTEN, TIME_WAIT)
        for sock in tcp_sockets(mesh, pod)
        if port in (sock.port, sock.peer_port)
    )


class _Thread:
    """Serves a selector until stopped."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.problems: list[str] = []
        self._ending = False
        self._thread = threading.Thread(target=self._run, name=type(self).__name__)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ending = True
        self._thread.join()
        for key in list(self.selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self.selector.close()

    def ready(self, key: selectors.SelectorKey, events: int) -> None:
        raise NotImplementedError

    def idle(self) -> None:
        """Called between two waits."""

    def forget(self, sock: socket.socket) -> None:
        self.selector.unregister(sock)
        sock.close()

    def _run(self) -> None:
        while not self._ending:
            for key, events in self.selector.select(0.02):
                self.ready(key, events)
            self.idle()


class Echo(_Thread):
    """Sends everything back, to any number of clients; each is answered before it is read on.

    Attributes:
        accepted: connections so far.
        open: connections now.
    """

    def __init__(self, listener: socket.socket) -> None:
        super().__init__()
        self.accepted = 0
        self.open = 0
        listener.setblocking(False)
        self.selector.register(listener, selectors.EVENT_READ, None)

    def ready(self, key: selectors.SelectorKey, events: int) -> None:
        sock = key.fileobj
        assert isinstance(sock, socket.socket)
        if key.data is None:
            self._accept(sock)
            return
        pending: bytearray = key.data
        try:
            if not pending:
                received = sock.recv(65536)
                if not received:
                    self._gone(sock)
                    return
                pending += received
            del pending[: sock.send(pending)]
        except BlockingIOError:
            pass
        except OSError:  # the client gave up: its own test says whether that is right
            self._gone(sock)
            return
        wanted = selectors.EVENT_WRITE if pending else selectors.EVENT_READ
        if wanted != key.events:
            self.selector.modify(sock, wanted, pending)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(64):
            try:
                sock, _address = listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            self.accepted += 1
            self.open += 1
            self.selector.register(sock, selectors.EVENT_READ, bytearray())

    def _gone(self, sock: socket.socket) -> None:
        self.open -= 1
        self.forget(sock)


@contextlib.contextmanager
def echo(mesh: MeshLab, pod: str, port: int) -> Iterator[Echo]:
    """An echo in a pod, for as long as the block lasts."""
    server = Echo(listen(mesh, pod, port))
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Steady(_Thread):
    """Connections that go on exchanging a few bytes with an echo, all the time.

    Attributes:
        rounds: of each connection, how many exchanges it has made.
        problems: what went wrong; empty when nothing was lost.
        slowest: seconds that an exchange took at most.
    """

    PIECE = 64

    def __init__(self, connections: Sequence[socket.socket], pause: float = 0.02) -> None:
        super().__init__()
        self.rounds = [0] * len(connections)
        self.slowest = 0.0
        self._pause = pause
        self._sent = [0.0] * len(connections)
        self._received = [0] * len(connections)
        self._due = [0.0] * len(connections)
        self._socks = list(connections)
        self._alive = [True] * len(connections)
        for index, sock in enumerate(connections):
            sock.setblocking(False)
            self.selector.register(sock, selectors.EVENT_READ, index)

    def _content(self, index: int) -> bytes:
        return f"{index}:{self.rounds[index]}:".encode().ljust(self.PIECE, b".")

    def idle(self) -> None:
        now = time.monotonic()
        for index, sock in enumerate(self._socks):
            if self._alive[index] and not self._sent[index] and self._due[index] <= now:
                self._sent[index] = now
                try:
                    sock.send(self._content(index))
                except OSError as error:
                    self._lost(index, str(error))

    def ready(self, key: selectors.SelectorKey, events: int) -> None:
        index: int = key.data
        sock = self._socks[index]
        try:
            received = sock.recv(self.PIECE)
        except OSError as error:
            self._lost(index, str(error))
            return
        if not received:
            self._lost(index, "it was closed")
            return
        start = self._received[index]
        if received != self._content(index)[start : start + len(received)]:
            self._lost(index, "other bytes came than were sent")
            return
        self._received[index] += len(received)
        if self._received[index] == self.PIECE:
            now = time.monotonic()
            self.slowest = max(self.slowest, now - self._sent[index])
            self._received[index] = 0
            self._sent[index] = 0.0
            self._due[index] = now + self._pause
            self.rounds[index] += 1

    def _lost(self, index: int, why: str) -> None:
        self._alive[index] = False
        self.problems.append(f"connection {index} after {self.rounds[index]} exchanges: {why}")
        self.forget(self._socks[index])

    def all_went_on(self, since: Sequence[int], by: int = 3) -> bool:
        """Whether each connection has made `by` more exchanges."""
        return all(now >= then + by for now, then in zip(self.rounds, since, strict=True))

    def mark(self) -> list[int]:
        """For `all_went_on`."""
        return list(self.rounds)


@contextlib.contextmanager
def steady(
    mesh: MeshLab, pod: str, address: Address, count: int, pause: float = 0.02
) -> Iterator[Steady]:
    """So many busy connections from a pod to an echo; at the end none may have been lost."""
    flows = Steady([connect(mesh, pod, address) for _ in range(count)], pause)
    flows.start()
    try:
        yield flows
    finally:
        flows.stop()
    assert not flows.problems, flows.problems
