"""The CA on Kubernetes: real tokens, real reviews, and every way to be refused."""

from __future__ import annotations

import base64
import logging

import grpc
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from daemonset.control_plane.ca.issuer import new_key
from daemonset.control_plane.translation.resource import ADDRESS, AUTHORIZATION
from tests.support.delta_stream import delta_stream
from tests.support.kube.cluster import Cluster, Json
from tests.support.kube.objects import account, node, pod, run, running
from tests.support.kube.plane import PATIENCE, Running, control_plane
from ztunnel.proto import ca_pb2

AUDIENCE = "istio-ca"
WEB = "spiffe://cluster.local/ns/shop/sa/web"
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
DENIED = grpc.StatusCode.PERMISSION_DENIED


@pytest.fixture(scope="module")
def mesh(cluster: Cluster) -> Cluster:
    """Two nodes with a ztunnel each, and pods of every sort."""
    for name in ("istio-system", "ambient-system", "elsewhere"):
        cluster.namespace(name)
    cluster.namespace("shop", **{"istio.io/dataplane-mode": "ambient"})
    for name in ("node-a", "node-b"):
        node(cluster, name)
    for namespace, name in (
        ("istio-system", "ztunnel"),
        ("istio-system", "other"),
        ("elsewhere", "ztunnel"),
        *(("shop", name) for name in ("web", "far", "done", "plain", "brief")),
    ):
        account(cluster, namespace, name)
    pods = [
        pod("istio-system", "zt-a", account="ztunnel"),
        pod("istio-system", "zt-b", account="ztunnel", node="node-b"),
        pod("istio-system", "other-a", account="other"),
        pod("elsewhere", "zt-a", account="ztunnel"),
        pod("shop", "web", account="web"),
        pod("shop", "far", account="far", node="node-b"),
        pod("shop", "done", account="done"),
        pod("shop", "plain", account="plain", labels={"istio.io/dataplane-mode": "none"}),
        pod("shop", "brief", account="brief"),
    ]
    for number, item in enumerate(pods, 1):
        run(cluster, item, f"10.0.0.{number}")
    cluster.set_status(pod("shop", "done"), running("10.0.0.7", "Succeeded"))
    return cluster


def read_pod(cluster: Cluster, namespace: str, name: str) -> Json:
    found: Json = cluster.call("GET", f"/api/v1/namespaces/{namespace}/pods/{name}")
    return found


def token_of(
    cluster: Cluster, namespace: str, name: str, service_account: str, audience: str = AUDIENCE
) -> str:
    """As the kubelet projects it into the pod."""
    bound = read_pod(cluster, namespace, name)
    return cluster.token(namespace, service_account, audience=audience, pod=bound)


def ztunnel_token(cluster: Cluster) -> str:
    return token_of(cluster, "istio-system", "zt-a", "ztunnel")


def ask(running: Running, token: str, identity: str = "") -> x509.Certificate:
    """A certificate, by way of the control plane's port."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = builder.sign(new_key(), hashes.SHA256()).public_bytes(Encoding.PEM).decode()
    request = ca_pb2.IstioCertificateRequest(csr=csr)
    if identity:
        request.metadata["ImpersonatedIdentity"] = identity
    with channel_to(running) as channel:
        call = channel.unary_unary(
            "/istio.v1.auth.IstioCertificateService/CreateCertificate",
            request_serializer=ca_pb2.IstioCertificateRequest.SerializeToString,
            response_deserializer=ca_pb2.IstioCertificateResponse.FromString,
        )
        metadata = [("authorization", f"Bearer {token}")] if token else []
        chain = call(request, metadata=metadata, timeout=60).cert_chain
    assert chain[-1] == running.plane.roots_pem
    return x509.load_pem_x509_certificate(chain[0].encode())


def channel_to(running: Running) -> grpc.Channel:
    """By the name that Istio's ztunnel expects of a control plane."""
    credentials = grpc.ssl_channel_credentials(running.plane.roots_pem.encode())
    name = ("grpc.ssl_target_name_override", "istiod.istio-system.svc")
    return grpc.secure_channel(f"127.0.0.1:{running.ports.tls}", credentials, [name])


async def signed(running: Running, token: str, identity: str = "") -> str:
    """The identity in the certificate."""
    certificate = await trio.to_thread.run_sync(ask, running, token, identity)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    [uri] = names.value.get_values_for_type(x509.UniformResourceIdentifier)
    return uri


async def refused(running: Running, token: str, identity: str = "") -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as failure:
        await trio.to_thread.run_sync(ask, running, token, identity)
    return failure.value.code(), failure.value.details()


async def published(running: Running, after: int) -> None:
    """Wait until something later than generation ``after`` is in force."""
    with trio.fail_after(PATIENCE):
        while running.plane.generation <= after:
            await trio.sleep(0.02)


