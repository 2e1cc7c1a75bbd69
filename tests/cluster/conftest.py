"""Tests on a whole Kubernetes: two nodes with kubelets and containerd (`tests.support.cluster`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cluster.cluster import NodeCluster, missing
from tests.support.cluster.mesh import Mesh
from tests.support.requirements import without_compiler, without_namespaces


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeCluster]:
    """Two empty nodes; gone after the last of these tests."""
    lacking = without_namespaces() or without_compiler()
    if lacking is not None:
        pytest.skip(lacking)
    lacking = missing()
    if lacking is not None:
        pytest.skip(f"no Kubernetes with nodes: {lacking}")
    with NodeCluster(tmp_path_factory.mktemp("nodes")) as running:
        yield running


@pytest.fixture(scope="package")
def mesh(cluster: NodeCluster) -> Mesh:
    """The mesh, installed as the README says, and pods in a namespace that is not in it yet."""
    installed = Mesh(cluster)
    installed.install()
    return installed
