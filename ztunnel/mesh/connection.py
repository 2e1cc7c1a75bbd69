"""What a policy can see of a connection."""

from __future__ import annotations

from ztunnel.mesh.address import ip_bits, is_ipv6
from ztunnel.mesh.identity import Identity


class ConnectionAttributes:
    """One inbound connection, as policies see it.

    Attributes:
        source_ip: canonical address of the TCP peer.
        identity: from the peer's certificate; None for plaintext.
        destination_ip: the pod's own address (for plaintext: the original destination).
        destination_port: the port that the application is reached at.
        principal, namespace: of the identity; "" where there is none.
    """

    __slots__ = (
        "_destination_bits",
        "_source_bits",
        "destination_ip",
        "destination_port",
        "identity",
        "namespace",
        "principal",
        "source_ip",
    )

    def __init__(
        self,
        source_ip: str,
        identity: Identity | None,
        destination_ip: str,
        destination_port: int,
    ) -> None:
        self.source_ip = source_ip
        self.identity = identity
        self.destination_ip = destination_ip
        self.destination_port = destination_port
        self.principal = identity.principal if identity is not None else ""
        self.namespace = identity.namespace if identity is not None else ""
        self._source_bits = -1
        self._destination_bits = -1

    def source_bits(self) -> tuple[bool, int]:
        """(is IPv6, number) of the source; read from the text when a policy first asks."""
        if self._source_bits < 0:
            self._source_bits = ip_bits(self.source_ip)
        return is_ipv6(self.source_ip), self._source_bits

    def destination_bits(self) -> tuple[bool, int]:
        """(is IPv6, number) of the destination; read when a policy first asks."""
        if self._destination_bits < 0:
            self._destination_bits = ip_bits(self.destination_ip)
        return is_ipv6(self.destination_ip), self._destination_bits

    def __str__(self) -> str:
        peer = self.identity.uri if self.identity is not None else "a peer without identity"
        return f"{peer} from {self.source_ip} to port {self.destination_port}"
