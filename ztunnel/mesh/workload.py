"""A workload: something with an identity that sends or receives connections."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from functools import lru_cache
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
    `join` says whether it may be joined with other pods of its node; None leaves that to ztunnel.
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
    join: bool | None = None
    # Derived, and asked for on every connection.
    identity: Identity = field(init=False, repr=False, compare=False)
    placement: Placement = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Most values are those of many workloads: one copy of each is enough, also where they
        # came in different messages.
        share = object.__setattr__
        for name in _REPEATED:
            share(self, name, sys.intern(getattr(self, name)))
        share(self, "identity", _identity(self.trust_domain, self.namespace, self.service_account))
        place = _placement(self.network, *self.locality, self.node, self.cluster_id)
        share(self, "placement", place)
        if self.services:
            ports = tuple((key, tuple(of.items())) for key, of in self.services.items())
            share(self, "services", _services(ports))

    def __reduce__(self) -> tuple[type[Workload], tuple[object, ...]]:
        """What is derived and shared is so again in the process that reads it."""
        return Workload, tuple(getattr(self, name) for name in _GIVEN)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name or self.uid}"


_GIVEN = tuple(one.name for one in fields(Workload) if one.init)
_REPEATED = (
    "namespace",
    "network",
    "trust_domain",
    "service_account",
    "node",
    "canonical_name",
    "canonical_revision",
    "workload_name",
    "cluster_id",
)
_identity = lru_cache(maxsize=65_536)(Identity)
_placement = lru_cache(maxsize=65_536)(Placement)


@lru_cache(maxsize=65_536)
def _services(
    ports: tuple[tuple[str, tuple[tuple[int, int], ...]], ...],
) -> Mapping[str, Mapping[int, int]]:
    return {sys.intern(key): dict(of) for key, of in ports}
