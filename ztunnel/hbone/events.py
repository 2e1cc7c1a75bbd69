"""What a tunnel connection tells its owner, besides the events of :mod:`ztunnel.http2.events`.

The two that every connection has are not frozen: that would double the cost of making one.
"""

from dataclasses import dataclass

from ztunnel.hbone.authority import Authority
from ztunnel.http2.events import Event
from ztunnel.http2.stream import Stream


@dataclass(slots=True)
class TunnelAccepted(Event):
    """A client's CONNECT was answered with 200; ``baggage`` is the server's, or empty."""

    stream: Stream
    baggage: str


@dataclass(frozen=True, slots=True)
class TunnelRefused(Event):
    """A client's CONNECT came to nothing; no other event for the stream follows.

    Attributes:
        status: The HTTP status, or 0 when the stream was reset before one came.
        reason: In words, with the start of the response's text.
        retryable: The peer did not look at the request (REFUSED_STREAM).
    """

    stream: Stream
    status: int
    reason: str
    retryable: bool


@dataclass(slots=True)
class ConnectRequested(Event):
    """A server got a CONNECT. Header values are as they came; empty text when absent.

    Attributes:
        end_stream: The client will send nothing.
        network: ``x-forwarded-network``: the network that the client of a gateway is in.
    """

    stream: Stream
    authority: Authority
    baggage: str
    forwarded: str
    traceparent: str
    network: str
    end_stream: bool


@dataclass(frozen=True, slots=True)
class RequestRejected(Event):
    """A server got a request that asks for no tunnel; it has been answered already."""

    stream: Stream
    status: int
    reason: str
