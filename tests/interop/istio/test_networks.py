"""Networks and the gateways between them, as istiod and our control plane have them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from daemonset.control_plane.translation.settings import MeshSettings
from tests.support.istio.agreement import agree
from tests.support.istio.istiod import Istiod
from tests.support.istio.objects import write_objects
from tests.support.kube.cluster import Cluster

pytestmark = pytest.mark.slow

OBJECTS = """
apiVersion: v1
kind: Namespace
metadata: {name: istio-system, labels: {topology.istio.io/network: here}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: routed}
---
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  labels: {app: web}
  annotations: {ambient.istio.io/redirection: enabled}
spec: {nodeName: node-1, serviceAccountName: web, containers: [{name: app, image: app}]}
status:
  phase: Running
  podIPs: [{ip: 10.1.0.1}]
  conditions: [{type: Ready, status: "True"}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.11, selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: far, namespace: shop, labels: {app: web}}
spec: {address: 192.0.2.1, network: far, serviceAccount: web, labels: {app: web}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: lost, namespace: shop, labels: {app: web}}
spec: {address: 192.0.2.2, network: nowhere, labels: {app: web}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: far, namespace: shop, labels: {app: entry}}
spec:
  hosts: [far.example.com]
  addresses: [192.0.2.10]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 192.0.2.11}, {address: 192.0.2.12, network: far}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: to-far
  namespace: istio-system
  labels: {topology.istio.io/network: far}
  annotations: {gateway.istio.io/service-account: far-gateway}
spec:
  gatewayClassName: istio-remote
  addresses: [{type: IPAddress, value: 198.51.100.1}]
  listeners:
  - name: cross-network
    port: 15008
    protocol: HBONE
    tls: {mode: Passthrough}
status: {addresses: [{type: IPAddress, value: 198.51.100.1}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: to-named
  namespace: istio-system
  labels: {topology.istio.io/network: named}
spec:
  gatewayClassName: istio-remote
  addresses: [{type: Hostname, value: gateway.example.com}]
  listeners:
  - name: cross-network
    port: 15008
    protocol: HBONE
    tls: {mode: Passthrough}
status: {addresses: [{type: Hostname, value: gateway.example.com}]}
"""


@pytest.fixture(scope="module")
def mesh(cluster: Cluster) -> Cluster:
    write_objects(cluster, list(yaml.safe_load_all(OBJECTS)))
    return cluster


async def test_networks_are_the_same(mesh: Cluster, istiod: Istiod) -> None:
    gateways = {"far/198.51.100.1": "to-far", "named/gateway.example.com": "to-named"}
    wanted: dict[str, tuple[Any, Any]] = {}
    for place, name in gateways.items():
        uid = f"NetworkGateway/{place}/15008"
        # Ours calls them by their objects' names, for people who read logs.
        wanted[f"Address/{uid} workload.name"] = (uid, name)
        wanted[f"Address/{uid} workload.cluster_id"] = (None, "Kubernetes")
    await agree(mesh, istiod, MeshSettings(), wanted)
