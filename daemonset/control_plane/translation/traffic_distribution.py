"""Which endpoints of a service a client prefers."""

from __future__ import annotations

from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.translation.finding import Findings
from ztunnel.proto.workload_pb2 import LoadBalancing

ANNOTATION = "networking.istio.io/traffic-distribution"

_SAME_ZONE = (LoadBalancing.NETWORK, LoadBalancing.REGION, LoadBalancing.ZONE)
_FAILOVER: dict[str, tuple[LoadBalancing.Scope, ...]] = {
    "preferclose": _SAME_ZONE,
    "prefersamezone": _SAME_ZONE,
    "prefersamenode": (*_SAME_ZONE, LoadBalancing.SUBZONE, LoadBalancing.NODE),
}


def load_balancing(
    distribution: str,
    field: str,
    *,
    node_local: bool,
    allow_unready: bool,
    key: ObjectKey,
    findings: Findings,
) -> LoadBalancing | None:
    """The load balancing of one service; a new message each time, so that none is shared.

    Args:
        distribution: PreferClose, PreferSameZone, PreferSameNode, Any or "" (Any).
        field: where it was read from.
        node_local: ``internalTrafficPolicy: Local``, which beats the distribution.
        allow_unready: ``publishNotReadyAddresses``.
    """
    result = LoadBalancing()
    if node_local:
        result.mode = LoadBalancing.STRICT
        result.routing_preference.append(LoadBalancing.NODE)
    elif distribution.lower() in _FAILOVER:
        result.mode = LoadBalancing.FAILOVER
        result.routing_preference.extend(_FAILOVER[distribution.lower()])
    elif distribution.lower() not in ("", "any"):
        findings.warning(
            key,
            field,
            "UnknownTrafficDistribution",
            f"{distribution!r} is not known: every healthy endpoint is used alike.",
            "Use PreferClose, PreferSameZone, PreferSameNode or Any.",
        )
    if allow_unready:
        result.health_policy = LoadBalancing.ALLOW_ALL
    return result if result.ByteSize() else None
