"""What istiod and our control plane make of the same objects in the same API server."""

from __future__ import annotations

from typing import Any

import pytest

from daemonset.control_plane.translation.settings import MeshSettings
from tests.support.istio.agreement import agree
from tests.support.istio.istiod import Istiod
from tests.support.istio.objects import read_objects, write_objects
from tests.support.kube.cluster import Cluster

pytestmark = pytest.mark.slow

THERE, NOT = "there", None
WEB = "shop/web.shop.svc.cluster.local"
DATAGRAMS = "shop/datagrams.example.com"
ENTRY = "Address/Kubernetes/networking.istio.io/ServiceEntry"
ELSEWHERE = "street/elsewhere.street.svc.cluster.local"
BUSKER = f"Address/Kubernetes//Pod/street/busker workload.services.{ELSEWHERE}"
MACHINE = "Address/Kubernetes/networking.istio.io/WorkloadEntry/shop"


def without(place: str, *numbers: int) -> dict[str, tuple[Any, Any]]:
    """Ports that lead to the same number, of which Istio speaks and ours does not."""
    return {
        f"{place}.ports[{number}].{field}": (number, NOT)
        for number in numbers
        for field in ("service_port", "target_port")
    }


ALWAYS: dict[str, tuple[Any, Any]] = {
    # No datagram is captured: ours promises nothing of the kind.
    **without(f"Address/{WEB} service", 53),
    **without(f"Address/{DATAGRAMS} service", 53),
    **without(f"{ENTRY}/shop/datagrams/192.0.2.62 workload.services.{DATAGRAMS}", 53),
    **without(f"{MACHINE}/machine-of-labels workload.services.{WEB}", 53),
    **without(f"Address/Kubernetes//Pod/shop/web-5d4f7-x2x4z workload.services.{WEB}", 53),
    **without(f"Address/Kubernetes//Pod/shop/host workload.services.{WEB}", 53),
    **without(f"Address/Kubernetes//Pod/shop/late workload.services.{WEB}", 53),
    # Names are asked for in lower case.
    "Address/shop/Second.Example.com": (THERE, NOT),
    "Address/shop/second.example.com": (NOT, THERE),
    f"{ENTRY}/shop/looked-up/Second.Example.com": (THERE, NOT),
    f"{ENTRY}/shop/looked-up/second.example.com": (NOT, THERE),
    # To a workload without any label Istio attaches every policy of its namespace that selects.
    f"{MACHINE}/machine-far workload.authorization_policies": (
        ["istio-system/mesh-selecting", "shop/allow-l7", "shop/deny-l7", "shop/everything"],
        NOT,
    ),
    # Kubernetes sends to the port that stands in the slice.
    f"{BUSKER}.ports[80].target_port": (8080, 8088),
    f"{BUSKER}.ports[81].service_port": (NOT, 81),
    f"{BUSKER}.ports[81].target_port": (NOT, 8089),
}


def waiting(service: str, waypoint: str) -> dict[str, tuple[Any, Any]]:
    """Ours sends to a waypoint that is not there, so that nobody gets past it."""
    place = f"Address/{service} service.waypoint"
    return {
        f"{place}.hbone_mtls_port": (NOT, 15008),
        f"{place}.hostname.namespace": (NOT, "routed"),
        f"{place}.hostname.hostname": (NOT, f"{waypoint}.routed.svc.cluster.local"),
    }


def rules(*matches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups of one clause for each of these, or two."""
    return [{"rules": [{"matches": [match]} for match in group]} for group in matches]


PORT, FROM_B = {"destination_ports": [80]}, {"namespaces": [{"exact": "b"}]}
FROM_Q = {"namespaces": [{"exact": "q"}]}
FROM_Y = {"principals": [{"exact": "cluster.local/ns/x/sa/y"}]}
FAIL_CLOSED: dict[str, tuple[Any, Any]] = {
    **waiting("routed/missing.routed.svc.cluster.local", "not-there"),
    **waiting("shop/refused.shop.svc.cluster.local", "waypoint"),
    "Address/routed/missing.routed.svc.cluster.local service.ingress_use_waypoint": (NOT, True),
    # exportTo holds.
    "Address/street/static.example.com service.visibility": (NOT, "NAMESPACE"),
    # A policy for a service without a waypoint is enforced at its pods.
    "Authorization/routed/at-no-waypoint": (NOT, THERE),
    "Address/Kubernetes//Pod/routed/routed workload.authorization_policies": (
        ["routed/converted_peer_authentication_permissive-ports"],
        ["routed/at-no-waypoint", "routed/converted_peer_authentication_permissive-ports"],
    ),
    # Nobody can be asked: what the rules cover is refused.
    "Authorization/shop/custom": (NOT, THERE),
    # An empty match never matches: with one in it, a DENY rule denies nothing.
    "Authorization/shop/deny-l7 groups": (
        rules([PORT], [FROM_B, {}], [FROM_Q], [FROM_Y, {}]),
        rules([PORT], [FROM_B], [FROM_Q], [FROM_Y]),
    ),
    "Authorization/shop/deny-only-l7 groups": (rules([{}]), [{}]),
}


@pytest.fixture(scope="module")
def mesh(cluster: Cluster) -> Cluster:
    """All objects, and a ztunnel."""
    write_objects(cluster, read_objects())
    return cluster


async def test_told_to_be_like_istio_ours_says_the_same(mesh: Cluster, istiod: Istiod) -> None:
    await agree(mesh, istiod, MeshSettings(like_istio=True), ALWAYS)


async def test_else_it_differs_where_istio_fails_open(mesh: Cluster, istiod: Istiod) -> None:
    await agree(mesh, istiod, MeshSettings(), ALWAYS | FAIL_CLOSED)
