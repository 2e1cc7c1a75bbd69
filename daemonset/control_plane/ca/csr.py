"""Certificate signing requests: only the key in them counts."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from daemonset.control_plane.ca.issuer import PublicKey

MAX_CSR_BYTES = 64 * 1024
_CURVES = ("secp256r1", "secp384r1", "secp521r1")


class CsrError(Exception):
    """A request that cannot be signed."""


def public_key_of(pem: str) -> PublicKey:
    """The key of a request whose own signature proves that the sender holds it.

    What else the request asks for (names, usages) is not looked at: names come from the caller's
    identity alone.

    Raises:
        CsrError: not a request, a signature that does not fit, or a key that is too weak.
    """
    if len(pem) > MAX_CSR_BYTES:
        raise CsrError("the CSR is too long")
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        valid = request.is_signature_valid
        key = request.public_key()
    except (ValueError, UnsupportedAlgorithm, InvalidSignature, TypeError) as error:
        raise CsrError(f"not a CSR in PEM: {error}") from None
    if not valid:
        raise CsrError("the CSR's signature does not belong to its key")
    if isinstance(key, rsa.RSAPublicKey):
        if not 2048 <= key.key_size <= 8192:
            raise CsrError(f"an RSA key of {key.key_size} bits")
        return key
    if isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in _CURVES:
            raise CsrError(f"a key on the curve {key.curve.name}")
        return key
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    raise CsrError("a key of a kind that is not supported")
