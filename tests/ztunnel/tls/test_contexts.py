"""What the contexts of a process cost."""

import os

from tests.support.pki import Authority
from ztunnel.mesh.identity import Identity
from ztunnel.tls.contexts import ContextCache

ALICE = Identity("cluster.local", "shop", "alice")
BOB = Identity("cluster.local", "shop", "bob")


def test_one_context_per_identity_and_role_is_kept(authority: Authority) -> None:
    cache = ContextCache()
    certificate = authority.workload(ALICE)
    other = authority.workload(BOB)
    assert cache.client(certificate) is cache.client(certificate)
    assert cache.client(certificate) is not cache.server(certificate)
    assert cache.client(certificate) is not cache.client(other)


def test_renewals_and_identities_that_are_gone_leave_no_descriptors(authority: Authority) -> None:
    cache = ContextCache()
    cache.server(authority.workload(BOB))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        certificate = authority.workload(ALICE)
        cache.server(certificate)
        cache.client(certificate)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    cache.forget(ALICE)
    assert len(os.listdir("/proc/self/fd")) == before
