"""What every relayed connection has in common: how it ends and what it counted."""

from enum import Enum
from typing import Protocol


class ClosedBy(Enum):
    """Who ended a connection first."""

    CLIENT = "client"
    SERVER = "server"
    PROXY = "proxy"


class Outcome:
    """How a flow ended. `error` is None for a clean end.

    `from_client` and `from_server` count payload bytes; "client" is the side
    that opened the connection, at both proxies. `discarded` are bytes that
    an application sent after the other end had finished, and that this end
    did not want (RST_STREAM NO_ERROR after END_STREAM).
    """

    __slots__ = ("closed_by", "discarded", "error", "from_client", "from_server")

    def __init__(
        self,
        closed_by: ClosedBy,
        error: str | None,
        from_client: int,
        from_server: int,
        discarded: int = 0,
    ) -> None:
        self.closed_by = closed_by
        self.error = error
        self.from_client = from_client
        self.from_server = from_server
        self.discarded = discarded


class Flow(Protocol):
    """A live relayed connection, as its owner sees it."""

    @property
    def path(self) -> str:
        """The relay path it is on: "copy", "tls", …"""

    @property
    def from_client(self) -> int:
        """Payload bytes that came from the client so far."""

    @property
    def from_server(self) -> int:
        """Payload bytes that came from the server so far."""

    def abort(self, reason: str) -> None:
        """Ends it at once, visibly as an abort to both ends."""


class Owner(Protocol):
    """Told once when a flow has ended and all its descriptors are on their way out."""

    def flow_ended(self, outcome: Outcome) -> None: ...
