"""A channel served by the engine of a worker."""

import logging
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from ztunnel.process.channel import Channel, Message, close_all
from ztunnel.relay.engine import Engine

log = logging.getLogger("ztunnel.worker")

_AT_ONCE: Final = 0.003  # seconds


class Link:
    """Reads messages of a channel in the engine's rounds, and writes ours at their ends.

    `received` is called for each message and owns its descriptors; `lost`
    once, when the other end is gone. What cannot be written at once waits;
    senders of what can be dropped or put off look at `congested` first.
    """

    def __init__(
        self,
        engine: Engine,
        channel: Channel,
        received: Callable[[Message], None],
        lost: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._channel = channel
        self._received = received
        self._lost = lost
        self._dirty = False
        self._mask = int(select.EPOLLIN)
        self._waiting: deque[Message] = deque()
        self.open = True
        engine.register(channel.fileno(), self, self._mask)

    def send(self, kind: int, *values: Any, fds: list[int] | None = None) -> None:
        """Queues a message; silently nothing once the other end is gone. Raises OSError for lack
        of room for the descriptors."""
        if not self.open:
            return
        self._channel.queue(kind, *values, fds=fds)
        if not self._dirty:
            self._dirty = True
            self._engine.dirty(self)

    @property
    def congested(self) -> bool:
        """Whether the other end is slow to read, or gone: hold back what can wait."""
        return not self.open or self._mask != select.EPOLLIN

    def ready(self, events: int) -> None:
        """Serves the channel's descriptor."""
        if events & select.EPOLLOUT:
            self.flush()
        if events & ~select.EPOLLOUT and self.open:
            if self._waiting:
                return  # what has come already is first
            messages = self._channel.receive()
            if messages is None:
                self.close()
                self._lost()
                return
            self._waiting.extend(messages)
            self._serve()

    def _serve(self) -> None:
        """Serves messages for some milliseconds; the others wait for the next round, so that
        flows have their turn between the pieces of a large mesh."""
        until = time.monotonic() + _AT_ONCE
        while self._waiting and self.open:
            message = self._waiting.popleft()
            try:
                self._received(message)
            except Exception:  # one message must not cost the channel
                log.exception("message of kind %d could not be served", message.kind)
            if self._waiting and time.monotonic() > until:
                self._engine.call_later(self._serve)
                return

    def flush(self) -> None:
        """Writes what the socket takes."""
        self._dirty = False
        if not self.open:
            return
        done = self._channel.flush()
        mask = int(select.EPOLLIN) if done else int(select.EPOLLIN | select.EPOLLOUT)
        if mask != self._mask:
            self._mask = mask
            self._engine.modify(self._channel.fileno(), mask)

    def failed(self, error: BaseException) -> None:
        """The channel broke."""
        if self.open:
            self.close()
            log.warning("a channel between our processes broke: %s", error)
            self._lost()

    def close(self) -> None:
        """Stops; `lost` is not called."""
        if self.open:
            self.open = False
            while self._waiting:
                close_all(self._waiting.popleft().fds)
            self._channel.discard()
            self._engine.close_later(self._channel.socket)
