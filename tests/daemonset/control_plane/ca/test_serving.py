"""The server certificate, renewed while it serves."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

from cryptography import x509

from daemonset.control_plane.ca.authority import AuthorityHolder
from daemonset.control_plane.ca.generations import open_state
from daemonset.control_plane.ca.serving import ServingCertificate
from daemonset.control_plane.grpc_server import GrpcThread, Listener


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
