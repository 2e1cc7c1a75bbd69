"""Two captured pods of one node: who may do without a tunnel, and the destination's side of that.

The bytes never leave the node's kernel, so there is nothing to encrypt. All else is as with a
tunnel: the same admission, with the client's identity taken from whose namespace the connection
came out of, never from an address; both ends must have certificates that are valid and not revoked;
both access-log lines are written, both sides are counted, and the connection is judged again when
policies, workloads or revocations change.

Whatever does not fit goes through a tunnel, which refuses what must be refused.
"""

from ztunnel.linux.sockets import SocketAddress
from ztunnel.mesh.changes import Changes
from ztunnel.mesh.connection import ConnectionAttributes
from ztunnel.mesh.decision import Hbone, Via
from ztunnel.mesh.inbound import InboundTarget, validate
from ztunnel.mesh.service import Service
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import Workload
from ztunnel.proxy.admit import judge_again
from ztunnel.proxy.connection import Connection
from ztunnel.proxy.local_pod import LocalPod
from ztunnel.telemetry.labels import CERT_REVOKED, IDENTITY_ERROR, NO_FLAGS
from ztunnel.telemetry.record import ConnectionRecord
from ztunnel.tls.crl import RevocationList


class Neighbour:
    """A pod of this node that a client may be joined with.

    Attributes:
        workload: the pod, as the mesh describes it.
        client: the pod that connects.
        service: that it asked for.
        target: what is asked of it.
        attributes: what its policies look at.
        chains: the certificates of both sides.
    """

    __slots__ = ("attributes", "chains", "client", "pod", "service", "target", "workload")

    def __init__(
        self,
        pod: LocalPod,
        workload: Workload,
        client: Workload,
        service: Service | None,
        target: InboundTarget,
        attributes: ConnectionAttributes,
        chains: tuple[tuple[bytes, ...], ...],
    ) -> None:
        self.pod = pod
        self.workload = workload
        self.client = client
        self.service = service
        self.target = target
        self.attributes = attributes
        self.chains = chains


def find_neighbour(
    source: LocalPod, client_ip: str, client: Workload, decision: Hbone
) -> Neighbour | None:
    """The pod that a decision leads to, if both pods are here and in order, and may be joined.

    Args:
        source: the pod that connects, from `client_ip`; `client` as the mesh describes it.
    """
    context = source.context
    if decision.via is not Via.WORKLOAD or not context.may_join(client):
        return None
    found, (address, _) = decision.workload, decision.next_hop
    pod = source.neighbours.get((found.namespace, found.name))
    workload = pod.workload() if pod is not None else None
    if pod is None or workload is None or workload.uid != found.uid:
        return None
    if not context.may_join(workload):
        return None
    if address not in workload.addresses or client_ip not in client.addresses:
        return None
    if workload.identity not in decision.expected_identities:
        return None
    chains = []
    for identity in (client.identity, workload.identity):
        certificate = context.certificates.get(identity)
        if certificate is None:
            return None
        chains.append(certificate.chain)
    both = tuple(chains)
    revocations = context.pools.revocations
    if revocations is not None and _revoked(revocations, both):
        return None
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
        return None
    attributes = ConnectionAttributes(client_ip, client.identity, *target.destination)
    return Neighbour(pod, workload, client, service, target, attributes, both)


class ToNeighbour(Connection):
    """The side of the pod that is connected to. Subclasses say how it is connected to."""

    __slots__ = ("attributes", "chains", "client_workload", "pod", "workload")

    def __init__(self, neighbour: Neighbour, client: SocketAddress) -> None:
        pod = neighbour.pod
        super().__init__(pod.context, pod.uid, client)
        self.pod = pod
        self.workload = neighbour.workload
        self.client_workload = neighbour.client
        self.attributes = neighbour.attributes
        self.chains = neighbour.chains

    def open(self, target: InboundTarget, decision: str) -> ConnectionRecord:
        """Opens the record; `decision` in words."""
        context, workload, client = self.context, self.workload, self.client_workload
        service = target.service
        ends = context.labels.ends(
            True,
            context.peers.workload(client),
            context.peers.workload(workload),
            context.peers.service(service) if service is not None else None,
            client.identity.uri,
            workload.identity.uri,
        )
        return self.open_record(ends, target.destination, "", decision)

    def rejudge(self, state: MeshState, changes: Changes) -> None:
        """Ends the connection if what changed forbids it."""
        if self.ended:
            return
        for pod in (self.client_workload, self.workload):
            now = state.workload(pod.uid) if pod.uid in changes.workloads else None
            if now is not None and now.identity != pod.identity:
                self.context.revoked("identity")
                self.end(
                    IDENTITY_ERROR, f"connection closed: workload {pod} is {now.identity.uri} now"
                )
                return
            if now is not None and not self.context.may_join(now):
                self.context.revoked("join")
                self.end(
                    NO_FLAGS,
                    f"connection closed: workload {now} may not be joined with others any more",
                )
                return
        if not changes.rejudge(self.workload):
            return
        current = self.pod.workload()
        self.workload = current or self.workload
        judge_again(self.context, self, current, self.attributes)

    def refuse_revoked(self, revocations: RevocationList) -> None:
        """Ends the connection if a certificate of either side has been revoked."""
        reason = _revoked(revocations, self.chains)
        if reason:
            self.context.revoked("certificate")
            self.end(CERT_REVOKED, f"connection closed: certificate revoked by CRL ({reason})")


def _revoked(revocations: RevocationList, chains: tuple[tuple[bytes, ...], ...]) -> str:
    """Why a chain is not to be accepted, "" where all are."""
    return next((reason for chain in chains if (reason := revocations.revoked(chain))), "")
