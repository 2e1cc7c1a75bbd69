"""Handshakes that succeed, and what they know afterwards."""

import dataclasses
import os
import random
import ssl
import subprocess
import sys

import pytest
from cryptography import x509

from tests.support.pki import Authority, make_root
from tests.support.tls import (
    PlainPeer,
    accept_anybody,
    client,
    open_all,
    plain_context,
    seal,
    server,
    shake,
    shake_with_plain,
)
from ztunnel.mesh.identity import Identity
from ztunnel.tls.contexts import ContextCache, Records
from ztunnel.tls.handshake import Handshake
from ztunnel.tls.keylog import KeyLog, client_random, shared_key_log
from ztunnel.tls.spiffe import ClientMustBe, ServerMustBe
from ztunnel.tls.workload_certificate import WorkloadCertificate


def key_log_size() -> int:
    return os.stat(shared_key_log().path).st_size


@pytest.mark.parametrize("records", ["own", "openssl"])
def test_both_ends_know_each_other(
    authority: Authority, alice: WorkloadCertificate, bob: WorkloadCertificate, records: Records
) -> None:
    cache = ContextCache(records)
    one = Handshake(cache.client(alice), ServerMustBe([bob.identity]))
    other = Handshake(cache.server(bob), ClientMustBe(["cluster.local"]))
    one.start()
    near, far = shake(one, other)
    assert near.peer.identity == bob.identity
    assert far.peer.identity == alice.identity
    assert far.peer.presented == "spiffe://cluster.local/ns/shop/sa/alice"
    assert far.peer.serial == alice.serial
    assert far.peer.not_after == alice.not_after
    assert far.peer.chain == alice.chain
    assert x509.load_der_x509_certificate(far.peer.chain[-1]) == authority.root
    assert near.alpn == far.alpn == "h2"
    assert near.cipher == far.cipher
    assert near.leftover == far.leftover == b""
    assert near.session.implementation == records
    assert open_all(far.session, seal(near.session, b"ping"))[1] == b"ping"
    assert open_all(near.session, seal(far.session, b"pong"))[1] == b"pong"


def test_no_secret_stays_in_the_key_log(
    alice: WorkloadCertificate, bob: WorkloadCertificate
) -> None:
    one, other = client(alice), server(bob)
    other.feed(one.outgoing())
    assert key_log_size() == 0
    one.feed(other.outgoing())
    assert key_log_size() == 0
    other.feed(one.outgoing())
    assert one.done
    assert other.done
    assert key_log_size() == 0
    assert one._secrets == other._secrets == {}


def test_two_hundred_interleaved_handshakes_keep_their_secrets_apart(
    alice: WorkloadCertificate, bob: WorkloadCertificate
) -> None:
    cache = ContextCache()
    rng = random.Random(3)
    pairs = []
    for _ in range(200):
        one = Handshake(cache.client(alice), accept_anybody)
        other = Handshake(cache.server(bob), accept_anybody)
        one.start()
        pairs.append((one, other))
    waiting = list(pairs)
    while waiting:
        one, other = pair = rng.choice(waiting)
        if data := one.outgoing():
            other.feed(data)
        elif data := other.outgoing():
            one.feed(data)
        else:
            waiting.remove(pair)
    for i, (one, other) in enumerate(pairs):
        near, far = one.result.session, other.result.session
        assert near.implementation == far.implementation == "own"
        data = b"pair %d" % i
        assert open_all(far, seal(near, data))[1] == data
        assert open_all(near, seal(far, data))[1] == data


def test_key_log_takes_only_what_belongs_to_the_handshake() -> None:
    key_log = KeyLog()
    mine, other = "ab" * 32, "cd" * 32
    with open(key_log.path, "a") as file:
        file.write(f"# a comment\nCLIENT_TRAFFIC_SECRET_0 {mine} 0102\n")
        file.write(f"SERVER_TRAFFIC_SECRET_0 {other} 0304\n")
        file.write(f"SERVER_TRAFFIC_SECRET_0 {mine} 0506\n" + "#" * 100_000)
    secrets: dict[str, bytes] = {}
    key_log.take(mine, secrets)
    assert secrets == {
        "CLIENT_TRAFFIC_SECRET_0": b"\1\2",
        "SERVER_TRAFFIC_SECRET_0": b"\5\6",
    }
    assert os.stat(key_log.path).st_size == 0


