"""A certificate authority that a test can make refuse, or wait."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import grpc

from daemonset.local.namespaces import Keeper
from daemonset.local.network import MeshNetwork
from tests.support.mesh_lab import MeshLab
from tests.support.pki import Authority, make_root, pem
from ztunnel.proto.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from ztunnel.proto.ca_pb2_grpc import add_IstioCertificateServiceServicer_to_server

PORT = 15112
NAME = "ca.test"


class FakeCa:
    """Signs for whomever it is asked, unless it is told otherwise.

    Attributes:
        refuse: why it refuses everybody; empty: it signs.
        open: while it is clear, nobody gets an answer.
        asked: identities in the order of the requests.
        lifetime: of what it signs, seconds.
    """

    def __init__(self) -> None:
        self.refuse = ""
        self.open = threading.Event()
        self.open.set()
        self.asked: list[str] = []
        self.lifetime = 86400.0
        self.authority: Authority = make_root()

    @property
    def environment(self) -> dict[str, str]:
        """What makes a ztunnel ask this one."""
        return {
            "CA_ADDRESS": f"https://172.18.0.1:{PORT}",
            "CA_ROOT_CA": pem(self.authority.certificate),
            "ALT_CA_HOSTNAME": NAME,
        }

    @property
    def credentials(self) -> grpc.ServerCredentials:
        """What it shows to who asks."""
        return grpc.ssl_server_credentials([self.authority.server(NAME)])

    def CreateCertificate(
        self, request: IstioCertificateRequest, context: Any
    ) -> IstioCertificateResponse:
        identity = str(request.metadata["ImpersonatedIdentity"])
        self.asked.append(identity)
        self.open.wait()
        if self.refuse:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, self.refuse)
        answer = self.authority.answer(
            request.csr.encode(), [identity], start=time.time() - 1, lifetime=self.lifetime
        )
        return IstioCertificateResponse(cert_chain=answer)


def serving(mesh: MeshLab, ca: FakeCa) -> AbstractContextManager[None]:
    """Serves it on the underlay of a mesh."""
    return serving_below(mesh.mesh.keeper, mesh.mesh.network, ca)


@contextmanager
def serving_below(keeper: Keeper, network: MeshNetwork, ca: FakeCa) -> Iterator[None]:
    """Serves it on the underlay, where ztunnels look for their control plane."""
    underlay = network.underlay
    assert underlay is not None
    pool = ThreadPoolExecutor(8)
    server = grpc.server(pool)
    add: Callable[..., None] = add_IstioCertificateServiceServicer_to_server
    add(ca, server)
    address = f"{network.topology.underlay[0]}:{PORT}"
    keeper.call(underlay, lambda: server.add_secure_port(address, ca.credentials))
    server.start()
    try:
        yield
    finally:
        ca.open.set()
        server.stop(0).wait()
        pool.shutdown()
