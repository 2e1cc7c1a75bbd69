"""ClusterIPs for the Services of a folder, which has no API server that would give them any."""

from __future__ import annotations

import ipaddress

from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.objects.service import Service
from daemonset.control_plane.translation.vips import AddressAllocator

SERVICE_IPS = ipaddress.IPv4Network("10.96.0.0/16")
SERVICE_IPS6 = ipaddress.IPv6Network("fd00:10:96::/112")
"""Where the Services of a folder get addresses from if they bring none: kubeadm's and kind's."""

_DNS = 10  # host part of the cluster's DNS, by convention
_BOTH = ("PreferDualStack", "RequireDualStack")


class ServiceAddresses:
    """Gives each Service the addresses that an API server would; they stay while it is there.

    Two of these, asked about the same objects, give the same.
    """

    def __init__(
        self,
        block: ipaddress.IPv4Network = SERVICE_IPS,
        block6: ipaddress.IPv6Network = SERVICE_IPS6,
    ) -> None:
        self._blocks: dict[str, ipaddress.IPv4Network | ipaddress.IPv6Network] = {
            "IPv4": block,
            "IPv6": block6,
        }
        self._allocators = {name: AddressAllocator(one) for name, one in self._blocks.items()}

    def give(self, objects: ObjectSet) -> dict[str, tuple[str, ...]]:
        """ "namespace/name" -> canonical addresses, of the Services that need and have none."""
        families = _families_of_cluster(objects)
        wanted = {
            f"{service.meta.namespace}/{service.meta.name}": _families_of(service, families)
            for service in objects.services.values()
            if not service.cluster_ips and not service.headless and service.type != "ExternalName"
        }
        taken = {
            address for service in objects.services.values() for address in service.cluster_ips
        }
        taken.update(
            str(block[_DNS]) for block in self._blocks.values() if block.num_addresses > _DNS
        )
        given = {
            family: allocator.allocate((n for n, own in wanted.items() if family in own), taken)
            for family, allocator in self._allocators.items()
        }
        return {
            name: tuple(given[family][name] for family in own if name in given[family])
            for name, own in wanted.items()
        }


def _families_of_cluster(objects: ObjectSet) -> tuple[str, ...]:
    """Those of the nodes; the first one is what a Service gets that says nothing."""
    versions = {":" in address for node in objects.nodes.values() for address in node.addresses}
    found = [name for name, is_six in (("IPv4", False), ("IPv6", True)) if is_six in versions]
    return tuple(found) or ("IPv4",)


def _families_of(service: Service, cluster: tuple[str, ...]) -> tuple[str, ...]:
    families = service.ip_families or cluster[:1]
    if service.family_policy in _BOTH:
        families += tuple(family for family in cluster if family not in families)
    return families
