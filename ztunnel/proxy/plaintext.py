"""Connections to a pod of this node that came without a tunnel."""

import socket

from ztunnel.linux.sockets import SocketAddress
from ztunnel.mesh.changes import Changes
from ztunnel.mesh.connection import ConnectionAttributes
from ztunnel.mesh.inbound import find_source, guess_service, validate_plaintext
from ztunnel.mesh.state import MeshState
from ztunnel.proxy.admit import admit, judge_again
from ztunnel.proxy.captured import Captured
from ztunnel.proxy.connection import failure_of
from ztunnel.proxy.local_pod import LocalPod
from ztunnel.proxy.upstream import connect_to_application
from ztunnel.relay.flow import ClosedBy
from ztunnel.relay.pair import PairFlow
from ztunnel.telemetry.labels import DENY


class Plaintext(Captured):
    """One connection without identity, under the same policies as any other."""

    __slots__ = ("_attributes",)

    inbound = True

    def __init__(
        self,
        pod: LocalPod,
        sock: socket.socket,
        client: SocketAddress,
        destination: SocketAddress,
    ) -> None:
        super().__init__(pod, sock, client, destination)
        self._attributes = ConnectionAttributes(client[0], None, *destination)

    def _begin(self) -> None:
        """Validates, authorizes, connects."""
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
            self._give_up(DENY, refusal.reason)
            return
        verdict = admit(context, record, workload, self._attributes)
        if not verdict.allowed:
            self._give_up(DENY, verdict.reason)
            return
        try:
            sock = connect_to_application(self._pod, self.destination, self.client[0])
        except OSError as error:
            self._give_up(*failure_of(error, self.destination))
            return
        self.wait_for(sock, self._connected)

    def _connected(self, sock: socket.socket | None, error: OSError | None) -> None:
        self.connecting = None
        if sock is None:
            assert error is not None
            self._give_up(*failure_of(error, self.destination))
            return
        flow = PairFlow(self.context.engine, self._sock, sock, self, ClosedBy.CLIENT)
        self.running(flow)

    def rejudge(self, state: MeshState, changes: Changes) -> None:
        """Ends the connection if what changed forbids it."""
        if self._workload is None or not changes.rejudge(self._workload):
            return
        current = self._pod.workload()
        self._workload = current or self._workload
        judge_again(self.context, self, current, self._attributes)
