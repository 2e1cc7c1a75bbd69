"""Waits, in the engine, for a non-blocking connect."""

import errno
import logging
import os
import select
import socket
from collections.abc import Callable

from ztunnel.relay.engine import Engine

log = logging.getLogger("ztunnel.relay")

ConnectDone = Callable[[socket.socket | None, OSError | None], None]


class Connecting:
    """A TCP connect under way.

    Calls `done(sock, None)` once connected, else `done(None, error)`, exactly
    once; after `cancel` not at all. A failed socket is closed here, and so is
    one with which `done` failed: then it is called again, with that error.
    """

    __slots__ = ("_done", "_engine", "_sock")

    def __init__(
        self,
        engine: Engine,
        sock: socket.socket,
        done: ConnectDone,
        deadline: float,
    ) -> None:
        self._engine = engine
        self._sock: socket.socket | None = sock
        self._done = done
        engine.register(sock.fileno(), self, select.EPOLLOUT)
        engine.expire_at(self, deadline)

    def ready(self, events: int) -> None:
        """The connect has ended, one way or the other."""
        sock = self._sock
        if sock is None:
            return
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._end(OSError(code, os.strerror(code)))
            return
        self._engine.in_time(self)
        self._engine.unregister(sock.fileno())
        self._sock = None
        try:
            self._done(sock, None)
        except Exception as error:
            # Whoever waited must let go of what it holds, and nobody else closes the socket.
            log.exception("a connection that was made cannot be used")
            self._engine.errors += 1
            self._engine.close_later(sock)
            self._done(None, OSError(errno.EIO, f"internal error: {error!r}"))

    def expired(self) -> None:
        """No answer in time."""
        self._end(TimeoutError(errno.ETIMEDOUT, "connection timed out"))

    def failed(self, error: BaseException) -> None:
        """The socket cannot be asked."""
        self._end(OSError(errno.EIO, f"internal error: {error!r}"))

    def cancel(self) -> None:
        """Gives up without calling `done`."""
        if self._sock is not None:
            self._engine.in_time(self)
            self._engine.close_later(self._sock)
            self._sock = None

    def _end(self, error: OSError) -> None:
        if self._sock is not None:
            self.cancel()
            self._done(None, error)
