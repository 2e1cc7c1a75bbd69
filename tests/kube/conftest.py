"""Tests against a real kube-apiserver and etcd (`tests.support.kube`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cache import Unavailable
from tests.support.kube.binaries import find
from tests.support.kube.cluster import Cluster


@pytest.fixture(scope="session", autouse=True)
def binaries() -> None:
    """Without them these tests mean nothing: they are left out, and the run's end says so."""
    try:
        find("etcd")
        find("kube-apiserver")
    except Unavailable as error:
        pytest.skip(f"no Kubernetes: {error}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """An API server for the tests of one file, empty at first."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running
