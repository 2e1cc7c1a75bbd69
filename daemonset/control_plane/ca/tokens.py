"""Tokens of the local control plane: JWTs (RFC 7519) signed with ES256, in the shape of
Kubernetes' bound service account tokens.

The algorithm is fixed: what a token's header says of it is compared, never followed.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from daemonset.control_plane.ca.authenticator import AuthenticationError, Caller
from daemonset.control_plane.ca.issuer import AuthorityError, key_from_pem, key_to_pem, new_key
from daemonset.control_plane.ca.private_files import (
    create_folder,
    make_private_folder,
    read_private,
)

AUDIENCE = "istio-ca"
ISSUER = "ambientd"
MAX_TOKEN_BYTES = 16 * 1024
_SIZE = 32  # bytes of each half of a P-256 signature (RFC 7518 3.4)
_LEEWAY = 30.0  # seconds between two clocks


@dataclass(frozen=True, slots=True)
class TokenSubject:
    """Whom a token is for. A token without a pod speaks for a process of the node itself."""

    namespace: str
    service_account: str
    node: str = ""
    pod: str = ""
    pod_uid: str = ""


class TokenSigner:
    """Mints tokens."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self._key_id = key_id(key.public_key())

    def mint(self, subject: TokenSubject, now: float, lifetime: float) -> str:
        """A token.

        Args:
            now: Unix time.
            lifetime: seconds.
        """
        kubernetes: dict[str, object] = {
            "namespace": subject.namespace,
            "serviceaccount": {"name": subject.service_account},
        }
        if subject.pod:
            kubernetes["pod"] = {"name": subject.pod, "uid": subject.pod_uid}
        if subject.node:
            kubernetes["node"] = {"name": subject.node}
        header = {"alg": "ES256", "kid": self._key_id, "typ": "JWT"}
        claims = {
            "iss": ISSUER,
            "aud": [AUDIENCE],
            "sub": f"system:serviceaccount:{subject.namespace}:{subject.service_account}",
            "kubernetes.io": kubernetes,
            "iat": int(now),
            "nbf": int(now),
            "exp": int(now + lifetime),
            "jti": secrets.token_hex(16),
        }
        signed = f"{_encode(_json(header))}.{_encode(_json(claims))}"
        der = self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256()))
        r, s = decode_dss_signature(der)
        signature = r.to_bytes(_SIZE) + s.to_bytes(_SIZE)
        return f"{signed}.{_encode(signature)}"

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._key.public_key()


class TokenVerifier:
    """Verifies tokens of one signer."""

    def __init__(self, key: ec.EllipticCurvePublicKey) -> None:
        self._key = key
        self._key_id = key_id(key)

    def verify(self, token: str, now: float) -> Caller:
        """Who speaks.

        Raises:
            AuthenticationError: the token is not one of ours, or not for now, or not for us.
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise AuthenticationError("the token is too long")
        parts = token.split(".")
        if len(parts) != 3:
            raise AuthenticationError("not a JWT: it has not three parts")
        header = _object(_decode(parts[0]))
        if header.get("alg") != "ES256":
            raise AuthenticationError(f"signed with {header.get('alg')!r}, not with ES256")
        if header.get("kid") != self._key_id:
            raise AuthenticationError("signed with a key that is not known")
        if "crit" in header:
            raise AuthenticationError("its header demands extensions")
        signature = _decode(parts[2])
        if len(signature) != 2 * _SIZE:
            raise AuthenticationError("the signature has the wrong length")
        r, s = int.from_bytes(signature[:_SIZE]), int.from_bytes(signature[_SIZE:])
        try:
            self._key.verify(
                encode_dss_signature(r, s),
                f"{parts[0]}.{parts[1]}".encode(),
                ec.ECDSA(hashes.SHA256()),
            )
        except InvalidSignature:
            raise AuthenticationError("the signature is wrong") from None
        return _caller(_object(_decode(parts[1])), now)


def _caller(claims: dict[str, object], now: float) -> Caller:
    if claims.get("iss") != ISSUER:
        raise AuthenticationError(f"issued by {claims.get('iss')!r}")
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if AUDIENCE not in audiences:
        raise AuthenticationError(f"for {audience!r}, not for {AUDIENCE!r}")
    if now >= _time(claims, "exp") + _LEEWAY:
        raise AuthenticationError("expired")
    if now < _time(claims, "nbf") - _LEEWAY:
        raise AuthenticationError("not valid yet")
    details = claims.get("kubernetes.io")
    if not isinstance(details, dict):
        raise AuthenticationError("no kubernetes.io claim")
    namespace = _text(details, "namespace")
    service_account = _text(_inner(details, "serviceaccount"), "name")
    if not namespace or not service_account:
        raise AuthenticationError("no service account")
    if claims.get("sub") != f"system:serviceaccount:{namespace}:{service_account}":
        raise AuthenticationError("sub and kubernetes.io name different accounts")
    pod = _inner(details, "pod")
    return Caller(
        namespace=namespace,
        service_account=service_account,
        pod=_text(pod, "name"),
        pod_uid=_text(pod, "uid"),
        node=_text(_inner(details, "node"), "name"),
    )


def _time(claims: dict[str, object], name: str) -> float:
    value = claims.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise AuthenticationError(f"{name} is not a time")
    return float(value)


def _inner(claims: dict[str, object], name: str) -> dict[str, object]:
    value = claims.get(name, {})
    if not isinstance(value, dict):
        raise AuthenticationError(f"{name} is not an object")
    return value


def _text(claims: dict[str, object], name: str) -> str:
    value = claims.get(name, "")
    if not isinstance(value, str):
        raise AuthenticationError(f"{name} is not a string")
    return value


def _object(data: bytes) -> dict[str, object]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise AuthenticationError("not a JWT: a part is not JSON") from None
    if not isinstance(value, dict):
        raise AuthenticationError("not a JWT: a part is not a JSON object")
    return value


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    """Base64url without padding (RFC 7515 2), and only its one spelling."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise AuthenticationError("not a JWT: a part is not base64url") from None
    if _encode(data) != text:
        raise AuthenticationError("not a JWT: a part is not base64url")
    return data


def key_id(key: ec.EllipticCurvePublicKey) -> str:
    """Names a key: the start of the SHA-256 of its SubjectPublicKeyInfo."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(
        key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return digest.finalize()[:8].hex()


def open_token_key(state: Path) -> TokenSigner:
    """The signer kept under ``state``, made if there is none.

    Raises:
        AuthorityError: what is there is no EC key.
        UnsafeFileError: it is open to others.
        OSError: it cannot be read or written.
    """
    make_private_folder(state)
    folder = state / "tokens"
    if not folder.is_dir():
        create_folder(folder, {"key.pem": key_to_pem(new_key())})
    path = folder / "key.pem"
    key = key_from_pem(read_private(path), str(path))
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise AuthorityError(f"{path}: must be an EC P-256 key")
    return TokenSigner(key)
