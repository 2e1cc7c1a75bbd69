"""Sockets made ahead: in their namespace, non-blocking, and rarely with a visit there."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ztunnel.linux import netns
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.socket_stock import SocketStock


@pytest.mark.root
def test_a_busy_pod_is_seldom_visited(monkeypatch: pytest.MonkeyPatch) -> None:
    visits = 0
    enter = NetworkNamespace.enter

    @contextmanager
    def counted(self: NetworkNamespace) -> Iterator[None]:
        nonlocal visits
        visits += 1
        with enter(self):
            yield

    monkeypatch.setattr(NetworkNamespace, "enter", counted)
    taken: list[socket.socket] = []
    with netns.create() as namespace:
        stock = SocketStock(namespace)
        try:
            for _ in range(200):
                sock = stock.take(socket.AF_INET)
                taken.append(sock)
                assert not os.get_blocking(sock.fileno())
                assert sock.gettimeout() == 0
            assert len({sock.fileno() for sock in taken}) == 200
            assert visits < 10
            with pytest.raises(OSError, match="unreachable"):
                taken[0].connect(("192.0.2.1", 80))  # nothing is up in there
        finally:
            stock.close()
            for sock in taken:
                sock.close()


def test_without_a_namespace_nothing_is_kept() -> None:
    stock = SocketStock(None)
    with stock.take(socket.AF_INET6) as sock:
        assert not os.get_blocking(sock.fileno())
        assert sock.family == socket.AF_INET6
    stock.close()
