"""Sockets of a namespace, made ahead of need.

Entering a namespace and coming back costs four system calls, more than the
socket itself; a pod that gets many connections needs it only for every
sixteenth of them.
"""

import socket
from typing import Final

from ztunnel.linux.netns import NetworkNamespace

_BATCH: Final = 16


class SocketStock:
    """TCP sockets that belong to a namespace and are not connected yet.

    Args:
        namespace: None means the caller's own.
    """

    def __init__(self, namespace: NetworkNamespace | None) -> None:
        self._namespace = namespace
        self._stock: dict[int, list[socket.socket]] = {}

    def take(self, family: int) -> socket.socket:
        """A non-blocking socket of that address family. Raises OSError."""
        if self._namespace is None:
            return _new(family)
        stock = self._stock.setdefault(family, [])
        if not stock:
            with self._namespace.enter():
                try:
                    stock.extend(_new(family) for _ in range(_BATCH))
                except OSError:
                    if not stock:
                        raise
        return stock.pop()

    def close(self) -> None:
        """Closes what is left."""
        for stock in self._stock.values():
            for sock in stock:
                sock.close()
        self._stock.clear()


def _new(family: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock
