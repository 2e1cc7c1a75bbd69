"""The control plane as a whole, with real clients on loopback."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from daemonset.control_plane.ca.issuer import new_key
from daemonset.control_plane.ca.tokens import TokenSubject
from daemonset.control_plane.config import ControlPlaneConfig
from daemonset.control_plane.server import ControlPlane
from daemonset.control_plane.sources.folder import FolderError
from daemonset.control_plane.translation.resource import ADDRESS, AUTHORIZATION
from tests.support.delta_stream import delta_stream
from ztunnel.proto import ca_pb2

MESH = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: node-a, serviceAccountName: web}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {nodeName: node-b, serviceAccountName: db}
status: {podIP: 10.0.1.1}
"""
POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-web, namespace: shop}
spec:
  selector: {matchLabels: {app: db}}
  rules:
  - from:
    - source: {principals: ["cluster.local/ns/shop/sa/web"]}
"""
ZTUNNEL = TokenSubject("istio-system", "ztunnel", node="node-a")


def certificate_request(identity: str = "") -> ca_pb2.IstioCertificateRequest:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = builder.sign(new_key(), hashes.SHA256())
    request = ca_pb2.IstioCertificateRequest(csr=csr.public_bytes(Encoding.PEM).decode())
    if identity:
        request.metadata["ImpersonatedIdentity"] = identity
    return request


def create_certificate(
    port: int, roots_pem: str, token: str, request: ca_pb2.IstioCertificateRequest
) -> ca_pb2.IstioCertificateResponse:
    credentials = grpc.ssl_channel_credentials(roots_pem.encode())
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        call = channel.unary_unary(
            "/istio.v1.auth.IstioCertificateService/CreateCertificate",
            request_serializer=ca_pb2.IstioCertificateRequest.SerializeToString,
            response_deserializer=ca_pb2.IstioCertificateResponse.FromString,
        )
        response: ca_pb2.IstioCertificateResponse = call(
            request, metadata=[("authorization", f"Bearer {token}")], timeout=10
        )
        return response


async def test_policy_written_into_the_folder_reaches_a_client_with_its_workload(
    config: ControlPlaneConfig,
    nursery: trio.Nursery,
) -> None:
    (config.source / "mesh.yaml").write_text(MESH)
    plane = ControlPlane(config)
    ports = await nursery.start(plane.run)

    def client(written: Callable[[], object]) -> list[tuple[str, list[str], list[str]]]:
        seen = []
        with delta_stream(f"127.0.0.1:{ports.xds}") as stream:
            stream.send(ADDRESS, node="node-a")
            stream.send(AUTHORIZATION)
            for number in range(4):
                response = stream.receive()
                names = sorted(resource.name for resource in response.resources)
                seen.append((response.type_url, names, list(response.removed_resources)))
                if number == 1:
                    written()
        return seen

    def write() -> None:
        (config.source / "policy.yaml").write_text(POLICY)

    seen = await trio.to_thread.run_sync(client, write)
    assert seen[:2] == [
        (AUTHORIZATION, ["istio-system/istio_converted_static_strict"], []),
        (ADDRESS, ["Kubernetes//Pod/shop/db", "Kubernetes//Pod/shop/web"], []),
    ]
    # The policy goes first, then the one workload that carries it: and nothing else.
    assert seen[2:] == [
        (AUTHORIZATION, ["shop/only-web"], []),
        (ADDRESS, ["Kubernetes//Pod/shop/db"], []),
    ]
    nursery.cancel_scope.cancel()


async def test_a_node_proxy_gets_the_certificate_of_a_pod_on_its_node(
    config: ControlPlaneConfig, nursery: trio.Nursery
) -> None:
    (config.source / "mesh.yaml").write_text(MESH)
    plane = ControlPlane(config)
    ports = await nursery.start(plane.run)
    token = plane.mint_token(ZTUNNEL)
    request = certificate_request("spiffe://cluster.local/ns/shop/sa/web")
    response = await trio.to_thread.run_sync(
        create_certificate, ports.tls, plane.roots_pem, token, request
    )
    leaf, intermediate, roots = response.cert_chain
    for element in (leaf, intermediate, roots):
        assert element.count("BEGIN CERTIFICATE") == 1
        assert element.endswith("\n")
    assert roots == plane.roots_pem
    certificate = x509.load_pem_x509_certificate(leaf.encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical
    assert [name.value for name in names.value] == ["spiffe://cluster.local/ns/shop/sa/web"]
    issuer = x509.load_pem_x509_certificate(intermediate.encode())
    certificate.verify_directly_issued_by(issuer)
    issuer.verify_directly_issued_by(x509.load_pem_x509_certificate(roots.encode()))
    nursery.cancel_scope.cancel()


async def test_a_node_proxy_gets_no_certificate_of_a_pod_on_another_node(
    config: ControlPlaneConfig, nursery: trio.Nursery
) -> None:
    (config.source / "mesh.yaml").write_text(MESH)
    plane = ControlPlane(config)
    ports = await nursery.start(plane.run)
    request = certificate_request("spiffe://cluster.local/ns/shop/sa/db")
    with pytest.raises(grpc.RpcError) as caught:
        await trio.to_thread.run_sync(
            create_certificate, ports.tls, plane.roots_pem, plane.mint_token(ZTUNNEL), request
        )
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "live on other nodes, none on node-a" in caught.value.details()
    nursery.cancel_scope.cancel()


async def test_a_folder_with_errors_is_not_served_from_the_start(
    config: ControlPlaneConfig, nursery: trio.Nursery
) -> None:
    (config.source / "policy.yaml").write_text(POLICY.replace("principals", "principal"))
    with pytest.raises(FolderError, match=r"policy.yaml:9: .*only-web.*principal"):
        await ControlPlane(config).run()
