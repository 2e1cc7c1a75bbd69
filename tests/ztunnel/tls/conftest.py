import pytest

from tests.support.pki import Authority, make_root
from ztunnel.mesh.identity import Identity
from ztunnel.tls.workload_certificate import WorkloadCertificate

ALICE = Identity("cluster.local", "shop", "alice")
BOB = Identity("cluster.local", "shop", "bob")


@pytest.fixture(scope="session")
def authority() -> Authority:
    return make_root().intermediate()


@pytest.fixture(scope="session")
def alice(authority: Authority) -> WorkloadCertificate:
    return authority.workload(ALICE)


@pytest.fixture(scope="session")
def bob(authority: Authority) -> WorkloadCertificate:
    return authority.workload(BOB)
