"""From a traffic secret to a key: RFC 8446 section 7, and the suites of appendix B.4."""

import hashlib
import hmac
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

IV_LENGTH = 12


@dataclass(frozen=True, slots=True)
class Suite:
    """A cipher suite: its name, the hash of its key schedule and its AEAD."""

    name: str
    hash: str
    hash_length: int
    key_length: int
    aead: type[AESGCM] | type[ChaCha20Poly1305]


SUITES = {
    suite.name: suite
    for suite in (
        Suite("TLS_AES_128_GCM_SHA256", "sha256", 32, 16, AESGCM),
        Suite("TLS_AES_256_GCM_SHA384", "sha384", 48, 32, AESGCM),
        Suite("TLS_CHACHA20_POLY1305_SHA256", "sha256", 32, 32, ChaCha20Poly1305),
    )
}


def expand_label(secret: bytes, label: bytes, length: int, hash_name: str) -> bytes:
    """`HKDF-Expand-Label` with an empty context (RFC 8446 section 7.1, RFC 5869 section 2.3)."""
    full = b"tls13 " + label
    info = length.to_bytes(2, "big") + bytes((len(full),)) + full + b"\0"
    assert length <= hashlib.new(hash_name).digest_size, "one block is all that TLS 1.3 needs"
    return hmac.digest(secret, info + b"\1", hash_name)[:length]


def write_key(suite: Suite, secret: bytes) -> bytes:
    """The AEAD key of a traffic secret (section 7.3)."""
    return expand_label(secret, b"key", suite.key_length, suite.hash)


def write_iv(suite: Suite, secret: bytes) -> bytes:
    """The 12 bytes that are combined with the sequence number into each nonce (section 7.3)."""
    return expand_label(secret, b"iv", IV_LENGTH, suite.hash)


def next_secret(suite: Suite, secret: bytes) -> bytes:
    """The traffic secret after a KeyUpdate (section 7.2)."""
    return expand_label(secret, b"traffic upd", suite.hash_length, suite.hash)
