"""Two captured pods of one node, joined without a tunnel.

The bytes never leave the node's kernel, so there is nothing to encrypt. All
else is as with a tunnel: the same admission, with the client's identity taken
from whose listener accepted the connection, never from an address; both ends
must have certificates that are valid and not revoked; both access-log lines are
written, both sides are counted, and the connection is judged again when
policies, workloads or revocations change.

Whatever does not fit goes through a tunnel, which refuses what must be refused.
"""

import socket
from typing import TYPE_CHECKING, Protocol

from ztunnel.linux.sockets import SocketAddress
from ztunnel.mesh.authorize import authorize
from ztunnel.mesh.changes import Changes
from ztunnel.mesh.connection import ConnectionAttributes
from ztunnel.mesh.decision import Hbone, Via
from ztunnel.mesh.inbound import UNAUTHORIZED, UNAVAILABLE, InboundTarget, validate
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import Workload
from ztunnel.proxy.admit import admit
from ztunnel.proxy.connection import Connection, failure_of
from ztunnel.proxy.context import Context
from ztunnel.proxy.inbound import POLICY_CHANGED
from ztunnel.proxy.upstream import connect_to_application
from ztunnel.relay.connect import Connecting
from ztunnel.relay.flow import Outcome
from ztunnel.telemetry.labels import CERT_REVOKED, DENY, IDENTITY_ERROR
from ztunnel.tls.crl import RevocationList

if TYPE_CHECKING:
    from ztunnel.proxy.pod import PodProxy


class Source(Protocol):
    """The side of the pod that connects."""

    client: SocketAddress

    def joined(self, sock: socket.socket, other: "Joined") -> None:
        """The application is connected to."""

    def not_joined(self, status: int, reason: str) -> None:
        """It was refused, or cannot be reached; `status` is what a tunnel would have answered."""

    def flow_ended(self, outcome: Outcome) -> None:
        """The relay is done with it."""


