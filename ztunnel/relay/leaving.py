"""The orderly end of a TCP connection on which everything has been said.

Data that arrives at a closed socket makes the kernel reset the connection and
throw away what it has not delivered yet. A peer that still takes in what we
sent last sends data all the while (WINDOW_UPDATE frames), so the socket stays
open for reading until the peer has closed its end.
"""

import select
import socket
import time
from typing import Final

from ztunnel.relay.engine import Engine

PATIENCE: Final = 10.0  # seconds; a peer that never closes must not keep a descriptor


class Leaving:
    """Ends our half of `sock`, which must not be registered, and closes it after the peer.

    Args:
        patience: seconds that the peer has for it.
    """

    __slots__ = ("_engine", "_sock")

    def __init__(self, engine: Engine, sock: socket.socket, patience: float = PATIENCE) -> None:
        self._engine = engine
        self._sock = sock
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            engine.close_later(sock)  # broken already: nothing can arrive any more
            return
        engine.register(sock.fileno(), self, select.EPOLLIN)
        engine.expire_at(self, time.monotonic() + patience)

    def ready(self, events: int) -> None:
        """Reads and forgets."""
        try:
            if self._sock.recv_into(self._engine.buffers.copy):
                return
        except BlockingIOError:
            return
        except OSError:
            pass  # reset by the peer, which is an end as well
        self.expired()

    def failed(self, error: BaseException) -> None:
        """The socket cannot be served."""
        self.expired()

    def expired(self) -> None:
        """The peer has closed its end, or has had time enough."""
        self._engine.in_time(self)
        self._engine.close_later(self._sock)
