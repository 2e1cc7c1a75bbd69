"""The control process's end of a worker."""

import logging
import os
import signal
from collections.abc import Callable
from typing import Any, Final

import trio

from ztunnel.process import messages
from ztunnel.process.carried import Carried
from ztunnel.process.channel import Channel, ChannelError, Message

log = logging.getLogger("ztunnel.control")

DUMP_TIMEOUT: Final = 2.0  # seconds
APPLY_TIMEOUT: Final = 5.0  # seconds that the others wait for a worker that is stuck
STUCK_LIMIT: Final = 30.0  # seconds without any answer after that: it is not worth waiting for
_LOOK: Final = 5.0  # seconds


class WorkerLink:
    """One worker: what it has acknowledged, and what it is to be told.

    Args:
        received: called for every message that is not an answer kept here. Owns its descriptors.

    Attributes:
        kernel_paths: what it says of them: path to "on", or why it is off.
        carried: the connections that it has.
        welcome: it has everything, and is to hear of every change.
        gone: nothing more will come from it.
        over: set then.
        dead: how its process has ended (which the supervisor says), "" while it runs.
    """

    def __init__(
        self,
        slot: int,
        pid: int,
        channel: Channel,
        received: Callable[["WorkerLink", Message], None],
    ) -> None:
        self.slot = slot
        self.pid = pid
        self.applied = -1
        self.kernel_paths: dict[str, str] = {}
        self.identities: set[str] = set()
        self.welcome = False
        self.gone = False
        self.over = trio.Event()
        self.dead = ""
        self.carried = Carried()
        self._channel = channel
        self._received = received
        self._scope = trio.CancelScope()
        self._wake = trio.Event()
        self._progress = trio.Event()
        self._dumps: dict[int, list[dict[str, Any]] | None] = {}
        self._next_dump = 0
        self._late = False
        self._late_since = 0.0

    @property
    def name(self) -> str:
        """Unique for the life of this control process."""
        return f"worker-{self.slot}.{self.pid}"

    def send(self, kind: int, *values: Any, fds: list[int] | None = None) -> None:
        """Queues a message; nothing once the worker is gone. Raises OSError for lack of room for
        the descriptors."""
        if not self.gone:
            self._channel.queue(kind, *values, fds=fds)
            self._wake.set()

    async def run(self) -> None:
        """Reads and writes until the worker is gone, or replaced."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._replace_when_stuck)
                    await self._read()
                    nursery.cancel_scope.cancel()
        except* (OSError, ChannelError) as group:
            # A worker that dies while it is written to; why it died is the supervisor's to say.
            log.warning("the channel to worker %d broke: %s", self.slot, group.exceptions[0])
        finally:
            self.gone = True
            self.over.set()
            self._notify()
            self._channel.close()

    def replaced(self) -> None:
        """The same process has a new channel; this one is of no more use."""
        self.gone = True
        self._scope.cancel()

    async def _read(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._channel.socket)
            received = self._channel.receive()
            if received is None:
                return
            for message in received:
                self._take(message)

    def _take(self, message: Message) -> None:
        if message.kind == messages.APPLIED:
            self.applied = max(self.applied, message.values[0])
            if self._late:
                self._late = False
                log.info("worker %d answers again", self.slot)
            self._notify()
        elif message.kind == messages.KERNEL_PATHS:
            self.kernel_paths = message.values[0]
        elif message.kind == messages.CARRIED:
            self.carried.update(*message.values)
        elif message.kind == messages.DUMPED:
            number, connections = message.values
            if number in self._dumps:  # somebody still waits for it
                self._dumps[number] = connections
                self._notify()
        else:
            try:
                self._received(self, message)
            except Exception:  # one message must not cost the worker
                log.exception("message of kind %d could not be served", message.kind)

    async def _write(self) -> None:
        while True:
            while self._channel.pending:
                if not self._channel.flush():
                    await trio.lowlevel.wait_writable(self._channel.socket)
            self._wake = trio.Event()
            if not self._channel.pending:
                await self._wake.wait()

    def _notify(self) -> None:
        self._progress.set()
        self._progress = trio.Event()

    async def wait_applied(self, sequence: int) -> None:
        """Returns when the worker has applied that update, or is gone, or has had long enough.

        Messages keep their order, so that a worker that was stuck catches up by itself; the
        control plane must not wait for it for ever.
        """
        if self._late:
            return
        with trio.move_on_after(APPLY_TIMEOUT) as limit:
            while self.applied < sequence and not self.gone:
                await self._progress.wait()
        if limit.cancelled_caught and not self._late:
            self._late = True
            self._late_since = trio.current_time()
            log.error(
                "worker %d has not applied an update for %gs: it goes by what it knew before",
                self.slot, APPLY_TIMEOUT,
            )  # fmt: skip

    async def _replace_when_stuck(self) -> None:
        """A worker that hangs serves nobody, what it is to be told piles up here, and policies are
        not enforced by it: its successor takes over what waits in the queues."""
        while True:
            await trio.sleep(_LOOK)
            if self._late and trio.current_time() - self._late_since > STUCK_LIMIT:
                log.error(
                    "worker %d has not answered for %gs and is killed, so that another one serves",
                    self.slot, APPLY_TIMEOUT + STUCK_LIMIT,
                )  # fmt: skip
                os.kill(self.pid, signal.SIGKILL)
                return

    async def connections(self) -> list[dict[str, Any]]:
        """Its live connections; none when it does not answer in time (said in the log)."""
        self._next_dump += 1
        number = self._next_dump
        self._dumps[number] = None
        self.send(messages.DUMP, number)
        with trio.move_on_after(DUMP_TIMEOUT) as limit:
            while self._dumps[number] is None and not self.gone:
                await self._progress.wait()
        if limit.cancelled_caught:
            log.warning("worker %d does not say which connections it has", self.slot)
        return self._dumps.pop(number) or []
