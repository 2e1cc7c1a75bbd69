"""A pod of this node: who it is, and its tunnels to others. What listens for it is in `pod`."""

from contextlib import ExitStack
from typing import Final

import trio

from ztunnel.dns.lookup import Client
from ztunnel.hbone.baggage import Baggage, format_baggage, parse_baggage
from ztunnel.http2.headers import Header
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.socket_stock import SocketStock
from ztunnel.mesh.identity import Identity
from ztunnel.mesh.workload import Workload
from ztunnel.proxy.context import Context
from ztunnel.proxy.names import make_resolver, search_domains
from ztunnel.proxy.pool import Pool
from ztunnel.proxy.routes import Routes
from ztunnel.telemetry.record import ConnectionRecord

LOCAL_WORKLOAD_TIMEOUT: Final = 5.0  # seconds until the control plane must know a new pod


class PodInfo:
    """Who a pod is, as the node agent says."""

    __slots__ = ("name", "namespace", "service_account", "uid")

    def __init__(self, uid: str, name: str, namespace: str, service_account: str) -> None:
        self.uid = uid
        self.name = name
        self.namespace = namespace
        self.service_account = service_account

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class LocalPod:
    """What connections of one pod need of it.

    Args:
        neighbours: the pods of this node, itself among them while it is served.
        namespace: the pod's; None means the process's own.
        keep_source: applications see their clients' own addresses.

    Attributes:
        sockets_ahead: sockets of its namespace.
        identities: that it has had; the pod may outlive its workload.
        network_header: what gateways of other networks are told.
        scope: cancelled when it is closed.
        companions: what is closed with it, before its namespace is.
    """

    def __init__(
        self,
        context: Context,
        neighbours: "LocalPods",
        info: PodInfo,
        namespace: NetworkNamespace | None,
        keep_source: bool,
    ) -> None:
        self.keep_source = keep_source
        self.context = context
        self.neighbours = neighbours
        self.info = info
        self.uid = info.uid
        self.namespace = namespace
        self.sockets_ahead = SocketStock(namespace)
        self.routes = Routes(context.state)
        self.resolver = make_resolver(context)
        self.identities: set[Identity] = set()
        self.scope = trio.CancelScope()
        self.companions = ExitStack()
        network = context.config.node.network
        self.network_header: tuple[Header, ...] = (
            ((b"x-forwarded-network", network.encode()),) if network else ()
        )
        self._pools: dict[Identity, Pool] = {}
        self._baggage: tuple[Workload | None, str] = (None, "")
        self._workload: tuple[int, Workload | None] = (-1, None)
        self._known = trio.Event()
        self._search = search_domains(context)

    def __str__(self) -> str:
        return str(self.info)

    def is_same(self, info: PodInfo, namespace: NetworkNamespace | None) -> bool:
        """Whether that is this very pod, in this very namespace."""
        mine = self.info
        if (info.name, info.namespace, info.service_account) != (
            mine.name, mine.namespace, mine.service_account,
        ):  # fmt: skip
            return False
        if namespace is None or self.namespace is None:
            return namespace is self.namespace
        return namespace.identity == self.namespace.identity

    # ---- who it is

    def workload(self) -> Workload | None:
        """The pod as the control plane describes it now."""
        state = self.context.state
        generation, workload = self._workload
        if generation != state.generation:
            info = self.info
            workload = state.local_workload(
                info.name, info.namespace, info.service_account, self.context.config.node.node_name
            )
            self._workload = (state.generation, workload)
        return workload

    def dns_client(self) -> Client | None:
        """The pod as it asks for names; None while the control plane has not described it."""
        workload = self.workload()
        if workload is None:
            return None
        return Client(workload.namespace, workload.network, self._search)

    async def wait_for_workload(self) -> Workload | None:
        """The same, waiting a little for the control plane: a new pod may be quicker than it."""
        with trio.move_on_after(LOCAL_WORKLOAD_TIMEOUT):
            while self.workload() is None:
                await self._known.wait()
        return self.workload()

    def mesh_changed(self) -> None:
        """The mesh state has changed: whoever waits for the workload looks again."""
        self._known.set()
        self._known = trio.Event()
        workload = self.workload()
        if workload is not None:
            self.identities.add(workload.identity)
            self.context.certificates.want(workload.identity)

    def baggage(self, workload: Workload) -> str:
        """What the pod's tunnels say of it."""
        if self._baggage[0] is not workload:
            text = format_baggage(
                Baggage(
                    workload.cluster_id,
                    workload.namespace,
                    workload.workload_type.name.lower(),
                    workload.workload_name,
                    workload.canonical_name,
                    workload.canonical_revision,
                    workload.locality.region,
                    workload.locality.zone,
                )
            )
            self._baggage = (workload, text)
        return self._baggage[1]

    def _own_baggage(self) -> str:
        workload = self.workload()
        return self.baggage(workload) if workload is not None else ""

    def describe_far_end(
        self, record: ConnectionRecord, baggage: str, identity: Identity | None
    ) -> None:
        """Fills in who answered in another network, from its own words."""
        said = parse_baggage(baggage)
        ends = record.ends
        context = self.context
        peer = context.peers.described(
            said.namespace,
            said.workload_name,
            said.service,
            said.revision,
            identity.uri if identity is not None else "",
            said.cluster,
            said.region,
            said.zone,
        )
        record.replace_ends(
            context.labels.ends(
                ends.inbound,
                ends.source,
                peer,
                ends.service,
                ends.source_principal,
                ends.destination_principal,
                ends.mutual_tls,
            )
        )

    # ---- tunnels out

    def pool(self, identity: Identity) -> Pool:
        """The tunnels of the pod under that identity."""
        pool = self._pools.get(identity)
        if pool is None:
            context = self.context
            pool = Pool(
                context.pools, context.nursery, self.sockets_ahead, identity, self._own_baggage
            )
            pool.closed = self.scope.cancel_called
            self._pools[identity] = pool
        return pool


LocalPods = dict[tuple[str, str], LocalPod]
"""By namespace and name."""
