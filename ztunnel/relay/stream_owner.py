"""What hears of the things that happen on one stream of a tunnel."""

from typing import Final

from ztunnel.hbone.events import TunnelAccepted, TunnelRefused
from ztunnel.http2.events import StreamReset
from ztunnel.native import mypyc_attr


@mypyc_attr(allow_interpreted_subclasses=True)
class StreamOwner:
    """What is tied to a stream: a CONNECT that waits, or a running flow."""

    __slots__ = ()

    def deliver(self, view: memoryview, ended: bool) -> None:
        """Bytes from the peer, and whether they were its last. The view dies with this call."""
        raise RuntimeError(f"{type(self).__name__} got data")

    def deliver_many(self, views: list[memoryview], ended: bool) -> None:
        """The same in several pieces."""
        last = len(views) - 1
        for index, view in enumerate(views):
            self.deliver(view, ended and index == last)

    def accepted(self, event: TunnelAccepted) -> None:
        """The peer answered the CONNECT with 200."""

    def refused(self, event: TunnelRefused) -> None:
        """The peer answered the CONNECT with anything else, or reset the stream instead."""

    def writable(self) -> None:
        """The peer takes bytes again; or the tunnel's socket does."""

    def reset(self, event: StreamReset) -> None:
        """The stream is over before its time."""

    def unprocessed(self) -> None:
        """The peer went away before it looked at the stream: it may be tried elsewhere."""
        self.lost("the peer is going away and did not take the connection")

    def lost(self, reason: str) -> None:
        """The tunnel is gone."""


class Nobody(StreamOwner):
    """The owner of a stream that nobody cares about any more: what still comes is dropped."""

    __slots__ = ()

    def deliver(self, view: memoryview, ended: bool) -> None:
        """Nobody wants it."""


NOBODY: Final = Nobody()
