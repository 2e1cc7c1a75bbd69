"""What the mesh as a whole is called, and how it differs from Istio."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from daemonset.control_plane.objects.selector import LabelSelector, Requirement
from daemonset.control_plane.translation.service_addresses import SERVICE_IPS6

DATAPLANE_MODE = "istio.io/dataplane-mode"

_ANYTHING = LabelSelector()


@dataclass(frozen=True, slots=True)
class EnablementSelector:
    """A pod is in the mesh where both match."""

    pod: LabelSelector = _ANYTHING
    namespace: LabelSelector = _ANYTHING


_AMBIENT = LabelSelector({DATAPLANE_MODE: "ambient"})
_NOT_NONE = LabelSelector(requirements=(Requirement(DATAPLANE_MODE, "NotIn", frozenset({"none"})),))
DEFAULT_ENABLEMENT = (
    EnablementSelector(pod=_AMBIENT),
    EnablementSelector(pod=_NOT_NONE, namespace=_AMBIENT),
)


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """Settings of one mesh.

    Attributes:
        cluster_id: first part of workload names.
        trust_domain: of all identities.
        cluster_domain: end of service hostnames.
        root_namespace: where policies hold for the whole mesh; its label
            ``topology.istio.io/network`` names the network.
        revision: configuration with another label ``istio.io/rev`` is somebody else's.
        enablement: which pods are in the mesh: any of these.
        excluded_namespaces: pods that never are.
        like_istio: behave exactly as Istio where it fails open (see ``authorization`` and
            ``waypoints``), for comparison.
        service_ips, service_ips6: where Services without a clusterIP get one from (a folder's
            have no API server that gives them one); None: they have none.
        entry_ips, entry_ips6: where ServiceEntries without addresses get theirs from.
    """

    cluster_id: str = "Kubernetes"
    trust_domain: str = "cluster.local"
    cluster_domain: str = "cluster.local"
    root_namespace: str = "istio-system"
    revision: str = "default"
    enablement: tuple[EnablementSelector, ...] = DEFAULT_ENABLEMENT
    excluded_namespaces: frozenset[str] = frozenset({"kube-system"})
    like_istio: bool = False
    service_ips: ipaddress.IPv4Network | None = None
    service_ips6: ipaddress.IPv6Network = SERVICE_IPS6
    entry_ips: ipaddress.IPv4Network = field(
        default_factory=lambda: ipaddress.IPv4Network("240.240.0.0/16")
    )
    entry_ips6: ipaddress.IPv6Network = field(
        default_factory=lambda: ipaddress.IPv6Network("2001:2::/48")
    )
