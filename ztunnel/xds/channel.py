"""The connection to the control plane: trust, credentials and liveness, fresh for each attempt.

Roots and token are read anew each time, because both are rotated under a running proxy.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import grpc

from ztunnel.config import RootCertificates, Token

MAX_MESSAGE: Final = 200 * 1024 * 1024
_CONNECT_TIMEOUT_MS: Final = 5_000
_OPTIONS: Final[tuple[tuple[str, int | str], ...]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A stream may be silent for hours; without this, pings end after two.
    ("grpc.http2.max_pings_without_data", 0),
    # Despite its name this also bounds one attempt to connect.
    ("grpc.min_reconnect_backoff_ms", _CONNECT_TIMEOUT_MS),
    # One channel for one attempt: what is shared between channels would outlive a root change.
    ("grpc.use_local_subchannel_pool", 1),
)


class ChannelError(Exception):
    """No attempt could be made: the roots or the token cannot be read."""


class ControlPlane:
    """Where the control plane is and how to prove oneself to it.

    Args:
        address: ``https://host:port``, or ``http://host:port`` without any encryption.
        roots: what its certificate is checked against.
        token: sent as bearer token, and only over https.
        cluster_id: sent as ``clusterid``; it chooses the cluster that checks the token.
        headers: more metadata (XDS_HEADER_*).
        alternative_hostname: the name to expect in its certificate (ALT_XDS_HOSTNAME).
    """

    def __init__(
        self,
        address: str,
        roots: RootCertificates,
        token: Token,
        cluster_id: str,
        headers: Mapping[str, str],
        alternative_hostname: str | None,
    ) -> None:
        parts = urlsplit(address)
        self.target = parts.netloc
        self._secure = parts.scheme == "https"
        self._roots = roots
        self._token = token
        self._metadata = [("clusterid", cluster_id), *headers.items()]
        self._options = list(_OPTIONS)
        if alternative_hostname:
            self._options.append(("grpc.ssl_target_name_override", alternative_hostname))

    def connect(self) -> grpc.Channel:
        """A new channel, which connects when it is first used.

        Raises:
            ChannelError: the roots cannot be read.
        """
        if not self._secure:
            return grpc.insecure_channel(self.target, self._options)
        try:
            roots = self._roots.read()
            if roots is None:
                roots = _system_roots()
        except OSError as error:
            raise ChannelError(f"cannot read the roots for the control plane: {error}") from error
        return grpc.secure_channel(
            self.target, grpc.ssl_channel_credentials(root_certificates=roots), self._options
        )

    def metadata(self) -> list[tuple[str, str]]:
        """The headers of a stream, with the token as it is now.

        Raises:
            ChannelError: the token cannot be read.
        """
        if not self._secure:
            return self._metadata
        try:
            token = self._token.read()
        except (OSError, ValueError) as error:
            raise ChannelError(f"cannot read the token for the control plane: {error}") from error
        if token is None:
            return self._metadata
        return [*self._metadata, ("authorization", f"Bearer {token}")]


def _system_roots() -> bytes:
    # grpcio's own default would be a bundle of its own, not the system's.
    bundle = ssl.get_default_verify_paths().cafile
    if bundle is None:
        raise FileNotFoundError("this system has no bundle of root certificates")
    return Path(bundle).read_bytes()
