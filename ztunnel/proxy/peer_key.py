"""Whom a tunnel leads to."""

from typing import NamedTuple

from ztunnel.linux.sockets import SocketAddress
from ztunnel.mesh.identity import Identity


class PeerKey(NamedTuple):
    """Whom a tunnel leads to.

    Attributes:
        address: where to connect.
        expected: one of these must be in the certificate there.
        inner_authority: "" for a plain tunnel; else a tunnel to the peer at `address` is asked
            for a connection to this authority, and the tunnel meant here runs inside of that
            one (another network's gateway).
        inner_expected: one of these must be in the certificate at the end of the inner tunnel.
    """

    address: SocketAddress
    expected: tuple[Identity | str, ...]
    inner_authority: str = ""
    inner_expected: tuple[Identity | str, ...] = ()

    def through(self, authority: str, expected: tuple[Identity | str, ...]) -> "PeerKey":
        """The tunnel inside this one."""
        return PeerKey(self.address, self.expected, authority, expected)

    @property
    def outer(self) -> "PeerKey":
        """The tunnel around an inner one."""
        return PeerKey(self.address, self.expected)

    def __str__(self) -> str:
        host, port = self.address
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return f"{self.inner_authority} through {where}" if self.inner_authority else where
