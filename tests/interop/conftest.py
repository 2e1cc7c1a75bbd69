from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.cache import Unavailable
from tests.support.envoy import find_envoy
from tests.support.pki import Authority, make_root
from ztunnel.mesh.identity import Identity
from ztunnel.tls.workload_certificate import WorkloadCertificate

OURS = Identity("cluster.local", "ns", "ours")
ENVOYS = Identity("cluster.local", "ns", "envoy")


@pytest.fixture(scope="session", autouse=True)
def envoy_binary() -> Path:
    """Where there is no Envoy these tests mean nothing; where there must be one they fail."""
    try:
        return find_envoy()
    except Unavailable as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no Envoy: {error}")


@pytest.fixture(scope="session")
def root() -> Authority:
    return make_root()


@pytest.fixture(scope="session")
def ours(root: Authority) -> WorkloadCertificate:
    return root.workload(OURS)


@pytest.fixture(scope="session")
def envoys(root: Authority) -> WorkloadCertificate:
    return root.workload(ENVOYS)
