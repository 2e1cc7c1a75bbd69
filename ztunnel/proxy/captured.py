"""Connections that capture has sent to a listener of ours: whose they are, and where they went."""

import socket
from typing import ClassVar

from ztunnel.linux.sockets import SocketAddress, original_destination
from ztunnel.mesh.workload import Workload
from ztunnel.proxy.connection import UNKNOWN_WORKLOAD, Connection
from ztunnel.proxy.local_pod import LocalPod


class Captured(Connection):
    """One of them. Subclasses serve it.

    Args:
        sock: its client's end.
        destination: where the client connected to.
    """

    __slots__ = ("_pod", "_sock", "_workload", "destination")

    inbound: ClassVar[bool]

    def __init__(
        self,
        pod: LocalPod,
        sock: socket.socket,
        client: SocketAddress,
        destination: SocketAddress,
    ) -> None:
        super().__init__(pod.context, pod.uid, client)
        self.destination = destination
        self._pod = pod
        self._sock = sock
        self._workload: Workload | None = None

    def start(self) -> None:
        """Serves it at once where the pod is known, else in a task."""
        self._workload = self._pod.workload()
        if self._workload is None:
            self.context.spawn(self._wait_for_workload)
        else:
            self._begin()

    async def _wait_for_workload(self) -> None:
        self._workload = await self._pod.wait_for_workload()
        if self._workload is None:
            self._refuse_early(
                f"failed to fetch information about local workload {self._pod}: the control plane"
                " has not described it in time"
            )
            return
        self._begin()

    def _begin(self) -> None:
        """The workload is known."""
        raise NotImplementedError

    def _refuse_early(self, reason: str) -> None:
        """Before it is known whose connection it is."""
        self.ended = True
        self.context.refused(self.client, self.destination, self.inbound, UNKNOWN_WORKLOAD, reason)
        self.context.engine.close_later(self._sock)

    def _give_up(self, flags: str, reason: str) -> None:
        """It cannot be made, or may not be."""
        self.context.engine.close_later(self._sock)
        self.fail_record(flags, reason)

    def cancel(self, flags: str, reason: str) -> None:
        """See `Connection`."""
        self.stop_waiting()
        self._give_up(flags, reason)


def accept_captured(
    kind: type[Captured], pod: LocalPod, sock: socket.socket, client: SocketAddress
) -> None:
    """A listener of ours has taken one."""
    try:
        destination = original_destination(sock)
    except OSError:
        pod.context.engine.close_later(sock)  # the client has gone already
        return
    kind(pod, sock, client, destination).start()
