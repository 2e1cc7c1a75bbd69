"""Certificates under live traffic: renewed, expired, revoked, and from one root to another."""

import dataclasses
import time

import pytest
import trio

from tests.support.hand_made import hand_made
from tests.support.pair import Pair
from tests.support.pki import Authority, make_root
from tests.support.sockets import ask, ends, receive_all, until
from ztunnel.mesh.identity import Identity
from ztunnel.proxy.certificates import CertificateStore, CertificateUnavailable
from ztunnel.tls.crl import RevocationList
from ztunnel.tls.workload_certificate import WorkloadCertificate

pytestmark = pytest.mark.root

SOMEBODY = Identity("cluster.local", "shop", "somebody")


def tunnels(pair: Pair) -> int:
    return pair.mesh.pods["client"].tunnel_counts[0]


def serials(pair: Pair) -> set[int]:
    """Of the certificates that the server pod's peers have shown."""
    return {owner.peer.serial for owner in pair.mesh.pods["server"].arrivals.tunnels}


def renewed(pair: Pair, identity: Identity, **changes: float) -> WorkloadCertificate:
    certificate = pair.mesh.authority.workload(identity, **changes)
    pair.mesh.certificates.received(certificate)
    return certificate


async def test_a_renewed_certificate_serves_new_tunnels_and_cuts_no_old_one(pair: Pair) -> None:
    pair.mesh.context.pools.max_streams = 1  # so that each connection shakes hands
    old = await pair.dial()
    await ask(old)
    certificate = renewed(pair, pair.client.identity)
    renewed(pair, pair.server.identity)
    assert await ask(await pair.dial()) == b"hello"
    assert await ask(old) == b"hello"
    assert certificate.serial in serials(pair)
    assert len(serials(pair)) == 2


async def test_a_valid_certificate_is_used_although_its_renewal_fails(pair: Pair) -> None:
    pair.mesh.context.pools.max_streams = 1
    for identity in (pair.client.identity, pair.server.identity):
        pair.mesh.certificates.failed(identity.uri, "the CA is away")
    assert await ask(await pair.dial()) == b"hello"


async def test_a_certificate_of_ours_that_expired_is_not_shown(pair: Pair) -> None:
    renewed(pair, pair.client.identity, not_before=0)
    pair.mesh.certificates.failed(pair.client.identity.uri, "the CA is away")
    assert await ends(await pair.dial())
    line = await pair.mesh.line('direction="outbound"', "error=")
    assert f"no certificate for {pair.client.identity.uri}: the CA is away" in line
    assert 'response_flags="IDENTITY_ERROR"' in line
    assert tunnels(pair) == 0


async def test_a_server_whose_certificate_expired_is_refused(pair: Pair) -> None:
    async with hand_made(pair, lifetime=1.0) as peer:
        await trio.sleep(1.1)
        assert await ends(await peer.dial())
        line = await pair.mesh.line('direction="outbound"', "error=")
        assert "expired" in line
        assert 'response_flags="TLS_FAILURE"' in line


async def test_a_tunnel_takes_no_new_streams_once_a_certificate_of_it_has_expired(
    pair: Pair,
) -> None:
    short = renewed(pair, pair.client.identity, not_before=time.time() - 100, lifetime=106)
    old = await pair.dial()
    await ask(old)
    renewed(pair, pair.client.identity)
    assert await ask(await pair.dial()) == b"hello"
    assert tunnels(pair) == 1
    await until(lambda: time.time() > short.not_after)
    assert await ask(await pair.dial()) == b"hello"
    assert tunnels(pair) == 2
    assert await ask(old) == b"hello"


async def test_from_one_root_to_another_without_a_cut(pair: Pair) -> None:
    pair.mesh.context.pools.max_streams = 1
    first, second = pair.mesh.authority, make_root("second")
    one = first.workload(SOMEBODY).roots_pem
    two = second.workload(SOMEBODY).roots_pem
    live = await pair.dial()
    await ask(live)

    def give(identity: Identity, signer: Authority, roots: bytes) -> None:
        pair.mesh.certificates.received(signer.workload(identity).with_roots(roots))

    client, server = pair.client.identity, pair.server.identity
    steps = [
        (client, first, one + two),
        (server, first, one + two),
        (server, second, one + two),
        (client, second, one + two),
        (client, second, two),
        (server, second, two),
    ]
    for step in steps:
        give(*step)
        assert await ask(await pair.dial()) == b"hello"
        assert await ask(live) == b"hello"
    give(client, first, one)
    assert await ends(await pair.dial())
    assert "certificate is not valid" in await pair.mesh.line('direction="outbound"', "error=")
    assert await ask(live) == b"hello"


