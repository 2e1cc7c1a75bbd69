"""Keeping few connections on one worker, and spreading many.

A worker serves all its ready connections in one round and writes once to each tunnel, so a
connection is the cheaper the more of them are served together: sixteen connections that are spread
over two workers cost half as much again as on one of them. So a pod's connections go to one worker,
the one that has listened longest, until that one has enough of them to fill its rounds or until its
processor is busy; from then on they are spread over all workers.

The setting belongs to the listeners of all workers together (`linux.reuse_port`), and each worker
makes it for itself: one that has enough has new connections spread, over and over as long as that
lasts, and one that had enough and no longer has gathers them again. Connections stay where they
were accepted.
"""

import logging
import socket
import time
from collections.abc import Iterable
from typing import Final, Protocol

from ztunnel.linux.reuse_port import gather, spread

log = logging.getLogger("ztunnel.proxy")

LOOK_EVERY: Final = 0.25  # seconds
ENOUGH: Final = 64  # connections of a pod in one worker that fill its rounds
ENOUGH_TUNNELS: Final = 8  # of peers of a pod: each carries many connections, for long
BUSY: Final = 0.6  # of one processor, from which on new connections are spread
CALM: Final = 0.4  # of one processor, from which on they may be gathered again


class Gathered:
    """One listener's part of its group.

    Args:
        sock: the listening socket.
        enough: how many connections may be gathered here.
        fresh: the socket is new, and not a predecessor's, whose group may be spread for a reason.
    """

    __slots__ = ("_enough", "_gathers", "_recent", "_sock")

    def __init__(self, sock: socket.socket, enough: int, fresh: bool) -> None:
        self._sock = sock
        self._enough = enough
        self._recent = 0  # accepted since the last look
        self._gathers = False
        if fresh:
            self._gather()

    def accepted(self) -> None:
        """A connection more; a burst of them must not wait for the next look."""
        self._recent += 1
        if self._recent == self._enough:
            self._spread()

    def look(self, connections: int, busy: bool) -> None:
        """Looks again: so many are open, and the worker is busy or not."""
        enough = busy or connections >= self._enough or self._recent >= self._enough
        self._recent = 0
        if enough:
            self._spread()
        elif not self._gathers:
            self._gather()

    def _gather(self) -> None:
        try:
            gather(self._sock)
            self._gathers = True
        except OSError as error:
            log.warning("connections cannot be kept on one worker: %s", error.strerror)
            self._gathers = True  # tried; Linux spreads them

    def _spread(self) -> None:
        self._gathers = False
        try:
            spread(self._sock)
        except OSError as error:
            log.warning("connections cannot be spread over the workers: %s", error.strerror)


class Gatherer(Protocol):
    """A pod, as the look sees it."""

    def look_at_listeners(self, busy: bool) -> None:
        """See `Gathered.look`."""


class Business:
    """Whether this thread's processor is busy.

    It is busy once it has worked for more than `BUSY` of the time between two looks, until it has
    worked for less than `CALM`.
    """

    __slots__ = ("_at", "_worked", "busy")

    def __init__(self) -> None:
        self.busy = False
        self._at = time.monotonic()
        self._worked = time.thread_time()

    def look(self) -> bool:
        """Looks at what was worked since the last look."""
        at, worked = time.monotonic(), time.thread_time()
        self.judge(worked - self._worked, at - self._at)
        self._at, self._worked = at, worked
        return self.busy

    def judge(self, worked: float, passed: float) -> None:
        """Worked for so many seconds of those that passed."""
        if passed > 0:
            self.busy = worked / passed > (CALM if self.busy else BUSY)


def look_at(pods: Iterable[Gatherer], business: Business) -> None:
    """One look at all pods of a worker."""
    busy = business.look()
    for pod in pods:
        pod.look_at_listeners(busy)
