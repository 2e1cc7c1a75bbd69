"""The engine: serves every ready descriptor of a worker in rounds.

trio owns the lives of connections; it does not own each read. One trio task
runs `Engine.run`. It waits on an epoll descriptor of its own and works in
rounds: one `epoll_wait`, then every ready handler in a tight loop, then one
write per tunnel that got something to send. Going back to trio after each
round would cost a wake-up of its scheduler, an `epoll_ctl` and two context
switches (15–40 µs), so while traffic flows the engine *lingers* in its own
epoll for up to a millisecond, and gives trio a checkpoint every few
milliseconds; when a millisecond passes in silence, it waits in trio.

Before a round writes to its tunnels it looks for ready descriptors again: what
became ready meanwhile shares a TLS record and a `send` with the rest, and the
`send` is the dear part (the kernel runs the receiver's side of it as well). A
connection that is alone is not made to wait for that: after some rounds with
one event each, rounds look only once.

For the same reason the engine gives way before it waits (`sched_yield`): where
applications and other workers want the same processor, what they do next is
ready for this round instead of making one of its own. On a processor that nobody
else wants it costs half a microsecond; where somebody keeps the processor for
milliseconds, which would stop traffic, the engine gives way no more for a second.

Whatever must wait for something other than bytes of a running flow (a
handshake, a certificate, a name) is a trio task. Such a task waits for
descriptors with `Engine.wait`, which uses the same epoll: its event ends the
linger at once.

Rules that keep this safe:
- Descriptors are closed at the end of a round (`close_later`): a number that
  is reused within the round could get a stale event.
- An exception in a handler ends that handler (`Handler.failed`), never the engine.
- Cancel scopes do not touch flows; their owners close them.
"""

import logging
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Final, Protocol

import trio

from ztunnel.kernel.paths import KernelPaths
from ztunnel.kernel.sockmap import Sockmap
from ztunnel.relay.buffers import Buffers

log = logging.getLogger("ztunnel.relay")

LINGER: Final = 0.001  # seconds of silence before the engine goes back to trio
CHECKPOINT_EVERY: Final = 0.003  # seconds that trio's other tasks wait at most while traffic flows
EVENTS_PER_ROUND: Final = 512

LOOKS: Final = 3  # times a round looks for ready descriptors before it writes to its tunnels
COMPANY: Final = 8  # rounds with one event each after which a round looks only once
TOO_LONG: Final = 0.002  # seconds for which others may have the processor when it is given up
NO_MORE: Final = 300  # times as long as that it is kept from then on: at most 0.3 % are lost
_SWEEP: Final = 0.25  # seconds

READ: Final = select.EPOLLIN | select.EPOLLRDHUP


class Handler(Protocol):
    """What the engine calls when a descriptor is ready."""

    def ready(self, events: int) -> None:
        """Serves the descriptor. `events` is epoll's mask. Never blocks."""

    def failed(self, error: BaseException) -> None:
        """`ready` raised: give up, release everything, say why."""


class Flushable(Protocol):
    """Something that gathers output during a round and writes it at the end."""

    def flush(self) -> None: ...

    def failed(self, error: BaseException) -> None: ...


class Expiring(Protocol):
    """Something that may take only so long."""

    def expired(self) -> None:
        """The time given to `Engine.expire_at` has passed."""


class _Waiter:
    """A trio task that waits for one descriptor, once."""

    def __init__(self, engine: "Engine", fd: int) -> None:
        self.engine = engine
        self.fd = fd
        self.task = trio.lowlevel.current_task()

    def ready(self, events: int) -> None:
        self.engine.unregister(self.fd)
        self.engine.woken = True
        trio.lowlevel.reschedule(self.task)

    def failed(self, error: BaseException) -> None:
        raise error


