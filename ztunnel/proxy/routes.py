"""What connections of one pod to the same place have in common, worked out once.

Everything here follows from the state of the mesh alone, so it is forgotten with each change of
that state.
"""

from typing import Final

from ztunnel.linux.sockets import SocketAddress
from ztunnel.mesh.decision import Hbone, Via
from ztunnel.mesh.identity import Identity
from ztunnel.mesh.state import MeshState
from ztunnel.proxy.peer_key import PeerKey
from ztunnel.telemetry.labels import Ends

_MOST: Final = 4096

_RouteKey = tuple[str, str, str, str]


class Route:
    """A tunnel that connections may take.

    Attributes:
        decision: which says where it leads, and why.
        key: of the tunnel in the pool.
        identity, ends: who answered last, and what telemetry says of the two ends then.
    """

    __slots__ = ("decision", "ends", "identity", "key")

    def __init__(self, decision: Hbone) -> None:
        self.decision = decision
        self.key = PeerKey(decision.next_hop, decision.expected_identities)
        if decision.via is Via.GATEWAY:
            self.key = self.key.through(decision.authority, decision.inner_identities)
        self.identity: Identity | None = None
        self.ends: Ends | None = None


class Routes:
    """The routes of a pod, as long as the mesh stays as it is."""

    __slots__ = ("_certain", "_generation", "_routes", "_state")

    def __init__(self, state: MeshState) -> None:
        self._state = state
        self._generation = -1
        self._routes: dict[_RouteKey, Route] = {}
        self._certain: dict[SocketAddress, Route] = {}

    def certain(self, destination: SocketAddress) -> Route | None:
        """The route that every connection to `destination` takes: no chance is involved."""
        if self._generation != self._state.generation:
            return None
        return self._certain.get(destination)

    def of(self, destination: SocketAddress, decision: Hbone) -> Route:
        """The route that follows from a decision about `destination`."""
        if self._generation != self._state.generation or len(self._routes) >= _MOST:
            self._generation = self._state.generation
            self._routes.clear()
            self._certain.clear()
        service, workload = decision.service, decision.workload
        key = (
            service.key if service is not None else "",
            workload.uid,
            decision.authority,
            decision.reason,
        )
        route = self._routes.get(key)
        if route is None or route.decision.next_hop != decision.next_hop:
            route = self._routes[key] = Route(decision)
        # Only a workload that is called by its own address is always the one that is chosen.
        if service is None and decision.via is Via.WORKLOAD:
            if len(self._certain) >= _MOST:
                self._certain.clear()
            self._certain[destination] = route
        return route
