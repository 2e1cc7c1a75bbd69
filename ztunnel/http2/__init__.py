"""A sans-IO HTTP/2 codec (RFC 9113), client and server, made for many small frames per call.

Bytes that the owner has decrypted go into :meth:`Connection.receive`, which returns a list of
events; bytes to be sent gather in :attr:`Connection.out`. No socket, no clock, no task: the owner
passes the time in and decides when to write. See :mod:`ztunnel.http2.connection` for how a round
looks.
"""

from ztunnel.http2.client import ClientConnection
from ztunnel.http2.connection import Connection
from ztunnel.http2.errors import ErrorCode, UsageError
from ztunnel.http2.events import (
    ConnectionTerminated,
    Event,
    GoAwayReceived,
    InformationalReceived,
    PingAcknowledged,
    RequestReceived,
    ResponseReceived,
    SettingsAcknowledged,
    SettingsReceived,
    StreamReset,
    StreamWritable,
    TrailersReceived,
)
from ztunnel.http2.flood import ResetAllowance
from ztunnel.http2.frames import FRAME_HEADER_SIZE
from ztunnel.http2.headers import Header, Headers
from ztunnel.http2.server import ServerConnection
from ztunnel.http2.settings import LocalSettings, PeerSettings
from ztunnel.http2.stream import Stream

__all__ = [
    "FRAME_HEADER_SIZE",
    "ClientConnection",
    "Connection",
    "ConnectionTerminated",
    "ErrorCode",
    "Event",
    "GoAwayReceived",
    "Header",
    "Headers",
    "InformationalReceived",
    "LocalSettings",
    "PeerSettings",
    "PingAcknowledged",
    "RequestReceived",
    "ResetAllowance",
    "ResponseReceived",
    "ServerConnection",
    "SettingsAcknowledged",
    "SettingsReceived",
    "Stream",
    "StreamReset",
    "StreamWritable",
    "TrailersReceived",
    "UsageError",
]
