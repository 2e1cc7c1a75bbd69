"""HBONE: TCP connections as HTTP/2 CONNECT streams over mutual TLS, without the input and output.

:class:`TunnelClient` and :class:`TunnelServer` are HTTP/2 connections whose requests are tunnels;
the other modules read and write what travels in their headers.
"""

from ztunnel.hbone.authority import Authority, AuthorityError, format_authority, parse_authority
from ztunnel.hbone.client import TunnelClient
from ztunnel.hbone.events import (
    ConnectRequested,
    RequestRejected,
    TunnelAccepted,
    TunnelRefused,
)
from ztunnel.hbone.server import TunnelServer

__all__ = [
    "Authority",
    "AuthorityError",
    "ConnectRequested",
    "RequestRejected",
    "TunnelAccepted",
    "TunnelClient",
    "TunnelRefused",
    "TunnelServer",
    "format_authority",
    "parse_authority",
]
