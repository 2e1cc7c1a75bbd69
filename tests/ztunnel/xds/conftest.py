"""A control plane for the client to talk to: a real gRPC server that does what a test says."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

ADDRESS_TYPE = "type.googleapis.com/istio.workload.Address"


class Stream:
    """One stream as the server sees it."""

    def __init__(self, context: Any) -> None:
        self.metadata = dict(context.invocation_metadata())
        self.requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.responses: queue.SimpleQueue[Any] = queue.SimpleQueue()
        context.add_callback(lambda: self.responses.put(None))

    async def request(self, seconds: float = 30) -> Any:
        """The next request; None at the end of the stream."""
        return await trio.to_thread.run_sync(lambda: self.requests.get(timeout=seconds))

    def silent(self) -> bool:
        """Whether no request waits."""
        return self.requests.empty()

    def send(
        self,
        *resources: tuple[str, ...],
        removed: tuple[str, ...] = (),
        nonce: str = "n",
        type_url: str = ADDRESS_TYPE,
        inner: str = "",
    ) -> None:
        """Sends a response; a resource is its name, version and aliases."""
        response = discovery_pb2.DeltaDiscoveryResponse(type_url=type_url, nonce=nonce)
        response.removed_resources.extend(removed)
        for name, version, *aliases in resources:
            one = response.resources.add(name=name, version=version, aliases=aliases)
            one.resource.type_url = inner or type_url
            one.resource.value = name.encode()
        self.responses.put(response)

    def end(self, code: grpc.StatusCode | None = None) -> None:
        """Ends the stream, well or with an error."""
        self.responses.put(code)


class AdsServer(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]
    """Listens on ``port``; hands each stream to the test."""

    def __init__(self, credentials: grpc.ServerCredentials | None, port: int = 0) -> None:
        self.streams: queue.SimpleQueue[Stream] = queue.SimpleQueue()
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(self, self._server)
        address = f"127.0.0.1:{port}"
        if credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, credentials)
        self._server.start()

    async def stream(self) -> Stream:
        """The next stream that a client opens."""
        return await trio.to_thread.run_sync(lambda: self.streams.get(timeout=30))

    def stop(self) -> None:
        self._server.stop(None).wait()

    def DeltaAggregatedResources(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        stream = Stream(context)

        def pump() -> None:
            try:
                for request in requests:
                    stream.requests.put(request)
            except grpc.RpcError:
                # How grpcio says that the client has gone.
                pass
            finally:
                stream.requests.put(None)

        threading.Thread(target=pump, daemon=True).start()
        self.streams.put(stream)
        while (response := stream.responses.get()) is not None:
            if isinstance(response, grpc.StatusCode):
                context.abort(response, "as the test says")
            yield response


class Authority:
    """A certificate authority for servers."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = self._sign("authority", self._key.public_key(), None)
        self.roots = self._certificate.public_bytes(Encoding.PEM)

    def server(self, name: str) -> grpc.ServerCredentials:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign("server", key.public_key(), name)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return grpc.ssl_server_credentials([(private, certificate.public_bytes(Encoding.PEM))])

    def _sign(
        self, subject: str, key: ec.EllipticCurvePublicKey, name: str | None
    ) -> x509.Certificate:
        def names(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(
            names("authority"),
            names(subject),
            key,
            x509.random_serial_number(),
            now - timedelta(hours=1),
            now + timedelta(hours=1),
        ).add_extension(x509.BasicConstraints(name is None, None), True)
        if name is not None:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.DNSName(name)]), False
            )
        return builder.sign(self._key, SHA256())


MakeServer = Callable[..., AdsServer]


@pytest.fixture
def make_server() -> Iterator[MakeServer]:
    servers: list[AdsServer] = []

    def make(credentials: grpc.ServerCredentials | None = None, port: int = 0) -> AdsServer:
        servers.append(AdsServer(credentials, port))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def other_authority() -> Authority:
    return Authority()