class _Wake:
    """Ends a wait of the engine when a task outside a round made something dirty."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.armed = False

    def set(self) -> None:
        if not self.armed:
            self.armed = True
            os.eventfd_write(self.fd, 1)

    def ready(self, events: int) -> None:
        self.armed = False
        os.eventfd_read(self.fd)

    def failed(self, error: BaseException) -> None:
        raise error


class _Ring:
    """Serves the ring in which the kernel says which of its flows want user space."""

    def __init__(self, sockmap: Sockmap) -> None:
        self._sockmap = sockmap

    def ready(self, events: int) -> None:
        self._sockmap.serve()

    def failed(self, error: BaseException) -> None:
        log.error("a flow in the kernel could not be served: %r", error)


class Engine:
    """Serves descriptors in rounds; see the module's docstring.

    One thread, the one that runs trio, may call its methods.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._dirty: list[Flushable] = []
        self._closing: list[socket.socket] = []
        self._later: list[Callable[[], None]] = []
        self._deadlines: dict[Expiring, float] = {}
        self._wake = _Wake()
        self.buffers = Buffers()
        self.paths = KernelPaths()
        self.in_round = False
        self.crowd = 0  # descriptors that were ready together
        self._company = 0  # rounds until nothing but one descriptor at a time is expected
        self._keeps = 0.0  # until when the processor is not given up
        self.woken = False
        self.rounds = 0
        self.busy = 0.0  # seconds spent in rounds
        self.errors = 0
        self.now = time.monotonic()
        self.register(self._wake.fd, self._wake, select.EPOLLIN)

    def use_paths(self, paths: KernelPaths) -> None:
        """Lets flows that begin from now on use these kernel paths; call once."""
        self.paths = paths
        if paths.sockmap is not None:
            self.register(paths.sockmap.ring.fd, _Ring(paths.sockmap), select.EPOLLIN)

    def leave_paths(self) -> None:
        """Stops using them, so that they outlive this engine."""
        if self.paths.sockmap is not None:
            self.unregister(self.paths.sockmap.ring.fd)
        self.paths = KernelPaths()

    def register(self, fd: int, handler: Handler, events: int) -> None:
        """Calls `handler.ready` when `fd` has one of `events`. Raises OSError."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def modify(self, fd: int, events: int) -> None:
        """Changes what is waited for on a registered descriptor."""
        self._epoll.modify(fd, events)

    def unregister(self, fd: int) -> None:
        """Stops serving `fd`, also for events of the round under way. Idempotent."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def close_later(self, sock: socket.socket) -> None:
        """Unregisters a socket and closes it when the round is over."""
        fd = sock.fileno()
        if fd < 0:
            return
        self.unregister(fd)
        self._closing.append(sock)
        if not self.in_round:
            self._wake.set()

    def close_own(self, sock: socket.socket) -> None:
        """`close_later` for a socket that no other process holds a descriptor of.

        Closing takes such a socket out of the epoll, which saves a system call. (A listening
        socket, which the control process holds as well, would go on being reported.)
        """
        if self._handlers.pop(sock.fileno(), None) is None:
            self.close_later(sock)
            return
        self._closing.append(sock)
        if not self.in_round:
            self._wake.set()

    def dirty(self, item: Flushable) -> None:
        """Has `item.flush()` called at the end of this round (or of the next one).

        The caller makes sure that an item is queued once at a time.
        """
        self._dirty.append(item)
        if not self.in_round:
            self._wake.set()

    def call_later(self, action: Callable[[], None]) -> None:
        """Runs `action` at the start of the next round."""
        self._later.append(action)
        self._wake.set()

    def expire_at(self, item: Expiring, when: float) -> None:
        """Calls `item.expired()` once `when` (of `time.monotonic`) has passed."""
        self._deadlines[item] = when

    def in_time(self, item: Expiring) -> None:
        """Forgets the deadline of `item`. Idempotent."""
        self._deadlines.pop(item, None)

    async def watch_deadlines(self) -> None:
        """Looks after deadlines until cancelled; they are met within a quarter of a second.

        A table that is swept costs less than a timer each: nearly all of
        these deadlines are forgotten within a millisecond.
        """
        while True:
            await trio.sleep(_SWEEP)
            now = time.monotonic()
            for item in [item for item, when in self._deadlines.items() if when <= now]:
                if self._deadlines.pop(item, None) is not None:
                    try:
                        item.expired()
                    except Exception:
                        self.errors += 1
                        log.exception("a deadline could not be served")

    async def wait(self, fd: int, events: int) -> None:
        """Waits, in a trio task, until `fd` has one of `events`. A checkpoint."""
        waiter = _Waiter(self, fd)
        self.register(fd, waiter, events)

        def abort(_: object) -> trio.lowlevel.Abort:
            self.unregister(fd)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    async def run(self) -> None:
        """Serves until cancelled."""
        poll = self._epoll.poll
        clock = time.monotonic
        fd = self._epoll.fileno()
        last = clock()
        try:
            while True:
                if self._company:
                    self._give_way()
                events = poll(LINGER, EVENTS_PER_ROUND)
                if not events:
                    await trio.lowlevel.wait_readable(fd)
                    last = clock()
                    continue
                self.now = clock()
                self._round(events)
                ended = clock()
                self.busy += ended - self.now
                if self.woken or ended - last > CHECKPOINT_EVERY:
                    self.woken = False
                    await trio.lowlevel.checkpoint()
                    last = clock()
        finally:
            self._end_of_round()

    def _give_way(self) -> None:
        before = time.monotonic()
        if before < self._keeps:
            return
        os.sched_yield()
        took = time.monotonic() - before
        if took > TOO_LONG:
            self._keeps = before + NO_MORE * took

    def _round(self, events: list[tuple[int, int]]) -> None:
        handlers = self._handlers
        self.in_round = True
        self.rounds += 1
        if self._later:
            later, self._later = self._later, []
            for action in later:
                try:
                    action()
                except Exception:
                    self.errors += 1
                    log.exception("something put off to this round failed")
        for looks_left in range(LOOKS - 1, -1, -1):
            self.crowd = len(events)
            if self.crowd > 1 or looks_left < LOOKS - 1:
                self._company = COMPANY
            for fd, mask in events:
                handler = handlers.get(fd)
                if handler is not None:
                    try:
                        handler.ready(mask)
                    except Exception as error:
                        self._failed(handler, error)
            if not looks_left or not self._dirty or not self._company:
                break
            events = self._epoll.poll(0, EVENTS_PER_ROUND)
            if not events:
                break
        self._company = max(self._company - 1, 0)
        self._end_of_round()
        if self._later:
            self._wake.set()  # what was asked for before the wake was served would wait for ever

    def _end_of_round(self) -> None:
        # A flush may make other items dirty (a window opened, a stream closed).
        while self._dirty:
            dirty, self._dirty = self._dirty, []
            for item in dirty:
                try:
                    item.flush()
                except Exception as error:
                    self._failed(item, error)
        self.in_round = False
        if self._closing:
            closing, self._closing = self._closing, []
            for sock in closing:
                sock.close()

    def _failed(self, handler: Handler | Flushable, error: Exception) -> None:
        self.errors += 1
        try:
            handler.failed(error)
        except Exception:
            log.exception("a flow could not be ended cleanly after %r", error)

    def close(self) -> None:
        """Releases the engine's own descriptors. Flows must be closed before."""
        self._end_of_round()
        self.unregister(self._wake.fd)
        os.close(self._wake.fd)
        paths = self.paths
        self.leave_paths()
        paths.close()
        self._epoll.close()
