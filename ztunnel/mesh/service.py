"""A service: a name and virtual addresses in front of workloads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from ztunnel.mesh.address import IPNetwork
from ztunnel.mesh.identity import Identity
from ztunnel.mesh.workload import GatewayAddress, NetworkAddress


class Scope(Enum):
    """One thing that an endpoint can have in common with the client; values: Placement fields."""

    REGION = "region"
    ZONE = "zone"
    SUBZONE = "subzone"
    NODE = "node"
    CLUSTER = "cluster"
    NETWORK = "network"


class LoadBalancingMode(Enum):
    """What the routing preference means.

    STANDARD ignores it, STRICT demands all of it, FAILOVER prefers what has most in common;
    PASSTHROUGH sends to the original destination.
    """

    STANDARD = "Standard"
    STRICT = "Strict"
    FAILOVER = "Failover"
    PASSTHROUGH = "Passthrough"


class HealthPolicy(Enum):
    """Which endpoints count."""

    ONLY_HEALTHY = "OnlyHealthy"
    ALLOW_ALL = "AllowAll"


class IPFamilies(Enum):
    """Address families of a service; AUTOMATIC leaves it to the client's family."""

    AUTOMATIC = "Automatic"
    IPV4_ONLY = "IPv4"
    IPV6_ONLY = "IPv6"
    DUAL = "Dual"


class Visibility(Enum):
    """NAMESPACE: clients of other namespaces must not see the service."""

    PUBLIC = "Public"
    NAMESPACE = "Namespace"


@dataclass(frozen=True, slots=True)
class LoadBalancing:
    """How an endpoint is chosen."""

    routing_preference: tuple[Scope, ...] = ()
    mode: LoadBalancingMode = LoadBalancingMode.STANDARD
    health_policy: HealthPolicy = HealthPolicy.ONLY_HEALTHY


@dataclass(frozen=True, slots=True)
class WeightedWaypoint:
    """One of several waypoints among which connections are divided by weight."""

    waypoint: GatewayAddress
    weight: int


@dataclass(frozen=True, slots=True)
class CidrVip:
    """A block of virtual addresses in one network."""

    network: str
    cidr: IPNetwork


@dataclass(frozen=True, slots=True)
class Service:
    """One service. `ports` is {service port: target port}; target 0 leaves it to the endpoint."""

    name: str
    namespace: str
    hostname: str
    vips: tuple[NetworkAddress, ...] = ()
    cidr_vips: tuple[CidrVip, ...] = ()
    ports: Mapping[int, int] = field(default_factory=dict)
    subject_alt_names: tuple[Identity, ...] = ()
    waypoint: GatewayAddress | None = None
    weighted_waypoints: tuple[WeightedWaypoint, ...] = ()
    load_balancing: LoadBalancing = LoadBalancing()
    ip_families: IPFamilies = IPFamilies.AUTOMATIC
    canonical: bool = False
    visibility: Visibility = Visibility.PUBLIC

    @property
    def key(self) -> str:
        """The resource name: "namespace/hostname"."""
        return f"{self.namespace}/{self.hostname}"

    def visible_to(self, namespace: str) -> bool:
        """Whether clients of `namespace` may use this service."""
        return self.visibility is Visibility.PUBLIC or self.namespace == namespace

    def waypoints(self) -> tuple[GatewayAddress, ...]:
        """Every waypoint that may carry a connection to this service."""
        weighted = [entry.waypoint for entry in self.weighted_waypoints if entry.weight > 0]
        if weighted:
            return tuple(weighted)
        return (self.waypoint,) if self.waypoint is not None else ()

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"
