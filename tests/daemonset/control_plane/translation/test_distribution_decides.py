"""From the YAML of a Service to the endpoint that a node's proxy chooses for a client."""

from __future__ import annotations

import random

import pytest

from tests.support.control_plane import translate
from ztunnel.mesh.changes import Batch
from ztunnel.mesh.decision import Hbone, Refuse
from ztunnel.mesh.from_proto import address_from_proto
from ztunnel.mesh.outbound import decide
from ztunnel.mesh.state import MeshState

PLACES = {
    "n1": ("east", "a"),
    "n2": ("east", "a"),
    "n3": ("east", "b"),
    "n4": ("west", "c"),
}
VIP = "10.96.0.10"
EVERYWHERE = {"n1", "n2", "n3", "n4"}


def mesh(spec: str, ready: set[str], annotation: str = "") -> MeshState:
    """A client on n1, and a pod of the service on each node."""
    text = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
"""
    key = "networking.istio.io/traffic-distribution"
    annotations = f"{{{key}: {annotation}}}" if annotation else "{}"
    text += f"""---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: shop, annotations: {annotations}}}
spec: {{clusterIP: {VIP}, selector: {{app: web}}, ports: [{{port: 80}}], {spec}}}
"""
    for number, (node, (region, zone)) in enumerate(PLACES.items(), start=1):
        text += f"""---
apiVersion: v1
kind: Node
metadata:
  name: {node}
  labels: {{topology.kubernetes.io/region: {region}, topology.kubernetes.io/zone: {zone}}}
"""
        text += pod(f"web-{node}", node, f"10.1.{number}.1", "web", node in ready)
    text += pod("client", "n1", "10.1.1.9", "client", True)
    pods = {("shop", name) for name in ["client", *(f"web-{node}" for node in PLACES)]}
    state = MeshState()
    resources = translate(text, captured=pods).raw.addresses.values()
    state.apply(Batch([address_from_proto(resource.payload) for resource in resources]))
    return state


def pod(name: str, node: str, address: str, app: str, ready: bool) -> str:
    return f"""---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, labels: {{app: {app}}}}}
spec: {{nodeName: {node}, containers: [{{name: main}}]}}
status:
  phase: Running
  podIP: {address}
  podIPs: [{{ip: {address}}}]
  conditions: [{{type: Ready, status: "{ready}"}}]
"""


def chosen(state: MeshState) -> set[str]:
    """The nodes that connections of the client go to, in 200 tries."""
    client = state.local_workload("client", "shop", "default")
    assert client is not None
    rng = random.Random(1)
    found = set()
    for _ in range(200):
        decision = decide(state, client, (VIP, 80), rng=rng)
        if isinstance(decision, Refuse):
            assert "no healthy upstream" in decision.reason
            continue
        assert isinstance(decision, Hbone)
        found.add(decision.workload.node)
    return found


@pytest.mark.parametrize(
    ("spec", "annotation", "ready", "nodes"),
    [
        ("", "", EVERYWHERE, EVERYWHERE),
        ("", "", {"n2", "n4"}, {"n2", "n4"}),
        ("", "", set(), set()),
        ("publishNotReadyAddresses: true", "", set(), EVERYWHERE),
        ("trafficDistribution: PreferClose", "", EVERYWHERE, {"n1", "n2"}),
        ("trafficDistribution: PreferSameZone", "", EVERYWHERE, {"n1", "n2"}),
        # Nothing in the zone: the region; nothing in the region: anywhere.
        ("trafficDistribution: PreferSameZone", "", {"n3", "n4"}, {"n3"}),
        ("trafficDistribution: PreferSameZone", "", {"n4"}, {"n4"}),
        ("trafficDistribution: PreferSameNode", "", EVERYWHERE, {"n1"}),
        ("trafficDistribution: PreferSameNode", "", {"n2", "n3", "n4"}, {"n2"}),
        ("trafficDistribution: PreferSameNode", "", {"n3", "n4"}, {"n3"}),
        ("", "PreferClose", EVERYWHERE, {"n1", "n2"}),
        ("trafficDistribution: PreferSameNode", "PreferClose", EVERYWHERE, {"n1"}),
        ("internalTrafficPolicy: Local", "", EVERYWHERE, {"n1"}),
        # Strict: another node's endpoint is no endpoint.
        ("internalTrafficPolicy: Local", "", {"n2", "n3", "n4"}, set()),
    ],
)
def test_who_is_chosen(spec: str, annotation: str, ready: set[str], nodes: set[str]) -> None:
    assert chosen(mesh(spec, ready, annotation)) == nodes