class Joined(Connection):
    """The side of the pod that is connected to.

    Args:
        chains: the certificates of both sides.
    """

    __slots__ = (
        "_attributes", "_chains", "_client", "_connecting", "_pod", "_source", "_workload",
    )  # fmt: skip

    def __init__(
        self,
        pod: "PodProxy",
        source: Source,
        workload: Workload,
        client: Workload,
        attributes: ConnectionAttributes,
        chains: tuple[tuple[bytes, ...], ...],
    ) -> None:
        super().__init__(pod.context, pod.uid, source.client)
        self._pod = pod
        self._source = source
        self._workload = workload
        self._client = client
        self._attributes = attributes
        self._chains = chains
        self._connecting: Connecting | None = None

    def start(self, target: InboundTarget) -> None:
        """Opens the record, and connects where that is allowed."""
        context, workload, client = self.context, self._workload, self._client
        service = target.service
        ends = context.labels.ends(
            True,
            context.peers.workload(client),
            context.peers.workload(workload),
            context.peers.service(service) if service is not None else None,
            client.identity.uri,
            workload.identity.uri,
        )
        record = self.open_record(
            ends, target.destination, "", f"joined with workload {client} of this node"
        )
        verdict = admit(context, record, workload, self._attributes)
        if not verdict.allowed:
            self._refuse(UNAUTHORIZED, DENY, verdict.reason)
            return
        source = None if target.from_loopback else self.client[0]
        try:
            sock = connect_to_application(self._pod, target.connect, source)
        except OSError as error:
            self._refuse(UNAVAILABLE, *failure_of(error, target.connect))
            return
        self._connecting = Connecting(
            context.engine,
            sock,
            self._connected,
            context.deadline(context.config.sockets.connect_timeout),
        )

    def _connected(self, sock: socket.socket | None, error: OSError | None) -> None:
        self._connecting = None
        if sock is None:
            assert error is not None
            self._refuse(UNAVAILABLE, *failure_of(error, self.record.destination_address))
            return
        self._source.joined(sock, self)

    def _refuse(self, status: int, flags: str, reason: str) -> None:
        self.fail_record(flags, reason)
        # A refused client learns that it was refused; which policy says so is for our own log.
        self._source.not_joined(status, "" if status == UNAUTHORIZED else reason)

    def rejudge(self, state: MeshState, changes: Changes) -> None:
        """Ends the connection if what changed forbids it."""
        if self.ended:
            return
        for pod in (self._client, self._workload):
            now = state.workload(pod.uid) if pod.uid in changes.workloads else None
            if now is not None and now.identity != pod.identity:
                self.context.revoked("identity")
                self.end(
                    IDENTITY_ERROR, f"connection closed: workload {pod} is {now.identity.uri} now"
                )
                return
        if not changes.rejudge(self._workload):
            return
        current = self._pod.workload()
        reason = "the workload is gone from the mesh"
        if current is not None:
            self._workload = current
            verdict = authorize(state, current, self._attributes)
            self.record.verdict = verdict.reason
            self.record.policy = verdict.policy
            if verdict.allowed:
                return
            reason = verdict.reason
            self.context.judged(verdict)
        self.context.revoked("policy" if current is not None else "workload")
        self.end(DENY, f"{POLICY_CHANGED}: {reason}")

    def refuse_revoked(self, revocations: RevocationList) -> None:
        """Ends the connection if a certificate of either side has been revoked."""
        reason = _revoked(revocations, self._chains)
        if reason:
            self.context.revoked("certificate")
            self.end(CERT_REVOKED, f"connection closed: certificate revoked by CRL ({reason})")

    def cancel(self, flags: str, reason: str) -> None:
        """See `Connection`."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        self._refuse(UNAUTHORIZED if flags == DENY else UNAVAILABLE, flags, reason)


class BothSides:
    """The owner of a joined flow."""

    __slots__ = ("_joined", "_source")

    def __init__(self, source: Source, joined: Joined) -> None:
        self._source = source
        self._joined = joined

    def flow_ended(self, outcome: Outcome) -> None:
        """Both sides write down what became of it."""
        self._source.flow_ended(outcome)
        self._joined.flow_ended(outcome)


def join(context: Context, source: Source, client: Workload, decision: Hbone) -> bool:
    """Begins to join, if that is switched on and both pods are here and in order.

    Returns:
        Whether `source.joined` or `source.not_joined` will be called (or was); else the
        connection must take a tunnel.
    """
    if not context.config.kernel.join_pods or decision.via is not Via.WORKLOAD:
        return False
    found, (address, _), client_ip = decision.workload, decision.next_hop, source.client[0]
    pod = context.local_pods.get((found.namespace, found.name))
    workload = pod.workload() if pod is not None else None
    if pod is None or workload is None or workload.uid != found.uid:
        return False
    if address not in workload.addresses or client_ip not in client.addresses:
        return False
    if workload.identity not in decision.expected_identities:
        return False
    chains = []
    for identity in (client.identity, workload.identity):
        certificate = context.certificates.get(identity)
        if certificate is None:
            return False
        chains.append(certificate.chain)
    both = tuple(chains)
    revocations = context.pools.revocations
    if revocations is not None and _revoked(revocations, both):
        return False
    service = decision.service
    target = validate(
        context.state,
        workload,
        address,
        decision.authority,
        forwarded_host=service.hostname if service is not None else "",
        localhost_app_tunnel=context.config.tunnel.localhost_app_tunnel,
        illegal_ports=context.illegal_ports,
    )
    if not isinstance(target, InboundTarget) or target.proxy_protocol:
        return False
    attributes = ConnectionAttributes(client_ip, client.identity, *target.destination)
    Joined(pod, source, workload, client, attributes, both).start(target)
    return True


def _revoked(revocations: RevocationList, chains: tuple[tuple[bytes, ...], ...]) -> str:
    """Why a chain is not to be accepted, "" where all are."""
    return next((reason for chain in chains if (reason := revocations.revoked(chain))), "")