def revoke(pair: Pair, *serials: int) -> None:
    """As a worker does it when the CRL file has changed."""
    lists = RevocationList.parse(pair.mesh.authority.crl(serials))
    pair.mesh.context.pools.revocations = lists
    for pod in pair.mesh.pods.values():
        pod.refuse_revoked(lists)


def rejections(pair: Pair, reporter: str) -> float:
    return pair.mesh.counters.counter("istio_crl_policy_rejections", reporter).value


@pytest.mark.parametrize("whose", ["client", "server"])
async def test_a_revoked_certificate_ends_what_lives_and_refuses_what_comes(
    pair: Pair, whose: str
) -> None:
    described = pair.client if whose == "client" else pair.server
    certificate = renewed(pair, described.identity)
    live = await pair.dial()
    await ask(live)
    revoke(pair)
    assert await ask(live) == b"hello"
    revoke(pair, certificate.serial)
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(30):
        await receive_all(live)
    side, reporter = ("inbound", "destination") if whose == "client" else ("outbound", "source")
    line = await pair.mesh.line(f'direction="{side}"', "error=")
    assert "connection closed: peer certificate revoked by CRL (serial number" in line
    assert "reason keyCompromise" in line
    assert 'response_flags="CERT_REVOKED"' in line
    assert 'closed_by="proxy"' in line
    assert rejections(pair, reporter) == 1
    pair.mesh.lines.clear()
    assert await ends(await pair.dial())
    if whose == "server":
        line = await pair.mesh.line('direction="outbound"', "error=")
        assert 'response_flags="CERT_REVOKED"' in line
    else:
        await pair.mesh.line("connection failed", "is revoked")
        line = await pair.mesh.line('direction="outbound"', "error=")
        assert "certificate_revoked" in line
    assert rejections(pair, reporter) >= 2
    # A revocation that is taken back, or a new certificate, lets it in again.
    renewed(pair, described.identity)
    assert await ask(await pair.dial()) == b"hello"


async def test_a_workload_that_becomes_somebody_else_is_cut(pair: Pair) -> None:
    """The tunnel leads to whom it was; the mesh says that this is not the workload any more."""
    async with hand_made(pair) as peer:
        live = await peer.dial()
        await ask(live)
        pair.mesh.apply(dataclasses.replace(peer.workload, canonical_name="renamed"))
        assert await ask(live) == b"hello"
        pair.mesh.apply(dataclasses.replace(peer.workload, service_account="other"))
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(30):
            await receive_all(live)
        line = await pair.mesh.line('direction="outbound"', "error=")
        assert "is spiffe://cluster.local/ns/shop/sa/other now" in line
        assert 'response_flags="IDENTITY_ERROR"' in line
        # And it is not connected to under the new name either.
        assert await ends(await peer.dial())


@pytest.mark.parametrize("whose", ["client", "server"])
async def test_a_withdrawn_certificate_of_ours_serves_nobody_new(pair: Pair, whose: str) -> None:
    identity = (pair.client if whose == "client" else pair.server).identity
    live = await pair.dial()
    await ask(live)
    # As a worker does it when the control process says so.
    pair.mesh.certificates.withdrawn(identity.uri, "it was revoked")
    for pod in pair.mesh.pods.values():
        pod.certificate_withdrawn(identity.uri)
    if whose == "server":
        [pool] = pair.mesh.pods["client"]._pools.values()
        await until(lambda: not pool._tunnels)  # it has heard of it
    assert await ends(await pair.dial())
    if whose == "client":
        line = await pair.mesh.line('direction="outbound"', "error=")
        assert f"no certificate for {identity.uri}: it was revoked" in line
    else:
        line = await pair.mesh.line("connection failed")
        assert f"no certificate for {identity.uri}: it was revoked" in line
    assert await ask(live) == b"hello"
    renewed(pair, identity)
    assert await ask(await pair.dial()) == b"hello"


async def test_what_was_forgotten_is_asked_for_again() -> None:
    asked: list[str] = []

    def ask_control(uri: str) -> bool:
        asked.append(uri)
        return True

    authority = make_root()
    store = CertificateStore(ask_control)
    store.want(SOMEBODY)
    store.received(authority.workload(SOMEBODY))
    store.want(SOMEBODY)
    assert asked == [SOMEBODY.uri]
    store.forgotten(SOMEBODY.uri)
    assert store.get(SOMEBODY) is None
    with pytest.raises(CertificateUnavailable, match=r"within 0\.01s"):
        await store.wait(SOMEBODY, 0.01)
    assert asked == [SOMEBODY.uri] * 2
    store.received(authority.workload(SOMEBODY))
    assert (await store.wait(SOMEBODY, 1)).identity == SOMEBODY
