"""A port of one network namespace that leads to a port of this process's own loopback."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ztunnel.linux.netns import NetworkNamespace

_CHUNK = 65536


@contextmanager
def forwarded(namespace: NetworkNamespace, address: tuple[str, int], port: int) -> Iterator[None]:
    """Carry bytes, whatever they are, from ``address`` in ``namespace`` to 127.0.0.1:``port``.

    For a server that must live outside of a lab because something that it needs lives there.
    """
    forwarder = _Forwarder(namespace, address, port)
    try:
        yield
    finally:
        forwarder.close()


class _Forwarder:
    def __init__(self, namespace: NetworkNamespace, address: tuple[str, int], port: int) -> None:
        self._port = port
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._listener = namespace.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(address)
        self._listener.listen()
        self._start(self._accept)

    def close(self) -> None:
        """Cut everything, and wait for the threads."""
        with self._lock:
            self._closed = True
            sockets = [self._listener, *self._open]
        for sock in sockets:
            with contextlib.suppress(OSError):  # whose peer has gone
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for sock in sockets:
            sock.close()

    def _start(self, target: object, *arguments: socket.socket) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            try:
                server = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                client.close()  # nobody is there: as the client would see it there
                continue
            with self._lock:
                self._open |= {client, server}
                closed = self._closed
            if closed:
                client.close()
                server.close()
                return
            self._start(_carry, client, server)
            self._start(_carry, server, client)


def _carry(source: socket.socket, target: socket.socket) -> None:
    """One direction, up to its end; then the other side is told."""
    with contextlib.suppress(OSError):  # a reset ends both directions
        while data := source.recv(_CHUNK):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
