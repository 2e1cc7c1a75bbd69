"""The answers of `outbound.decide`: what to do with a connection, and why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ztunnel.mesh.address import SocketAddress
from ztunnel.mesh.identity import Identity
from ztunnel.mesh.service import Service
from ztunnel.mesh.workload import Workload


class Via(Enum):
    """Where a tunnel ends."""

    WORKLOAD = "workload"
    WAYPOINT = "waypoint"
    GATEWAY = "gateway"


class RefusalCode(Enum):
    """Why a connection is refused, for tests and metrics; the reason is for people."""

    SELF_CALL = "self-call"
    NO_ENDPOINT = "no-endpoint"
    NO_WAYPOINT = "no-waypoint"
    NO_GATEWAY = "no-gateway"
    NO_ADDRESS = "no-address"
    NO_IDENTITY = "no-identity"


class _ForService:
    """What all answers have in common."""

    __slots__ = ()
    service: Service | None

    @property
    def hostname(self) -> str:
        """Of the service that the client addressed; "" if it addressed none."""
        return self.service.hostname if self.service is not None else ""


# Not frozen: these are made once per connection, and freezing doubles the cost of making one.


@dataclass(slots=True)
class Passthrough(_ForService):
    """Connect to the original destination as if there were no mesh."""

    next_hop: SocketAddress
    reason: str
    service: Service | None = None
    workload: Workload | None = None


@dataclass(slots=True)
class Direct(_ForService):
    """Connect to a workload that takes plain TCP."""

    next_hop: SocketAddress
    workload: Workload
    reason: str
    service: Service | None = None


@dataclass(slots=True)
class Hbone(_ForService):
    """Open a tunnel.

    Attributes:
        next_hop: where to connect.
        authority: of the CONNECT request. With `via` GATEWAY, of both CONNECT requests.
        expected_identities: one of these must be in the certificate at the next hop.
        workload: the next hop; with `via` WORKLOAD the destination itself.
        via: where the (outer) tunnel ends.
        inner_identities: with `via` GATEWAY, one of these must be in the certificate at the
            end of the inner tunnel; otherwise empty.
        service: that the client addressed, if it did; its hostname goes into `forwarded`.
    """

    next_hop: SocketAddress
    authority: str
    expected_identities: tuple[Identity, ...]
    workload: Workload
    via: Via
    reason: str
    service: Service | None = None
    inner_identities: tuple[Identity, ...] = ()


@dataclass(slots=True)
class Refuse(_ForService):
    """Do not connect. The reason says what to change."""

    code: RefusalCode
    reason: str
    service: Service | None = None
    workload: Workload | None = None


@dataclass(slots=True)
class NeedsDns:
    """Resolve `hostname` and decide again, with the answer and with `prefer=workload.uid`."""

    hostname: str
    workload: Workload
    reason: str
    service: Service | None = None


@dataclass(slots=True)
class NeedsLookup(_ForService):
    """Ask the control plane for `key`, tell the state that it answered, and decide again."""

    key: str
    reason: str
    service: Service | None = None
    workload: Workload | None = None


Decision = Passthrough | Direct | Hbone | Refuse | NeedsDns | NeedsLookup
