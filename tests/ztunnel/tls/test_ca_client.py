"""The CA client against a real gRPC server with TLS on loopback."""

import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import trio

from tests.support.pki import Authority, make_root, pem
from ztunnel.mesh.identity import Identity
from ztunnel.proto.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from ztunnel.proto.ca_pb2_grpc import add_IstioCertificateServiceServicer_to_server
from ztunnel.tls.ca_client import CaClient, CaError
from ztunnel.tls.certificates import CertificateManager, CertificateUnavailable
from ztunnel.tls.workload_certificate import make_key_and_csr

ALICE = Identity("cluster.local", "shop", "alice")


class Service:
    """A CA that signs whatever it is asked for, and remembers how it was asked."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.requests: list[IstioCertificateRequest] = []
        self.metadata: list[dict[str, str]] = []
        self.refuse: tuple[grpc.StatusCode, str] | None = None
        self.identity: str | None = None
        self.delay = 0.0

    def CreateCertificate(
        self, request: IstioCertificateRequest, context: Any
    ) -> IstioCertificateResponse:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        if self.delay:
            time.sleep(self.delay)
        if self.refuse is not None:
            context.abort(*self.refuse)
        identity = self.identity or str(request.metadata["ImpersonatedIdentity"])
        answer = self.authority.answer(
            request.csr.encode(), [identity], lifetime=float(request.validity_duration)
        )
        return IstioCertificateResponse(cert_chain=answer)


class Server:
    """One gRPC server with a certificate of its own CA."""

    def __init__(self, service: Service, root: Authority, port: int = 0) -> None:
        self.root_pem = pem(root.certificate).encode()
        self._pool = ThreadPoolExecutor(4)
        self._server = grpc.server(self._pool)
        add: Callable[..., None] = add_IstioCertificateServiceServicer_to_server
        add(service, self._server)
        credentials = grpc.ssl_server_credentials([root.server("localhost", "istiod.test.svc")])
        self.port = self._server.add_secure_port(f"localhost:{port}", credentials)
        self._server.start()

    @property
    def address(self) -> str:
        return f"https://localhost:{self.port}"

    def stop(self) -> None:
        self._server.stop(0).wait()
        self._pool.shutdown()


@pytest.fixture
def service(authority: Authority) -> Service:
    return Service(authority)


@pytest.fixture
def server(service: Service) -> Iterator[Server]:
    running = Server(service, make_root("server CA"))
    yield running
    running.stop()


@pytest.fixture
def clients() -> Iterator[list[CaClient]]:
    made: list[CaClient] = []
    yield made
    for client in made:
        client.close()


@pytest.fixture
def client(server: Server, clients: list[CaClient]) -> CaClient:
    made = CaClient(
        server.address,
        root=server.root_pem,
        token="literal",
        cluster_id="Kubernetes",
        headers={"X-Custom": "yes"},
    )
    clients.append(made)
    return made


async def test_request_as_istio_expects_it(service: Service, client: CaClient) -> None:
    got = await client.sign(ALICE, csr(), 86400.0)
    assert len(got) == 3
    (request,) = service.requests
    assert request.validity_duration == 86400
    assert dict(request.metadata) == {"ImpersonatedIdentity": ALICE.uri}
    (metadata,) = service.metadata
    assert metadata["authorization"] == "Bearer literal"
    assert metadata["clusterid"] == "Kubernetes"
    assert metadata["x-custom"] == "yes"


def csr() -> bytes:
    return make_key_and_csr(ALICE)[1]


async def test_whole_way_through_the_manager(
    client: CaClient, service: Service, nursery: trio.Nursery
) -> None:
    manager = CertificateManager(client, ttl=3600.0)
    await nursery.start(manager.run)
    got = await manager.fetch(ALICE)
    assert got.identity == ALICE
    assert got.anchored
    assert 0 < got.not_after - time.time() < 3600
    service.identity = "spiffe://cluster.local/ns/shop/sa/bob"
    with pytest.raises(CertificateUnavailable, match=r"and certified spiffe://.*/sa/bob"):
        await manager.fetch(Identity("cluster.local", "shop", "carol"))


async def test_without_impersonation_the_token_says_who(
    server: Server, service: Service, clients: list[CaClient]
) -> None:
    service.identity = ALICE.uri
    client = CaClient(
        server.address, root=server.root_pem, token=None, cluster_id="x", impersonate=False
    )
    clients.append(client)
    await client.sign(ALICE, csr(), 60.0)
    assert not service.requests[0].HasField("metadata")
    assert "authorization" not in service.metadata[0]


async def test_token_is_read_anew_for_each_request(
    server: Server, service: Service, clients: list[CaClient], tmp_path: Path
) -> None:
    token = tmp_path / "token"
    client = CaClient(server.address, root=server.root_pem, token=token, cluster_id="x")
    clients.append(client)
    with pytest.raises(CaError, match="cannot read the token for the CA"):
        await client.sign(ALICE, csr(), 60.0)
    for text in ("one\n", "two"):
        token.write_text(text)
        await client.sign(ALICE, csr(), 60.0)
    assert [item["authorization"] for item in service.metadata] == ["Bearer one", "Bearer two"]


async def test_roots_are_read_anew(
    server: Server, service: Service, clients: list[CaClient], tmp_path: Path
) -> None:
    root = tmp_path / "root-cert.pem"
    client = CaClient(server.address, root=root, token="t", cluster_id="x")
    clients.append(client)
    with pytest.raises(CaError, match="cannot read the roots of the CA's server"):
        await client.sign(ALICE, csr(), 60.0)
    root.write_bytes(pem(make_root("wrong").certificate).encode())
    with pytest.raises(CaError, match=r"the CA at localhost:\d+ cannot be reached: .*(?i:verif)"):
        await client.sign(ALICE, csr(), 60.0)
    assert service.requests == []
    root.write_bytes(server.root_pem)
    assert len(await client.sign(ALICE, csr(), 60.0)) == 3


async def test_roots_of_the_system(
    server: Server, clients: list[CaClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "system.pem"
    bundle.write_bytes(server.root_pem)
    for file in (str(bundle), None):
        paths = SimpleNamespace(cafile=file)
        monkeypatch.setattr(ssl, "get_default_verify_paths", lambda found=paths: found)
        client = CaClient(server.address, root=None, token="t", cluster_id="x")
        clients.append(client)
        if file is not None:
            assert len(await client.sign(ALICE, csr(), 60.0)) == 3
        else:
            with pytest.raises(CaError, match="the system has no bundle of roots"):
                await client.sign(ALICE, csr(), 60.0)


async def test_server_under_another_name(
    server: Server, service: Service, clients: list[CaClient]
) -> None:
    for name, good in (("istiod.test.svc", True), ("istiod.other.svc", False)):
        client = CaClient(
            server.address, root=server.root_pem, token="t", cluster_id="x", server_name=name
        )
        clients.append(client)
        if good:
            assert len(await client.sign(ALICE, csr(), 60.0)) == 3
        else:
            with pytest.raises(CaError, match="cannot be reached"):
                await client.sign(ALICE, csr(), 60.0)


async def test_refusal_carries_the_reason(service: Service, client: CaClient) -> None:
    service.refuse = (grpc.StatusCode.UNAUTHENTICATED, "token has expired")
    with pytest.raises(
        CaError, match=r"the CA at localhost:\d+ refused: UNAUTHENTICATED: token has expired"
    ):
        await client.sign(ALICE, csr(), 60.0)


async def test_slow_ca_has_a_deadline(
    server: Server, service: Service, clients: list[CaClient]
) -> None:
    service.delay = 0.5
    client = CaClient(server.address, root=server.root_pem, token="t", cluster_id="x", timeout=0.1)
    clients.append(client)
    with pytest.raises(CaError, match="did not answer in time"):
        await client.sign(ALICE, csr(), 60.0)


async def test_cancelled_request_ends_at_once(service: Service, client: CaClient) -> None:
    service.delay = 2.0
    with trio.move_on_after(0.1) as scope:
        await client.sign(ALICE, csr(), 60.0)
    assert scope.cancelled_caught


async def test_ca_that_is_away_and_comes_back(service: Service, clients: list[CaClient]) -> None:
    root = make_root("server CA")
    first = Server(service, root)
    client = CaClient(first.address, root=first.root_pem, token="t", cluster_id="x")
    clients.append(client)
    try:
        await client.sign(ALICE, csr(), 60.0)
    finally:
        first.stop()
    with pytest.raises(CaError, match="cannot be reached"):
        await client.sign(ALICE, csr(), 60.0)
    again = Server(service, root, first.port)
    try:
        with trio.fail_after(30):
            assert await until_signed(client)
    finally:
        again.stop()


async def until_signed(client: CaClient) -> list[str]:
    while True:
        try:
            return await client.sign(ALICE, csr(), 60.0)
        except CaError:
            await trio.sleep(0.1)


@pytest.mark.parametrize(
    "address", ["http://istiod:15012", "istiod:15012", "https://", "https://istiod/path", ""]
)
def test_only_https(address: str) -> None:
    with pytest.raises(ValueError, match="https://host:port"):
        CaClient(address, root=None, token=None, cluster_id="x")
