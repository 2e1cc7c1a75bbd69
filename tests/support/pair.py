"""A client and a server pod on two nodes, as a test talks to them."""

import trio

from tests.support.lab import Lab
from tests.support.proxies import NAMESPACE, Proxies
from tests.support.sockets import connect, listen
from ztunnel.mesh.workload import Workload

ECHO = 7000

VIP = "10.96.0.50"
HOST = f"echo.{NAMESPACE}.svc.cluster.local"
KEY = f"{NAMESPACE}/{HOST}"
"""Of the service "echo", for tests that make it."""


class Pair:
    """The room, its proxies, and both pods. What it opened is closed after the test."""

    def __init__(self, room: Lab, mesh: Proxies, client: Workload, server: Workload) -> None:
        self.room = room
        self.mesh = mesh
        self.client = client
        self.server = server
        self._open: list[trio.SocketStream | trio.SocketListener] = []

    async def dial(
        self, port: int = ECHO, host: str = "", pod: str = "client"
    ) -> trio.SocketStream:
        """Connects from a pod, to the server unless told otherwise."""
        network = self.room.pod(pod).network
        stream = await connect(network, host or self.room.ip("server"), port)
        self._open.append(stream)
        return stream

    def listen(self, port: int, pod: str = "server") -> trio.SocketListener:
        """Listens in a pod."""
        listener = listen(self.room.pod(pod).network, port)
        self._open.append(listener)
        return listener

    async def accept(self, listener: trio.SocketListener) -> trio.SocketStream:
        """The next connection, waited for."""
        with trio.fail_after(30):
            stream = await listener.accept()
        self._open.append(stream)
        return stream

    def close(self) -> None:
        for one in self._open:
            one.socket.close()
