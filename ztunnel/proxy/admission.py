"""Keeps the last descriptors of a worker for what it has begun.

A connection needs a second descriptor for its other end, and the worker a few for its own
channels. One that took new connections until the table is full could finish none of them. So the
listeners rest while few are left, and go on when some have ended; their clients wait in the queue.
"""

import fcntl
import logging
import os
import resource
import socket
import time
from typing import Final

log = logging.getLogger("ztunnel.proxy")

_MOST_SPARE: Final = 256  # descriptors
_SAY_EVERY: Final = 10.0  # seconds at least between two warnings


class Admission:
    """One per worker. The kernel gives out the lowest free number: a high one says it all.

    Args:
        limit: descriptors that the process may have open; by default what the kernel says.
    """

    def __init__(self, limit: int | None = None) -> None:
        if limit is None:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._limit = limit if limit != resource.RLIM_INFINITY else 1 << 30
        self._highest = self._limit - min(_MOST_SPARE, self._limit // 8)
        self._resting = False
        self._said = 0.0

    def is_full(self, sock: socket.socket) -> bool:
        """Whether a new socket is among the last ones that there is room for."""
        return sock.fileno() >= self._highest

    def rest(self, reason: str) -> None:
        """A listener stops for a while; the first one says why."""
        now = time.monotonic()
        if not self._resting and now - self._said > _SAY_EVERY:
            self._said = now
            log.error("new connections wait in the queue until others have ended: %s", reason)
        self._resting = True

    def rest_for_room(self) -> None:
        """The same, for lack of descriptors."""
        self.rest(f"nearly all {self._limit} descriptors are in use")

    def may_go_on(self, sock: socket.socket) -> bool:
        """Whether there is room again. `sock` is any socket that is open."""
        try:
            copy = fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, 0)
        except OSError:
            return False
        os.close(copy)
        if copy >= self._highest:
            return False
        if self._resting:
            self._resting = False
            log.info("there is room for new connections again")
        return True
