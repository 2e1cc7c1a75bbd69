"""The control plane as a whole, with real clients on loopback."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import logging
import threading
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from daemonset.control_plane.ca.generations import open_state, rotate
from daemonset.control_plane.ca.issuer import key_to_pem, new_key
from daemonset.control_plane.ca.lifetimes import Lifetimes
from daemonset.control_plane.ca.tokens import TokenSubject
from daemonset.control_plane.config import ControlPlaneConfig
from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.server import ControlPlane
from daemonset.control_plane.sources.folder import FolderError
from daemonset.control_plane.translation.resource import ADDRESS, AUTHORIZATION
from daemonset.control_plane.translation.translate import Translator
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


def certificate_request(
    identity: str = "", key: ec.EllipticCurvePrivateKey | None = None
) -> ca_pb2.IstioCertificateRequest:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = builder.sign(key or new_key(), hashes.SHA256())
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


def pod_text(number: int, labels: str = "{app: web}") -> str:
    return f"""
apiVersion: v1
kind: Pod
metadata: {{name: pod-{number}, namespace: shop, labels: {labels}}}
spec: {{nodeName: node-{number % 3}, serviceAccountName: web}}
status: {{podIP: 10.1.{number // 200}.{number % 200 + 1}}}
---"""


async def test_one_changed_pod_is_one_resource_on_the_wire(
    config: ControlPlaneConfig, nursery: trio.Nursery
) -> None:
    """On both ports, for who asks for everything and for who asks for some; and none for one that
    comes back with the versions it has."""
    for file in range(30):
        pods = "".join(pod_text(file * 10 + number) for number in range(10))
        (config.source / f"pods-{file}.yaml").write_text(pods)
    plane = ControlPlane(config)
    ports = await nursery.start(plane.run)
    token = plane.mint_token(ZTUNNEL)
    secure = grpc.ssl_channel_credentials(plane.roots_pem.encode())

    def follow() -> None:
        with (
            delta_stream(f"127.0.0.1:{ports.xds}") as all_of_it,
            delta_stream(
                f"localhost:{ports.tls}", secure, [("authorization", f"Bearer {token}")]
            ) as encrypted,
            delta_stream(f"127.0.0.1:{ports.xds}") as some,
        ):
            all_of_it.send(ADDRESS)
            encrypted.send(ADDRESS)
            some.send(ADDRESS, resource_names_subscribe=["/10.1.0.8", "/192.0.2.1"])
            first = all_of_it.receive()
            assert len(first.resources) == 300
            assert len(encrypted.receive().resources) == 300
            asked = some.receive()
            assert [one.name for one in asked.resources] == ["Kubernetes//Pod/shop/pod-7"]
            assert list(asked.removed_resources) == ["/192.0.2.1"]

            pods = [pod_text(number) for number in range(10)]
            pods[7] = pod_text(7, "{app: other}")
            (config.source / "pods-0.yaml").write_text("".join(pods))
            for stream in (all_of_it, encrypted, some):
                changed = stream.receive()
                assert [one.name for one in changed.resources] == ["Kubernetes//Pod/shop/pod-7"]
                assert list(changed.removed_resources) == []

            (config.source / "pods-0.yaml").write_text("".join(pods[:9]))
            for stream in (all_of_it, encrypted):
                changed = stream.receive()
                assert list(changed.resources) == []
                assert list(changed.removed_resources) == ["Kubernetes//Pod/shop/pod-9"]

            versions = {one.name: one.version for one in first.resources}
            with delta_stream(f"127.0.0.1:{ports.xds}") as again:
                again.send(ADDRESS, initial_resource_versions=versions)
                missed = again.receive()
                assert [one.name for one in missed.resources] == ["Kubernetes//Pod/shop/pod-7"]
                assert list(missed.removed_resources) == ["Kubernetes//Pod/shop/pod-9"]

    await trio.to_thread.run_sync(follow)


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


async def test_certificates_are_good_for_as_long_as_the_operator_says(
    config: ControlPlaneConfig, nursery: trio.Nursery
) -> None:
    (config.source / "mesh.yaml").write_text(MESH)
    hour = datetime.timedelta(hours=1)
    plane = ControlPlane(dataclasses.replace(config, lifetimes=Lifetimes(hour, 2 * hour)))
    ports = await nursery.start(plane.run)

    async def life(asked: datetime.timedelta) -> datetime.timedelta:
        request = certificate_request("spiffe://cluster.local/ns/shop/sa/web")
        request.validity_duration = int(asked.total_seconds())
        now = datetime.datetime.now(datetime.UTC)
        response = await trio.to_thread.run_sync(
            create_certificate, ports.tls, plane.roots_pem, plane.mint_token(ZTUNNEL), request
        )
        leaf = x509.load_pem_x509_certificate(response.cert_chain[0].encode())
        return leaf.not_valid_after_utc - now

    minute = datetime.timedelta(minutes=1)
    for asked, given in ((0 * hour, hour), (2 * hour, 2 * hour)):
        assert given - minute < await life(asked) < given + minute
    with pytest.raises(grpc.RpcError) as caught:
        await life(3 * hour)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "a lifetime of 10800 s (longest: 7200 s)"
    nursery.cancel_scope.cancel()


async def test_a_folder_with_errors_is_not_served_from_the_start(
    config: ControlPlaneConfig, nursery: trio.Nursery
) -> None:
    (config.source / "policy.yaml").write_text(POLICY.replace("principals", "principal"))
    with pytest.raises(FolderError, match=r"policy.yaml:9: .*only-web.*principal"):
        await ControlPlane(config).run()


async def test_a_broken_folder_keeps_its_last_good_version_over_a_restart(
    config: ControlPlaneConfig, nursery: trio.Nursery
) -> None:
    (config.source / "mesh.yaml").write_text(MESH)
    (config.source / "policy.yaml").write_text(POLICY)
    async with trio.open_nursery() as inner:
        await inner.start(ControlPlane(config).run)
        inner.cancel_scope.cancel()
    (config.source / "policy.yaml").write_text(POLICY.replace("principals", "principal"))
    plane = ControlPlane(config)
    await nursery.start(plane.run)
    assert [problem.file for problem in plane.problems] == ["policy.yaml"]
    assert list(plane.objects.authorization_policies) == [("shop", "only-web")]
    nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while True:
            if condition():
                return
            await trio.sleep(0.01)


async def status_of(port: int, path: str) -> Any:
    def ask() -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return json.load(answer)

    return await trio.to_thread.run_sync(ask)


async def test_status_says_who_is_connected_and_what_is_wrong(
    config: ControlPlaneConfig, nursery: trio.Nursery
) -> None:
    (config.source / "mesh.yaml").write_text(MESH)
    plane = ControlPlane(config)
    ports = await nursery.start(plane.run)

    def client(rejected: threading.Event, done: threading.Event) -> None:
        with delta_stream(f"127.0.0.1:{ports.xds}") as stream:
            stream.send(ADDRESS, node="node-a")
            response = stream.receive(ack=False)
            stream.send(ADDRESS, response_nonce=response.nonce, error="no good")
            rejected.set()
            done.wait(10)

    rejected, done = threading.Event(), threading.Event()
    nursery.start_soon(trio.to_thread.run_sync, client, rejected, done)
    await trio.to_thread.run_sync(rejected.wait, 5)
    await plane.settled()
    (connected,) = await status_of(ports.status, "/debug/clients")
    assert connected["node_name"] == "node-a"
    assert connected["types"]["Address"]["rejected"] == 1
    assert connected["types"]["Address"]["last_rejection"] == "no good"
    (config.source / "bad.yaml").write_text("a: [")
    l7 = POLICY.replace("principals", "requestPrincipals")
    (config.source / "policy.yaml").write_text(l7)
    await until(lambda: bool(plane.problems and plane.findings))
    found = await status_of(ports.status, "/debug/findings")
    assert [problem["file"] for problem in found["refused"]] == ["bad.yaml"]
    assert found["findings"][0]["place"] == "policy.yaml:9"
    assert found["findings"][0]["severity"] == "error"
    resources = await status_of(ports.status, "/debug/resources")
    assert resources["addresses"]["Kubernetes//Pod/shop/web"]["workload"]["node"] == "node-a"
    assert resources["authorizations"]["shop/only-web"]["namespace"] == "shop"

    def metrics() -> str:
        url = f"http://127.0.0.1:{ports.status}/metrics"
        with urllib.request.urlopen(url, timeout=5) as answer:
            text: str = answer.read().decode()
            return text

    text = await trio.to_thread.run_sync(metrics)
    for line in (
        "ambient_xds_clients 1.0",
        'ambient_resources{type="address"} 2.0',
        'ambient_findings{severity="error"} 1.0',
        "ambient_refused_files 1.0",
        "ambient_xds_rejections_total 1.0",
    ):
        assert line in text
    done.set()
    nursery.cancel_scope.cancel()


async def test_a_pod_is_reached_through_hbone_once_its_agent_says_so(
    config: ControlPlaneConfig, nursery: trio.Nursery
) -> None:
    (config.source / "mesh.yaml").write_text(MESH)
    plane = ControlPlane(dataclasses.replace(config, agents_report=True))
    ports = await nursery.start(plane.run)

    async def protocol() -> str:
        resources = await status_of(ports.status, "/debug/resources")
        workload = resources["addresses"]["Kubernetes//Pod/shop/web"]["workload"]
        found: str = workload.get("tunnelProtocol", "NONE")
        return found

    assert await protocol() == "NONE"
    plane.report_captured("shop", "web", True)
    await until(lambda: plane.generation == 2)
    assert await protocol() == "HBONE"
    # Gone and back: another pod, which nobody has captured.
    (config.source / "mesh.yaml").write_text(MESH.replace("name: web,", "name: other,"))
    await until(lambda: plane.generation == 3)
    (config.source / "mesh.yaml").write_text(MESH)
    await until(lambda: plane.generation == 4)
    assert await protocol() == "NONE"
    nursery.cancel_scope.cancel()


async def test_reports_need_the_setting(config: ControlPlaneConfig) -> None:
    with pytest.raises(RuntimeError, match="goes by labels"):
        ControlPlane(config).report_captured("shop", "web", True)


async def test_a_folder_may_be_completed_and_watched(
    config: ControlPlaneConfig, nursery: trio.Nursery
) -> None:
    (config.source / "mesh.yaml").write_text(MESH.replace("status: {podIP: 10.0.0.1}", ""))

    def complete(objects: ObjectSet) -> ObjectSet:
        pods = {
            key: pod if pod.ips else dataclasses.replace(pod, ips=("10.0.0.99",))
            for key, pod in objects.pods.items()
        }
        return dataclasses.replace(objects, pods=pods)

    plane = ControlPlane(config, complete)
    seen: list[int] = []
    plane.on_objects(lambda objects: seen.append(len(objects.pods)))
    ports = await nursery.start(plane.run)
    resources = await status_of(ports.status, "/debug/resources")
    assert "Kubernetes//Pod/shop/web" in resources["addresses"]
    assert seen == [2]
    plane.refresh()
    await until(lambda: seen == [2, 2])
    (config.source / "mesh.yaml").unlink()
    await until(lambda: seen == [2, 2, 0])
    nursery.cancel_scope.cancel()


async def test_tls_streams_need_a_token(config: ControlPlaneConfig, nursery: trio.Nursery) -> None:
    (config.source / "mesh.yaml").write_text(MESH)
    plane = ControlPlane(config)
    ports = await nursery.start(plane.run)
    roots = (config.state / "root-cert.pem").read_bytes()
    assert roots == plane.roots_pem.encode()

    def stream(token: str) -> int:
        metadata = [("authorization", f"Bearer {token}")] if token else None
        credentials = grpc.ssl_channel_credentials(roots)
        with delta_stream(f"localhost:{ports.tls}", credentials, metadata) as opened:
            opened.send(ADDRESS)
            return len(opened.receive().resources)

    assert await trio.to_thread.run_sync(stream, plane.mint_token(ZTUNNEL)) == 2
    for token in ("", "x.y.z", plane.mint_token(ZTUNNEL, lifetime=-60.0)):
        with pytest.raises(grpc.RpcError) as caught:
            await trio.to_thread.run_sync(stream, token)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    nursery.cancel_scope.cancel()


PLAIN_POLICY = POLICY.replace("app: db", "app: web").replace("only-web", "for-web")


async def test_a_node_proxy_gets_the_policies_of_its_own_pods(
    config: ControlPlaneConfig, nursery: trio.Nursery
) -> None:
    (config.source / "mesh.yaml").write_text(MESH)
    (config.source / "policies.yaml").write_text(f"{POLICY}---{PLAIN_POLICY}")
    plane = ControlPlane(config)
    ports = await nursery.start(plane.run)
    roots = plane.roots_pem.encode()

    def policies(subject: TokenSubject, claimed: str = "") -> list[str]:
        metadata = [("authorization", f"Bearer {plane.mint_token(subject)}")]
        credentials = grpc.ssl_channel_credentials(roots)
        with delta_stream(f"localhost:{ports.tls}", credentials, metadata) as opened:
            opened.send(AUTHORIZATION, **({"node": claimed} if claimed else {}))
            return sorted(resource.name for resource in opened.receive().resources)

    async def refused(subject: TokenSubject, claimed: str = "") -> str:
        with pytest.raises(grpc.RpcError) as caught:
            await trio.to_thread.run_sync(policies, subject, claimed)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        details: str = caught.value.details()
        return details

    async def seen(subject: TokenSubject, claimed: str = "") -> list[str]:
        return await trio.to_thread.run_sync(policies, subject, claimed)

    there = dataclasses.replace(ZTUNNEL, node="node-b")
    assert await seen(ZTUNNEL, "node-a") == await seen(ZTUNNEL) == ["shop/for-web"]
    assert await seen(there, "node-b") == ["shop/only-web"]
    assert "says that it is on node 'node-b'" in await refused(ZTUNNEL, "node-b")
    nowhere = dataclasses.replace(ZTUNNEL, node="")
    assert "bound neither to a pod nor to a node" in await refused(nowhere)
    application = TokenSubject("shop", "web", node="node-a")
    assert "no workload of it is a proxy" in await refused(application)
    nursery.cancel_scope.cancel()


async def test_a_stream_ends_when_its_client_is_no_proxy_any_more(
    config: ControlPlaneConfig, nursery: trio.Nursery
) -> None:
    proxy = MESH.replace("labels: {app: web}", "labels: {networking.istio.io/tunnel: http}")
    (config.source / "mesh.yaml").write_text(proxy)
    plane = ControlPlane(config)
    ports = await nursery.start(plane.run)
    roots = plane.roots_pem.encode()
    connected, ended = trio.Event(), trio.Event()

    def follow() -> None:
        token = plane.mint_token(TokenSubject("shop", "web"))
        credentials = grpc.ssl_channel_credentials(roots)
        metadata = [("authorization", f"Bearer {token}")]
        with delta_stream(f"localhost:{ports.tls}", credentials, metadata) as opened:
            opened.send(ADDRESS)
            assert len(opened.receive().resources) == 2
            trio.from_thread.run_sync(connected.set)
            with pytest.raises(grpc.RpcError) as caught:
                opened.receive()
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        trio.from_thread.run_sync(ended.set)

    nursery.start_soon(trio.to_thread.run_sync, follow)
    await connected.wait()
    (config.source / "mesh.yaml").write_text(MESH)
    with trio.fail_after(30):
        await ended.wait()
    nursery.cancel_scope.cancel()


def secrets_below(folder: Path) -> set[str]:
    """The lines of all private keys, without those that every key has."""
    found: set[str] = set()
    for path in folder.rglob("*.pem"):
        for block in path.read_text().split("-----BEGIN ")[1:]:
            if block.startswith(("PRIVATE KEY", "EC PRIVATE KEY")):
                found.update(line for line in block.splitlines()[1:] if len(line) >= 16)
    return {line for line in found if not line.startswith("-----")}


async def test_no_secret_is_in_the_log(
    config: ControlPlaneConfig, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a day with everything: good and bad tokens, certificates, refusals, a rotation."""
    caplog.set_level(logging.DEBUG)
    (config.source / "mesh.yaml").write_text(MESH)
    plane = ControlPlane(config)
    ports = await nursery.start(plane.run)
    key = new_key()
    request = certificate_request("spiffe://cluster.local/ns/shop/sa/web", key)
    good, expired = plane.mint_token(ZTUNNEL), plane.mint_token(ZTUNNEL, lifetime=-60.0)
    application = plane.mint_token(TokenSubject("shop", "web", node="node-a"))
    tokens = [good, expired, application, good[:-2], "not.a.token"]

    def stream(token: str) -> None:
        credentials = grpc.ssl_channel_credentials(plane.roots_pem.encode())
        metadata = [("authorization", f"Bearer {token}")]
        with delta_stream(f"localhost:{ports.tls}", credentials, metadata) as opened:
            opened.send(ADDRESS)
            opened.receive()

    for token in tokens:
        for call in (
            partial(create_certificate, ports.tls, plane.roots_pem, token, request),
            partial(stream, token),
        ):
            with contextlib.suppress(grpc.RpcError):
                await trio.to_thread.run_sync(call)
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=5)
    rotate(config.state / "ca", "cluster.local", later)
    open_state(config.state / "ca", "cluster.local", later)
    assert "signed spiffe://cluster.local/ns/shop/sa/web" in caplog.text
    assert "made root" in caplog.text
    keys = secrets_below(config.state)
    assert len(keys) >= 5 * 2  # of tokens, two roots, two intermediates
    for secret in (*tokens, *keys, *key_to_pem(key).decode().splitlines()[1:-1]):
        assert secret not in caplog.text
    # Nor a part that is long enough to be of use.
    for token in tokens[:4]:
        for part in token.split("."):
            assert part not in caplog.text
    nursery.cancel_scope.cancel()


async def test_without_plaintext_there_is_one_grpc_port(
    config: ControlPlaneConfig, nursery: trio.Nursery
) -> None:
    plane = ControlPlane(dataclasses.replace(config, xds_port=None))
    ports = await nursery.start(plane.run)
    assert ports.xds == 0
    assert ports.tls > 0
    nursery.cancel_scope.cancel()


async def test_a_status_port_that_is_taken_ends_it(
    config: ControlPlaneConfig, nursery: trio.Nursery
) -> None:
    first = await nursery.start(ControlPlane(config).run)
    second = dataclasses.replace(config, status_port=first.status)
    with pytest.raises(OSError, match="cannot listen"):
        await ControlPlane(second).run()
    second = dataclasses.replace(config, tls_port=first.tls)
    with pytest.raises(OSError, match="cannot listen"):
        await ControlPlane(second).run()
    nursery.cancel_scope.cancel()


async def test_a_translation_that_fails_leaves_what_is_in_force(
    config: ControlPlaneConfig,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (config.source / "mesh.yaml").write_text(MESH)
    plane = ControlPlane(config)
    await nursery.start(plane.run)

    def fail(*_: object) -> None:
        raise ValueError("a mistake of ours")

    with monkeypatch.context() as patch:
        patch.setattr(Translator, "translate", fail)
        (config.source / "policy.yaml").write_text(POLICY)
        await until(lambda: "a mistake of ours" in caplog.text)
    assert plane.generation == 1
    (config.source / "more.yaml").write_text(POLICY.replace("only-web", "another"))
    await until(lambda: plane.generation == 2)
    nursery.cancel_scope.cancel()
