"""A listening socket in the engine."""

import errno
import logging
import select
import socket
import time
from collections.abc import Callable
from typing import Final

from ztunnel.linux.sockets import SocketAddress, canonical
from ztunnel.proxy.admission import Admission
from ztunnel.proxy.gathering import Gathered
from ztunnel.relay.engine import Engine

log = logging.getLogger("ztunnel.proxy")

_AT_ONCE: Final = 64  # connections accepted in one round, so that running flows get their turn
_PAUSE: Final = 0.1  # seconds to rest when there is no room
_EXHAUSTED: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS))

# What Linux's accept tells of the connection that it took from the queue (accept(2)).
_OF_THAT_CLIENT: Final = frozenset(
    (
        errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT,
        errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH,
        errno.EINTR, errno.ETIMEDOUT,
    )
)  # fmt: skip

Accepted = Callable[[socket.socket, SocketAddress], None]


class Listener:
    """Accepts connections and hands them on with their client's address.

    Args:
        gathered: its part of the listeners that all workers have on this port; None for one that
            is alone.
    """

    def __init__(
        self,
        engine: Engine,
        admission: Admission,
        sock: socket.socket,
        accepted: Accepted,
        gathered: Gathered | None = None,
    ) -> None:
        self._engine = engine
        self._admission = admission
        self.socket = sock
        self._accepted = accepted
        self.gathered = gathered
        self._closed = False
        self._resting = False
        engine.register(sock.fileno(), self, select.EPOLLIN)

    def ready(self, events: int) -> None:
        """Accepts what waits."""
        for _ in range(_AT_ONCE):
            try:
                sock, address = self.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._admission.rest(error.strerror or str(error))
                    self._rest()
                    return
                if error.errno in _OF_THAT_CLIENT:
                    continue  # that client is gone; the next one may not be
                raise
            sock.setblocking(False)
            full = self._admission.is_full(sock)
            if self.gathered is not None:
                self.gathered.accepted()
            try:
                self._accepted(sock, (canonical(address[0]), address[1]))
            except Exception:
                log.exception("a connection from %s could not be served", address[0])
                self._engine.close_later(sock)
            if self._closed:
                return
            if full:
                self._admission.rest_for_room()
                self._rest()
                return

    def look(self) -> None:
        """Looks, about once a second, whether somebody waits of whom nothing was said.

        When another listener of the port is closed, its queue moves to this one
        (tcp_migrate_req), and not every kernel wakes somebody up for that: without a look, a client
        would wait until the next one comes.
        """
        if not self._closed and not self._resting:
            try:
                self.ready(select.EPOLLIN)
            except OSError as error:
                self.failed(error)

    def _rest(self) -> None:
        """Clients stay in the queue; asking again at once would only burn the processor."""
        self._resting = True
        self._engine.unregister(self.socket.fileno())
        self._engine.expire_at(self, time.monotonic() + _PAUSE)

    def expired(self) -> None:
        """Tries again."""
        if self._closed:
            return
        if self._admission.may_go_on(self.socket):
            self._resting = False
            self._engine.register(self.socket.fileno(), self, select.EPOLLIN)
        else:
            self._rest()

    def failed(self, error: BaseException) -> None:
        """The socket itself is broken."""
        log.error("a listener failed: %r", error)
        self.close()

    def close(self) -> None:
        """Stops accepting. Idempotent."""
        if not self._closed:
            self._closed = True
            self._engine.in_time(self)
            self._engine.close_later(self.socket)
