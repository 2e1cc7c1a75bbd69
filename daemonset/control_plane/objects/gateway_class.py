"""GatewayClass (gateway.networking.k8s.io/v1)."""

from __future__ import annotations

from dataclasses import dataclass

from daemonset.control_plane.objects.meta import ObjectMeta, read_meta
from daemonset.control_plane.objects.section import Section


@dataclass(frozen=True, slots=True)
class GatewayClass:
    """Its label istio.io/waypoint-for sets what its waypoints serve by default."""

    meta: ObjectMeta


def read_gateway_class(root: Section) -> GatewayClass:
    """Raises ObjectError."""
    meta = read_meta(root, "GatewayClass", namespaced=False)
    root.section("spec").text("controllerName")  # it must name one; which one is no concern of ours
    return GatewayClass(meta)
