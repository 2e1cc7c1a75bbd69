"""A workload: something with an identity that sends or receives connections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from ztunnel.mesh.identity import Identity

DEFAULT_TRUST_DOMAIN = "cluster.local"
DEFAULT_SERVICE_ACCOUNT = "default"
DEFAULT_CLUSTER = "Kubernetes"
HBONE_PORT = 15008


class TunnelProtocol(Enum):
    """How a workload expects to be reached inside the mesh."""

    NONE = "NONE"
    HBONE = "HBONE"


class NetworkMode(Enum):
    """HOST_NETWORK workloads share their node's address, which therefore says nothing."""

    STANDARD = "STANDARD"
    HOST_NETWORK = "HOST_NETWORK"


class WorkloadType(Enum):
    """What made the workload, for telemetry."""

    DEPLOYMENT = "deployment"
    CRONJOB = "cronjob"
    POD = "pod"
    JOB = "job"


class WorkloadStatus(Enum):
    """Readiness, as far as load balancing asks for it."""

    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"


class ApplicationTunnelProtocol(Enum):
    """PROXY: the application expects a PROXY v2 header in front of the bytes."""

    NONE = "NONE"
    PROXY = "PROXY"


class Locality(NamedTuple):
    """Where a workload runs."""

    region: str = ""
    zone: str = ""
    subzone: str = ""


_NOWHERE = Locality()


class Placement(NamedTuple):
    """Everything that a routing preference can compare between two workloads."""

    network: str
    region: str
    zone: str
    subzone: str
    node: str
    cluster: str


@dataclass(frozen=True, slots=True)
class ApplicationTunnel:
    """How the last hop to the application differs; port 0 keeps the port asked for."""

    protocol: ApplicationTunnelProtocol
    port: int = 0


@dataclass(frozen=True, slots=True)
class NamespacedHostname:
    """A service or workload by name."""

    namespace: str
    hostname: str

    @property
    def key(self) -> str:
        """The resource name that a control plane uses for it."""
        return f"{self.namespace}/{self.hostname}"


@dataclass(frozen=True, slots=True)
class NetworkAddress:
    """An IP address in one of the mesh's networks ("" where there is only one)."""

    network: str
    address: str

    @property
    def key(self) -> str:
        """The resource name that a control plane uses for it."""
        return f"{self.network}/{self.address}"


@dataclass(frozen=True, slots=True)
class GatewayAddress:
    """A proxy that traffic must pass: a waypoint, or the gateway of another network."""

    destination: NamespacedHostname | NetworkAddress
    hbone_mtls_port: int = HBONE_PORT

    def __str__(self) -> str:
        return self.destination.key


@dataclass(frozen=True, slots=True)
class Workload:
    """One pod, virtual machine, gateway or external endpoint, as the control plane describes it.

    `addresses` are canonical text; `services` maps "namespace/hostname" of each service that
    this workload is an endpoint of to {service port: target port}; `capacity` is a load
    balancing weight; `authorization_policies` are "namespace/name" of policies that select it.
    """

    uid: str
    name: str = ""
    namespace: str = ""
    addresses: tuple[str, ...] = ()
    network: str = ""
    tunnel_protocol: TunnelProtocol = TunnelProtocol.NONE
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    service_account: str = DEFAULT_SERVICE_ACCOUNT
    waypoint: GatewayAddress | None = None
    network_gateway: GatewayAddress | None = None
    node: str = ""
    canonical_name: str = ""
    canonical_revision: str = ""
    workload_type: WorkloadType = WorkloadType.DEPLOYMENT
    workload_name: str = ""
    native_tunnel: bool = False
    application_tunnel: ApplicationTunnel | None = None
    authorization_policies: tuple[str, ...] = ()
    status: WorkloadStatus = WorkloadStatus.HEALTHY
    cluster_id: str = DEFAULT_CLUSTER
    hostname: str = ""
    services: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    locality: Locality = _NOWHERE
    network_mode: NetworkMode = NetworkMode.STANDARD
    capacity: int = 1
    # Derived, and asked for on every connection.
    identity: Identity = field(init=False, repr=False, compare=False)
    placement: Placement = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        identity = Identity(self.trust_domain, self.namespace, self.service_account)
        placement = Placement(self.network, *self.locality, self.node, self.cluster_id)
        object.__setattr__(self, "identity", identity)
        object.__setattr__(self, "placement", placement)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name or self.uid}"