def test_client_random_is_found_across_records(alice: WorkloadCertificate) -> None:
    hello = client(alice).outgoing()
    expected = hello[11:43].hex()
    assert client_random(hello) == expected
    message = hello[5:]
    pieces = b"".join(
        b"\x16\x03\x01" + len(message[i : i + 7]).to_bytes(2, "big") + message[i : i + 7]
        for i in range(0, len(message), 7)
    )
    assert client_random(pieces) == expected
    assert client_random(pieces[:60]) is None
    assert client_random(b"GET / HTTP/1.1\r\nHost: somewhere.example.com\r\n\r\n") is None
    assert client_random(b"") is None


@pytest.mark.parametrize("we_serve", [False, True])
def test_bytes_one_by_one(
    alice: WorkloadCertificate, bob: WorkloadCertificate, we_serve: bool
) -> None:
    peer = PlainPeer(plain_context(bob, server_side=not we_serve), server_side=not we_serve)
    ours = server(alice) if we_serve else client(alice)
    wire = peer.step(ours.outgoing())
    while not (ours.done and peer.done):
        for i in range(len(wire)):
            ours.feed(wire[i : i + 1])
        wire = peer.step(ours.outgoing())
    assert ours.result.session.implementation == "own"
    assert open_all(ours.result.session, wire)[1] == b""
    assert open_all(ours.result.session, peer.write(b"hello"))[1] == b"hello"


def test_data_behind_the_last_flight_is_left_over(
    alice: WorkloadCertificate, bob: WorkloadCertificate
) -> None:
    ours = server(alice)
    peer = PlainPeer(plain_context(bob, server_side=False), server_side=False)
    ours.feed(peer.step(b""))
    flight = peer.step(ours.outgoing())
    assert peer.done
    data = peer.write(b"early bird")
    ours.feed(flight + data + data[:3])
    assert ours.result.leftover == data + data[:3]
    assert open_all(ours.result.session, ours.result.leftover) == (len(data), b"early bird")
    with pytest.raises(RuntimeError, match="is done"):
        ours.feed(b"more")


def test_tickets_of_an_ordinary_server_are_counted_and_ignored(
    alice: WorkloadCertificate, bob: WorkloadCertificate
) -> None:
    context = plain_context(bob, server_side=True)
    context.num_tickets = 2
    peer = PlainPeer(context, server_side=True)
    result = shake_with_plain(client(alice), peer)
    assert result.session.ktls_parameters(sending=False).sequence == 2
    assert open_all(result.session, peer.write(b"hello"))[1] == b"hello"


def test_hello_retry_request(alice: WorkloadCertificate, bob: WorkloadCertificate) -> None:
    context = plain_context(bob, server_side=True)
    # OpenSSL guesses X25519 in its first ClientHello.
    context.set_ecdh_curve("secp384r1")
    peer = PlainPeer(context, server_side=True)
    result = shake_with_plain(client(alice), peer)
    assert result.session.implementation == "own"
    assert open_all(result.session, peer.write(b"hello"))[1] == b"hello"


def test_our_server_gives_no_tickets(alice: WorkloadCertificate, bob: WorkloadCertificate) -> None:
    near, far = shake(client(alice), server(bob))
    assert far.session.ktls_parameters(sending=True).sequence == 0
    assert near.session.ktls_parameters(sending=False).sequence == 0


def test_client_hello_names_no_server_and_offers_only_tls_1_3(alice: WorkloadCertificate) -> None:
    extensions = client_hello_extensions(client(alice).outgoing())
    assert 0 not in extensions, "server_name"
    assert extensions[43] == b"\x02\x03\x04", "supported_versions"
    assert extensions[16] == b"\x00\x03\x02h2", "application_layer_protocol_negotiation"
    assert 41 not in extensions, "pre_shared_key"


