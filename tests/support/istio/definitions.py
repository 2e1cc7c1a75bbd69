"""Istio's own CustomResourceDefinitions and the Gateway API's, as their modules have them."""

from __future__ import annotations

import yaml

from tests.support.istio.binaries import find
from tests.support.kube.cluster import Cluster, Json
from tests.support.kube.manifests import install

_GATEWAY_API = ("gatewayclasses", "gateways", "httproutes", "grpcroutes", "referencegrants")
"""As Istio's users install them; the rest of the Gateway API is not read by either side."""


def install_definitions(cluster: Cluster) -> None:
    """Apply them and wait until they are served."""
    items: list[Json] = [
        item for item in yaml.safe_load_all(find("istio-crds.yaml").read_text()) if item
    ]
    wanted = {f"{plural}.gateway.networking.k8s.io" for plural in _GATEWAY_API}
    items += [
        item
        for item in yaml.safe_load_all(find("gateway-api-crds.yaml").read_text())
        if item and item["metadata"]["name"] in wanted
    ]
    install(cluster, items)
