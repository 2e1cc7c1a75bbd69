"""The control process's end of a worker."""

import logging
from collections.abc import Callable
from typing import Any, Final

import trio

from ztunnel.process import messages
from ztunnel.process.channel import Channel, ChannelError, Message

log = logging.getLogger("ztunnel.control")

_DUMP_TIMEOUT: Final = 2.0  # seconds


class WorkerLink:
    """One worker: what it has acknowledged, and what it holds listening.

    Args:
        received: called for every message that is not an answer kept here.
    """

    def __init__(
        self, slot: int, channel: Channel, received: Callable[["WorkerLink", Message], None]
    ) -> None:
        self.slot = slot
        self.pid = 0
        self.life = 0  # counts the processes that have had this slot
        self.applied = -1
        self.identities: set[str] = set()
        self.gone = False
        self._channel = channel
        self._received = received
        self._wake = trio.Event()
        self._progress = trio.Event()
        self._dumps: dict[int, list[dict[str, Any]]] = {}
        self._next_dump = 0

    @property
    def name(self) -> str:
        """Unique for the life of this node's control process."""
        return f"worker-{self.slot}.{self.pid}"

    def send(self, kind: int, *values: Any, fds: list[int] | None = None) -> None:
        """Queues a message."""
        self._channel.queue(kind, *values, fds=fds)
        self._wake.set()

    async def run(self) -> None:
        """Reads and writes until the worker is gone."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                await self._read()
                nursery.cancel_scope.cancel()
        except (OSError, ChannelError) as error:
            log.warning("worker %d cannot be reached: %s", self.slot, error)
        finally:
            self.gone = True
            self.wake()
            self._channel.close()

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
            self.wake()
        elif message.kind == messages.DUMPED:
            self._dumps[message.values[0]] = message.values[1]
            self.wake()
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

    def wake(self) -> None:
        """Something that others may wait for has changed."""
        self._progress.set()
        self._progress = trio.Event()

    async def wait_applied(self, sequence: int) -> None:
        """Returns when the worker has applied that update, or is gone."""
        while self.applied < sequence and not self.gone:
            await self._progress.wait()

    async def connections(self) -> list[dict[str, Any]]:
        """Its live connections; none when it does not answer in time."""
        self._next_dump += 1
        number = self._next_dump
        self.send(messages.DUMP, number)
        with trio.move_on_after(_DUMP_TIMEOUT):
            while number not in self._dumps and not self.gone:
                await self._progress.wait()
        return self._dumps.pop(number, [])