async def test_a_ztunnel_gets_certificates_for_the_pods_of_its_node(mesh: Cluster) -> None:
    async with control_plane(mesh) as running:
        assert await signed(running, ztunnel_token(mesh), WEB) == WEB
        far = token_of(mesh, "istio-system", "zt-b", "ztunnel")
        uri = "spiffe://cluster.local/ns/shop/sa/far"
        assert await signed(running, far, uri) == uri


async def test_anybody_gets_a_certificate_of_their_own(mesh: Cluster) -> None:
    async with control_plane(mesh) as running:
        token = token_of(mesh, "shop", "web", "web")
        assert await signed(running, token) == WEB


async def test_without_a_token_nobody_gets_anything(mesh: Cluster) -> None:
    async with control_plane(mesh) as running:
        assert (await refused(running, ""))[0] == UNAUTHENTICATED
        assert (await refused(running, "not-a-token", WEB))[0] == UNAUTHENTICATED


async def test_a_token_for_another_audience_is_refused(mesh: Cluster) -> None:
    async with control_plane(mesh) as running:
        token = token_of(mesh, "istio-system", "zt-a", "ztunnel", audience="vault")
        assert (await refused(running, token, WEB))[0] == UNAUTHENTICATED
        # The API server's own audience, which every pod has a token for.
        token = token_of(mesh, "istio-system", "zt-a", "ztunnel", audience="")
        assert (await refused(running, token, WEB))[0] == UNAUTHENTICATED


async def test_an_account_that_is_not_listed_may_not_speak_for_others(mesh: Cluster) -> None:
    async with control_plane(mesh) as running:
        token = token_of(mesh, "istio-system", "other-a", "other")
        status, text = await refused(running, token, WEB)
        assert status == DENIED
        assert "istio-system/other is not a node proxy" in text


async def test_a_listed_name_in_another_namespace_may_not_speak_for_others(mesh: Cluster) -> None:
    async with control_plane(mesh) as running:
        token = token_of(mesh, "elsewhere", "zt-a", "ztunnel")
        status, text = await refused(running, token, WEB)
        assert status == DENIED
        assert "elsewhere/ztunnel is not a node proxy" in text


async def test_a_pod_of_another_node_is_refused(mesh: Cluster) -> None:
    async with control_plane(mesh) as running:
        token = ztunnel_token(mesh)
        status, text = await refused(running, token, "spiffe://cluster.local/ns/shop/sa/far")
        assert status == DENIED
        assert "live on other nodes, none on node-a" in text


async def test_an_account_without_a_pod_is_refused(mesh: Cluster) -> None:
    async with control_plane(mesh) as running:
        token = ztunnel_token(mesh)
        status, text = await refused(running, token, "spiffe://cluster.local/ns/shop/sa/ghost")
        assert status == DENIED
        assert "no pod of shop/ghost lives on node-a" in text


async def test_a_pod_that_has_ended_is_refused(mesh: Cluster) -> None:
    async with control_plane(mesh) as running:
        token = ztunnel_token(mesh)
        status, text = await refused(running, token, "spiffe://cluster.local/ns/shop/sa/done")
        assert status == DENIED
        assert "no pod of shop/done lives on node-a" in text


async def test_a_pod_that_is_not_enrolled_is_refused(mesh: Cluster) -> None:
    async with control_plane(mesh) as running:
        token = ztunnel_token(mesh)
        status, text = await refused(running, token, "spiffe://cluster.local/ns/shop/sa/plain")
        assert status == DENIED
        assert "are not in the mesh" in text


async def test_another_trust_domain_is_refused(mesh: Cluster) -> None:
    async with control_plane(mesh) as running:
        token = ztunnel_token(mesh)
        status, text = await refused(running, token, "spiffe://evil.example/ns/shop/sa/web")
        assert status == DENIED
        assert "trust domain 'evil.example' is not the mesh's" in text


async def test_a_token_that_no_pod_holds_may_not_speak_for_others(mesh: Cluster) -> None:
    async with control_plane(mesh) as running:
        token = mesh.token("istio-system", "ztunnel", audience=AUDIENCE)
        status, text = await refused(running, token, WEB)
        assert status == DENIED
        assert "bound neither to a pod nor to a node" in text


async def test_a_ztunnel_whose_pod_is_gone_may_not_speak_for_others(mesh: Cluster) -> None:
    """Also while its token is remembered from before."""
    item = pod("istio-system", "zt-brief", account="ztunnel")
    await trio.to_thread.run_sync(run, mesh, item, "10.0.0.50")
    async with control_plane(mesh) as running:
        token = token_of(mesh, "istio-system", "zt-brief", "ztunnel")
        assert await signed(running, token, WEB) == WEB
        generation = running.plane.generation
        await trio.to_thread.run_sync(mesh.delete, item)
        await published(running, generation)
        status, text = await refused(running, token, WEB)
        assert status == DENIED
        assert "the caller's pod istio-system/zt-brief is not there" in text
        # A pod of the same name that comes later is another one.
        generation = running.plane.generation
        await trio.to_thread.run_sync(run, mesh, item, "10.0.0.51")
        await published(running, generation)
        status, text = await refused(running, token, WEB)
        assert status == DENIED
        assert "is another one by now" in text


