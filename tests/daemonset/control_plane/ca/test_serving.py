"""The server certificate, renewed while it serves."""

from __future__ import annotations

import datetime
import ssl
import time
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from daemonset.control_plane.ca import serving as serving_module
from daemonset.control_plane.ca.authority import AuthorityHolder
from daemonset.control_plane.ca.generations import open_state
from daemonset.control_plane.ca.serving import ServingCertificate
from daemonset.control_plane.grpc_server import GrpcThread, Listener
from daemonset.control_plane.translation.resource import ADDRESS, workload_resource
from daemonset.control_plane.xds.service import DiscoveryService
from daemonset.control_plane.xds.snapshot import Snapshot
from tests.support.delta_stream import DeltaStream, delta_stream
from ztunnel.proto import workload_pb2


def served(port: int) -> x509.Certificate:
    pem = ssl.get_server_certificate(("127.0.0.1", port), timeout=5)
    return x509.load_pem_x509_certificate(pem.encode())


def test_a_new_authority_serves_a_new_certificate_without_a_restart(tmp_path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    first = open_state(tmp_path / "a", "cluster.local", now)
    second = open_state(tmp_path / "b", "cluster.local", now)
    holder = AuthorityHolder(first)
    serving = ServingCertificate(holder, ["istiod.istio-system.svc", "127.0.0.1", "localhost"])
    server = GrpcThread()
    (port,) = server.start(lambda: [Listener("127.0.0.1", 0, [], serving.credentials())])
    try:
        before = served(port)
        before.verify_directly_issued_by(first.issuer.certificate)
        names = before.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["istiod.istio-system.svc", "localhost"]
        assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
        assert served(port) == before
        holder.replace(second)
        served(port).verify_directly_issued_by(second.issuer.certificate)
    finally:
        server.stop()


def stream_of(count: int) -> tuple[Snapshot, ...]:
    """One mesh after the other, each with another pod."""
    found = [Snapshot(1, {}, {})]
    for number in range(1, count):
        message = workload_pb2.Workload(uid=f"c//Pod/ns/{number}")
        resource = workload_resource(message, ())
        found.append(Snapshot(number + 1, {resource.name: resource}, {}, found[-1]))
    return tuple(found)


def test_renewal_and_a_new_root_drop_no_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lifetime = datetime.timedelta(seconds=2)
    monkeypatch.setattr(serving_module, "_LIFETIME", lifetime)
    now = datetime.datetime.now(datetime.UTC)
    first = open_state(tmp_path / "a", "cluster.local", now)
    second = open_state(tmp_path / "b", "cluster.local", now)
    holder = AuthorityHolder(first)
    serving = ServingCertificate(holder, ["localhost"])
    meshes = stream_of(4)
    discovery = DiscoveryService(meshes[0], lambda: None)
    server = GrpcThread()
    handlers = [discovery.handler(None)]
    (port,) = server.start(lambda: [Listener("localhost", 0, handlers, serving.credentials())])

    def follow(stream: DeltaStream, mesh: Snapshot) -> None:
        server.ask(lambda: discovery.publish(mesh))
        assert [one.name for one in stream.receive().resources] == list(mesh.addresses)

    try:
        credentials = grpc.ssl_channel_credentials(first.roots_pem.encode())
        with delta_stream(f"localhost:{port}", credentials) as stream:
            stream.send(ADDRESS)
            stream.receive()
            before = served(port)
            follow(stream, meshes[1])
            # Until the certificate that the stream was opened with has been replaced, and ended.
            deadline = time.monotonic() + 60
            while (renewed := served(port)) == before:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            time.sleep(max(0.0, before.not_valid_after_utc.timestamp() - time.time()))
            renewed.verify_directly_issued_by(first.issuer.certificate)
            follow(stream, meshes[2])
            holder.replace(second)
            served(port).verify_directly_issued_by(second.issuer.certificate)
            follow(stream, meshes[3])
    finally:
        server.stop()