def client_hello_extensions(wire: bytes) -> dict[int, bytes]:
    at = 5 + 4 + 2 + 32
    at += 1 + wire[at]
    at += 2 + int.from_bytes(wire[at : at + 2], "big")
    at += 1 + wire[at]
    end = at + 2 + int.from_bytes(wire[at : at + 2], "big")
    at += 2
    found = {}
    while at < end:
        kind, size = (int.from_bytes(wire[at + i : at + i + 2], "big") for i in (0, 2))
        found[kind] = wire[at + 4 : at + 4 + size]
        at += 4 + size
    return found


def test_peer_without_alpn_is_taken(alice: WorkloadCertificate, bob: WorkloadCertificate) -> None:
    context = plain_context(bob, server_side=False)
    silent = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    silent.check_hostname = False
    silent.verify_mode = ssl.CERT_NONE
    with open(os.memfd_create("key"), "wb") as file:
        file.write(bob.private_key_pem + bob.chain_pem)
        file.flush()
        silent.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    assert shake_with_plain(server(alice), PlainPeer(context, server_side=False)).alpn == "h2"
    assert shake_with_plain(server(alice), PlainPeer(silent, server_side=False)).alpn is None


def test_contexts_are_made_once_per_certificate(
    authority: Authority, alice: WorkloadCertificate
) -> None:
    cache = ContextCache()
    again = WorkloadCertificate.from_bytes(alice.to_bytes())
    assert cache.server(alice) is cache.server(again)
    assert cache.client(alice) is cache.client(alice)
    assert cache.client(alice) is not cache.server(alice)
    assert cache.server(authority.workload(alice.identity)) is not cache.server(alice)


def test_roots_of_both_generations_are_accepted_while_they_rotate(
    authority: Authority, bob: WorkloadCertificate
) -> None:
    new = make_root("new root")
    alice_new = new.workload(Identity("cluster.local", "shop", "alice"))
    both = alice_new.roots_pem + bob.roots_pem
    near, far = shake(
        client(with_roots(alice_new, both)),
        server(with_roots(bob, both)),
    )
    assert far.peer.identity == alice_new.identity
    assert near.peer.identity == bob.identity


def with_roots(certificate: WorkloadCertificate, roots: bytes) -> WorkloadCertificate:
    return dataclasses.replace(certificate, roots_pem=roots)


SUITE_CHECK = """
import sys
from tests.support.pki import make_root
from tests.support.tls import *
from ztunnel.mesh.identity import Identity

suite, implementation = sys.argv[1:]
authority = make_root()
alice = authority.workload(Identity("cluster.local", "shop", "alice"))
for serve in (False, True):
    peer = PlainPeer(plain_context(alice, server_side=not serve), server_side=not serve)
    result = shake_with_plain(server(alice) if serve else client(alice), peer)
    assert result.cipher == suite, result.cipher
    assert result.session.implementation == implementation
    data = bytes(range(256)) * 200
    assert peer.read(seal(result.session, data)) == data
    assert open_all(result.session, peer.write(data))[1] == data
"""


@pytest.mark.parametrize(
    ("suite", "implementation"),
    [
        ("TLS_AES_128_GCM_SHA256", "own"),
        ("TLS_CHACHA20_POLY1305_SHA256", "own"),
        ("TLS_AES_128_CCM_SHA256", "openssl"),
    ],
)
def test_other_suites_with_openssl(
    tmp_path: "os.PathLike[str]", suite: str, implementation: str
) -> None:
    # Python cannot choose TLS 1.3 suites before 3.15; an OpenSSL configuration can.
    config = os.path.join(tmp_path, "openssl.cnf")
    with open(config, "w") as file:
        file.write(
            "openssl_conf = init\n[init]\nssl_conf = ssl\n[ssl]\nsystem_default = default\n"
            f"[default]\nCiphersuites = {suite}\n"
        )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SUITE_CHECK, suite, implementation],
        env={**os.environ, "OPENSSL_CONF": config},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert ("records are left to OpenSSL" in done.stderr) == (implementation == "openssl")