async def test_an_account_whose_last_pod_has_gone_is_refused_from_then_on(mesh: Cluster) -> None:
    async with control_plane(mesh) as running:
        token, uri = ztunnel_token(mesh), "spiffe://cluster.local/ns/shop/sa/brief"
        assert await signed(running, token, uri) == uri
        generation = running.plane.generation
        await trio.to_thread.run_sync(mesh.delete, pod("shop", "brief"))
        await published(running, generation)
        status, text = await refused(running, token, uri)
        assert status == DENIED
        assert "no pod of shop/brief" in text


async def test_nobody_is_let_in_while_the_api_server_is_away(mesh: Cluster) -> None:
    async with control_plane(mesh) as running:
        known, unknown = ztunnel_token(mesh), token_of(mesh, "shop", "web", "web")
        assert await signed(running, known, WEB) == WEB
        await trio.to_thread.run_sync(mesh.stop_api)
        try:
            assert await signed(running, known, WEB) == WEB  # remembered for half a minute
            assert (await refused(running, unknown))[0] == UNAUTHENTICATED
        finally:
            await trio.to_thread.run_sync(mesh.start_api)


def addresses(running: Running, token: str, claimed: str = "node-a") -> tuple[str, set[str]]:
    """Who the control plane takes the client for, and what it is sent."""
    credentials = grpc.ssl_channel_credentials(running.plane.roots_pem.encode())
    target = f"localhost:{running.ports.tls}"
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with delta_stream(target, credentials, metadata) as client:
        client.send(ADDRESS, node=claimed)
        client.send(AUTHORIZATION)
        names: set[str] = set()
        for _ in range(2):
            names.update(resource.name for resource in client.receive().resources)
        [connected] = running.plane.discovery_clients
        return connected.access.identity, names


async def no_stream(running: Running, token: str, claimed: str = "node-a") -> tuple[object, str]:
    with pytest.raises(grpc.RpcError) as failure:
        await trio.to_thread.run_sync(addresses, running, token, claimed)
    return failure.value.code(), failure.value.details()


async def test_xds_authenticates_its_clients(mesh: Cluster) -> None:
    async with control_plane(mesh) as running:
        token = ztunnel_token(mesh)
        identity, names = await trio.to_thread.run_sync(addresses, running, token)
        assert identity == "istio-system/ztunnel on node-a"
        assert "Kubernetes//Pod/shop/web" in names
        for wrong in ("", "not-a-token"):
            assert (await no_stream(running, wrong))[0] == UNAUTHENTICATED


async def test_xds_serves_no_node_but_that_of_the_token(mesh: Cluster) -> None:
    async with control_plane(mesh) as running:
        status, text = await no_stream(running, ztunnel_token(mesh), "node-b")
        assert status == DENIED
        assert "says that it is on node 'node-b'" in text


async def test_xds_serves_no_token_that_no_pod_holds(mesh: Cluster) -> None:
    async with control_plane(mesh) as running:
        token = mesh.token("istio-system", "ztunnel", audience=AUDIENCE)
        status, text = await no_stream(running, token)
        assert status == DENIED
        assert "bound neither to a pod nor to a node" in text


async def test_xds_serves_nobody_who_is_no_proxy(mesh: Cluster) -> None:
    async with control_plane(mesh) as running:
        for namespace, name, service_account in (
            ("shop", "web", "web"),
            ("elsewhere", "zt-a", "ztunnel"),
        ):
            token = token_of(mesh, namespace, name, service_account)
            status, text = await no_stream(running, token)
            assert status == DENIED
            assert f"{namespace}/{service_account} is no node proxy" in text


async def test_no_secret_is_in_the_log(mesh: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    path = "/api/v1/namespaces/istio-system/secrets/istio-ca-secret"
    async with control_plane(mesh) as running:
        good, unbound = ztunnel_token(mesh), mesh.token("istio-system", "ztunnel", audience="vault")
        assert await signed(running, good, WEB) == WEB
        await trio.to_thread.run_sync(addresses, running, good)
        for token in (unbound, good[:-2]):
            await refused(running, token, WEB)
            await no_stream(running, token)
        await running.backend.read_authority()
        secret = await trio.to_thread.run_sync(mesh.call, "GET", path)
    assert "signed spiffe://cluster.local/ns/shop/sa/web" in caplog.text
    encoded = secret["data"]["ca-key.pem"]
    lines = base64.b64decode(encoded).decode().splitlines()[1:-1]
    assert lines
    for text in (encoded, *lines, *good.split("."), *unbound.split(".")):
        assert text not in caplog.text
