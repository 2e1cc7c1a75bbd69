"""A service of the mesh, whether it came from a Service or from a host of a ServiceEntry."""

from __future__ import annotations

from dataclasses import dataclass

from daemonset.control_plane.objects.addresses import IPNetwork
from daemonset.control_plane.objects.meta import ObjectMeta
from daemonset.control_plane.objects.selector import LabelSelector
from daemonset.control_plane.translation.waypoints import Binding
from ztunnel.proto.workload_pb2 import AppProtocol, IPFamilies, LoadBalancing
from ztunnel.proto.workload_pb2 import Service as MeshService


@dataclass(frozen=True, slots=True)
class MeshPort:
    """``target`` is a number, a container port's name, or None (a ServiceEntry that gives none:
    the port's own number is the target, where the workload has no port of its name)."""

    name: str
    number: int
    target: int | str | None
    protocol: AppProtocol


@dataclass(frozen=True, slots=True)
class ServiceInfo:
    """One service. ``selector`` is None where endpoints are listed instead of selected."""

    meta: ObjectMeta
    hostname: str
    addresses: tuple[IPNetwork, ...]
    ports: tuple[MeshPort, ...]
    selector: LabelSelector | None
    waypoint: Binding | None
    ingress_use_waypoint: bool
    load_balancing: LoadBalancing | None
    families: IPFamilies
    visibility: MeshService.Visibility
    subject_alt_names: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of its resource."""
        return f"{self.meta.namespace}/{self.hostname}"
