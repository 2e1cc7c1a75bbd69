"""Connections to a pod of this node that came without a tunnel."""

import socket

from ztunnel.linux.sockets import SocketAddress, original_destination
from ztunnel.mesh.changes import Changes
from ztunnel.mesh.connection import ConnectionAttributes
from ztunnel.mesh.inbound import find_source, guess_service, validate_plaintext
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import Workload
from ztunnel.proxy.admit import admit, judge_again
from ztunnel.proxy.connection import UNKNOWN_WORKLOAD, Connection, failure_of
from ztunnel.proxy.local_pod import LocalPod
from ztunnel.proxy.upstream import connect_to_application
from ztunnel.relay.flow import ClosedBy
from ztunnel.relay.pair import PairFlow
from ztunnel.telemetry.labels import DENY


class Plaintext(Connection):
    """One connection without identity, under the same policies as any other."""

    __slots__ = ("_attributes", "_pod", "_sock", "_workload", "destination")

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
        self._attributes = ConnectionAttributes(client[0], None, *destination)

    def start(self) -> None:
        """Validates, authorizes, connects."""
        self._workload = self._pod.workload()
        if self._workload is None:
            self.context.spawn(self._wait_for_workload)
        else:
            self._judge()

    async def _wait_for_workload(self) -> None:
        self._workload = await self._pod.wait_for_workload()
        if self._workload is None:
            self.ended = True
            self.context.refused(
                self.client,
                self.destination,
                True,
                UNKNOWN_WORKLOAD,
                f"failed to fetch information about local workload {self._pod}",
            )
            self.context.engine.close_later(self._sock)
            return
        self._judge()

    def _judge(self) -> None:
        context, workload = self.context, self._workload
        assert workload is not None
        source = find_source(context.state, context.config.node.network, self.client[0], None)
        service = guess_service(context.state, workload, self.destination[1])
        ends = context.labels.ends(
            True,
            context.peer(source),
            context.peers.workload(workload),
            context.peers.service(service) if service is not None else None,
        )
        record = self.open_record(ends, self.destination, "", "plaintext to the pod's own port")
        refusal = validate_plaintext(
            workload, self.destination, illegal_ports=context.illegal_ports
        )
        if refusal is not None:
            self._refuse(DENY, refusal.reason)
            return
        verdict = admit(context, record, workload, self._attributes)
        if not verdict.allowed:
            self._refuse(DENY, verdict.reason)
            return
        try:
            sock = connect_to_application(self._pod, self.destination, self.client[0])
        except OSError as error:
            self._refuse(*failure_of(error, self.destination))
            return
        self.wait_for(sock, self._connected)

    def _connected(self, sock: socket.socket | None, error: OSError | None) -> None:
        self.connecting = None
        if sock is None:
            assert error is not None
            self._refuse(*failure_of(error, self.destination))
            return
        flow = PairFlow(self.context.engine, self._sock, sock, self, ClosedBy.CLIENT)
        self.running(flow)

    def _refuse(self, flags: str, reason: str) -> None:
        self.context.engine.close_later(self._sock)
        self.fail_record(flags, reason)

    def rejudge(self, state: MeshState, changes: Changes) -> None:
        """Ends the connection if what changed forbids it."""
        if self._workload is None or not changes.rejudge(self._workload):
            return
        current = self._pod.workload()
        self._workload = current or self._workload
        judge_again(self.context, self, current, self._attributes)

    def cancel(self, flags: str, reason: str) -> None:
        """See `Connection`."""
        self.stop_waiting()
        self._refuse(flags, reason)


def accept_plaintext(pod: LocalPod, sock: socket.socket, client: SocketAddress) -> None:
    """A connection that capture sent to the plaintext listener."""
    try:
        destination = original_destination(sock)
    except OSError:
        pod.context.engine.close_later(sock)  # the client has gone already
        return
    Plaintext(pod, sock, client, destination).start()
