"""Sockets of a namespace, made ahead of need.

Entering a namespace and coming back costs four system calls, more than the
socket itself. A pod that gets many connections needs it only for one in many
of them: the stock starts small, and is doubled each time it is used up.
"""

import socket
from typing import Final

from ztunnel.linux.netns import NetworkNamespace

_FEWEST: Final = 8
_MOST: Final = 64  # about 150 KiB of kernel memory while they wait


class SocketStock:
    """TCP sockets that belong to a namespace and are not connected yet.

    Args:
        namespace: None means the caller's own.
    """

    def __init__(self, namespace: NetworkNamespace | None) -> None:
        self._namespace = namespace
        self._stock: dict[int, list[socket.socket]] = {}
        self._batch = _FEWEST

    def take(self, family: int) -> socket.socket:
        """A non-blocking socket of that address family. Raises OSError."""
        if self._namespace is None:
            return _new(family)
        stock = self._stock.setdefault(family, [])
        if not stock:
            with self._namespace.enter():
                try:
                    stock.extend(_new(family) for _ in range(self._batch))
                    self._batch = min(2 * self._batch, _MOST)
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
    return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
