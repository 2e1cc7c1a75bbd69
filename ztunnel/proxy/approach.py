"""What connections in one tunnel to the same target have in common, worked out once.

Where they lead, what policies see of them and what telemetry says of their ends follows from the
state of the mesh, the peer, and what the request says; so it is kept until the state changes.
Whether a connection is allowed is not kept: that is judged for each one.
"""

from typing import Final

from ztunnel.hbone.baggage import parse_baggage
from ztunnel.hbone.events import ConnectRequested
from ztunnel.hbone.forwarded import forwarded_host
from ztunnel.mesh.connection import ConnectionAttributes
from ztunnel.mesh.decision import NeedsLookup
from ztunnel.mesh.identity import Identity
from ztunnel.mesh.inbound import InboundRefusal, InboundTarget, find_source, validate
from ztunnel.mesh.service import Service
from ztunnel.mesh.workload import Workload
from ztunnel.proxy.context import Context
from ztunnel.telemetry.labels import Ends, Peer

_MOST: Final = 256

_Key = tuple[str, str, str, str]


class Approach:
    """A target of the tunnel, as one kind of request asks for it."""

    __slots__ = ("attributes", "ends", "target")

    def __init__(self, target: InboundTarget, attributes: ConnectionAttributes, ends: Ends) -> None:
        self.target = target
        self.attributes = attributes
        self.ends = ends


class Approaches:
    """Those of one tunnel.

    Args:
        client_ip: the peer's address.
        local_ip: the pod's, at which the tunnel arrived.
        identity: from the peer's certificate.
    """

    __slots__ = ("_client_ip", "_context", "_generation", "_identity", "_known", "_local_ip")

    def __init__(
        self, context: Context, client_ip: str, local_ip: str, identity: Identity | None
    ) -> None:
        self._context = context
        self._client_ip = client_ip
        self._local_ip = local_ip
        self._identity = identity
        self._generation = -1
        self._known: dict[_Key, Approach] = {}

    def find(
        self, workload: Workload, request: ConnectRequested
    ) -> Approach | InboundRefusal | NeedsLookup:
        """What the request asks of `workload`, the pod's own; or why it cannot have it."""
        context, known = self._context, self._known
        state = context.state
        host = forwarded_host(request.forwarded) if request.forwarded else ""
        authority = request.authority.text
        key = (authority, host, request.network, request.baggage)
        if self._generation != state.generation:
            self._generation = state.generation
            known.clear()
        found = known.get(key)
        if found is not None:
            return found
        target = validate(
            state,
            workload,
            self._local_ip,
            authority,
            forwarded_host=host,
            localhost_app_tunnel=context.config.tunnel.localhost_app_tunnel,
            illegal_ports=context.illegal_ports,
        )
        if not isinstance(target, InboundTarget):
            return target
        attributes = ConnectionAttributes(self._client_ip, self._identity, *target.destination)
        found = Approach(target, attributes, self.ends(workload, request, target.service))
        if len(known) >= _MOST:
            known.clear()
        known[key] = found
        return found

    def ends(self, workload: Workload, request: ConnectRequested, service: Service | None) -> Ends:
        """What telemetry says of the two ends."""
        context, identity = self._context, self._identity
        return context.labels.ends(
            True,
            self._source(request),
            context.peers.workload(workload),
            context.peers.service(service) if service is not None else None,
            identity.uri if identity is not None else "",
            workload.identity.uri,
            True,
        )

    def _source(self, request: ConnectRequested) -> Peer:
        """The client's workload; beyond our network only its own words tell."""
        context, identity = self._context, self._identity
        found = find_source(
            context.state,
            context.config.node.network,
            self._client_ip,
            identity,
            request.network,
        )
        if found is not None:
            return context.peers.workload(found)
        said = parse_baggage(request.baggage)
        return context.peers.described(
            said.namespace or (identity.namespace if identity is not None else ""),
            said.workload_name,
            said.service,
            said.revision,
            identity.uri if identity is not None else "",
            said.cluster,
            said.region,
            said.zone,
        )
