"""Tests with Istio's own control plane and node agent (`tests.support.istio`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cache import Unavailable
from tests.support.istio.binaries import find
from tests.support.istio.definitions import install_definitions
from tests.support.istio.istiod import Istiod
from tests.support.kube import binaries as kubernetes
from tests.support.kube.cluster import Cluster


@pytest.fixture(scope="session", autouse=True)
def envoy_binary() -> None:
    """These tests need no Envoy."""


@pytest.fixture(scope="session", autouse=True)
def istio_binaries() -> None:
    """Without them these tests mean nothing: they are left out, and the run's end says so."""
    try:
        find("pilot-discovery")
    except Unavailable as error:
        pytest.skip(f"no Istio: {error}")
    try:
        kubernetes.find("etcd")
        kubernetes.find("kube-apiserver")
    except Unavailable as error:
        pytest.skip(f"no Kubernetes: {error}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """An API server with the definitions of Istio and of the Gateway API, and root namespaces."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as running:
        install_definitions(running)
        running.namespace("istio-system")
        running.namespace("ambient-system")
        yield running


@pytest.fixture(scope="module")
def istiod(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Istiod]:
    """Istio's control plane over that API server."""
    with Istiod(cluster, tmp_path_factory.mktemp("istiod")) as running:
        yield running
