"""Istio's own CustomResourceDefinitions and the Gateway API's, as their modules have them."""

from __future__ import annotations

import yaml

from tests.support.istio.binaries import find
from tests.support.kube.cluster import Cluster, Json
from tests.support.kube.manifests import install

_READ = (
    *(f"{plural}.networking.istio.io" for plural in ("serviceentries", "workloadentries")),
    *(f"{plural}.security.istio.io" for plural in ("authorizationpolicies", "peerauthentications")),
    *(f"{plural}.gateway.networking.k8s.io" for plural in ("gatewayclasses", "gateways")),
)
"""Those of what both sides read; an API server takes its time over each."""


def install_definitions(cluster: Cluster) -> None:
    """Apply them and wait until they are served."""
    items: list[Json] = [
        item
        for name in ("istio-crds.yaml", "gateway-api-crds.yaml")
        for item in yaml.load_all(find(name).read_text(), yaml.CSafeLoader)
        if item and item["metadata"]["name"] in _READ
    ]
    install(cluster, items)
