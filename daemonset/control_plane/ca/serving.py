"""The control plane's own server certificate, renewed while it serves."""

from __future__ import annotations

import datetime
import logging
import threading
from collections.abc import Sequence

import grpc

from daemonset.control_plane.ca.authority import Authority, AuthorityHolder
from daemonset.control_plane.ca.issuer import key_to_pem, new_key, to_pem

_log = logging.getLogger("daemonset.control_plane.ca")

_LIFETIME = datetime.timedelta(hours=24)


class ServingCertificate:
    """Issues itself a certificate for ``names``, anew at half of its life or with a new authority.

    gRPC asks at every handshake, from threads of its own.
    """

    def __init__(self, authority: AuthorityHolder, names: Sequence[str]) -> None:
        self._holder = authority
        self._names = tuple(dict.fromkeys(names))
        self._lock = threading.Lock()
        self._issued_by: Authority | None = None
        self._renew_at = datetime.datetime.min.replace(tzinfo=datetime.UTC)

    def credentials(self) -> grpc.ServerCredentials:
        """TLS for a server; clients show no certificates."""
        first = self._configuration()
        assert first is not None
        return grpc.dynamic_ssl_server_credentials(
            first, self._configuration, require_client_authentication=False
        )

    def _configuration(self) -> grpc.ServerCertificateConfiguration | None:
        """A new certificate, or None while the last one is good."""
        with self._lock:
            authority = self._holder.get()
            now = datetime.datetime.now(datetime.UTC)
            if authority is self._issued_by and now < self._renew_at:
                return None
            key = new_key()
            certificate = authority.issuer.server(key.public_key(), self._names, _LIFETIME, now)
            life = certificate.not_valid_after_utc - now
            self._issued_by, self._renew_at = authority, now + life / 2
            _log.info(
                "serving certificate for %s, serial %x",
                ", ".join(self._names),
                certificate.serial_number,
            )
            chain = "".join([to_pem(certificate), *authority.chain_pem]).encode()
            return grpc.ssl_server_certificate_configuration([(key_to_pem(key), chain)])
