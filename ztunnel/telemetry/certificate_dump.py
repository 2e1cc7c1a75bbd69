"""Certificates as a configuration dump shows them: never a private key."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding


def certificates(identity: str, state: str, chain_pem: bytes, roots_pem: bytes) -> dict[str, Any]:
    """One identity's certificates.

    ``state`` is Available, Initializing or "Unavailable: why". Empty PEM text: no certificates.

    Raises:
        ValueError: a PEM text cannot be read.
    """
    return {
        "identity": identity,
        "state": state,
        "certChain": _chain(chain_pem),
        "rootCerts": _chain(roots_pem),
    }


def _chain(pem: bytes) -> list[dict[str, str]]:
    if not pem.strip():
        return []
    return [
        {
            "pem": base64.b64encode(certificate.public_bytes(Encoding.PEM)).decode("ascii"),
            "serialNumber": str(certificate.serial_number),
            "validFrom": _time(certificate.not_valid_before_utc),
            "expirationTime": _time(certificate.not_valid_after_utc),
        }
        for certificate in x509.load_pem_x509_certificates(pem)
    ]


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
